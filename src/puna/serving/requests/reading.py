"""Bytes of a body -> a checked request; errors (400) name the field and the expected value."""

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from puna.serving.admission.workers import LARGE_BYTES, Workers
from puna.serving.errors import HttpError
from puna.serving.middleware.warnings import warn
from puna.serving.requests.body import Body
from puna.serving.requests.fields import judge_extras, sift

MAX_SHOWN = 80
MAX_EXCERPT = 24
# Per body: as many as in 4,096 messages of four parts.
MAX_STRINGS = 100_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

AnyBody = TypeVar("AnyBody", bound=Body)


async def read_request(request: Request, model: type[AnyBody], workers: Workers, *, is_strict: bool) -> AnyBody:
    """Read a request's body, in a thread for large bodies; add warnings about fields without effect.

    Raises:
        HttpError: Status 400 for an invalid JSON object or a wrong field.
    """
    content = await request.body()
    headers = {name: request.headers.get(name, "") for name in ("content-type", "content-encoding")}

    def read() -> tuple[AnyBody, list[str]]:
        data = parse_body(content, content_type=headers["content-type"], encoding=headers["content-encoding"])
        return check_body(data, model, is_strict=is_strict)

    is_large = len(content) > LARGE_BYTES
    tenant = request.state.tenant.name
    body, warnings = await workers.run(read, num_bytes=len(content), tenant=tenant) if is_large else read()
    for text in warnings:
        warn(request, text)
    return body


def parse_body(content: bytes, *, content_type: str, encoding: str = "") -> dict[str, Any]:
    """Decode a JSON object in UTF-8, with or without a byte order mark (RFC 8259, section 8.1).

    Raises:
        HttpError: Status 400 with the line, column and character of the fault.

    Example:
        >>> parse_body(b'\xef\xbb\xbf{"n": 1}', content_type="application/json; charset=utf-8")
        {'n': 1}
    """
    kind = content_type.partition(";")[0].strip().lower()
    if encoding.lower() not in ("", "identity"):
        message = f"Content-Encoding is {encoding[:MAX_SHOWN]!a}; expected a body that is not compressed."
        raise HttpError(400, message, code="invalid_content_encoding")
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        # NOTE: a web page can send other types to this machine without the browser asking the server first.
        given = f"Content-Type is {content_type[:MAX_SHOWN]!a}" if content_type else "There is no Content-Type"
        message = f"{given}; expected a JSON object with the header Content-Type: application/json."
        raise HttpError(400, message, code="invalid_content_type")
    if not content.strip():
        raise HttpError(400, "The body is empty; expected a JSON object.", code="invalid_json")
    _require_few_values(content)
    text = _decode(content)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(error) from None
    except RecursionError:
        raise HttpError(400, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError:
        message = "The body has a number of more than 4,300 digits; expected at most 19 digits."
        raise HttpError(400, message, code="invalid_json") from None
    if not isinstance(data, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        message = f"The body is {kinds.get(type(data), 'a number')}; expected a JSON object."
        raise HttpError(400, message, code="invalid_json")
    return data


def _require_few_values(content: bytes) -> None:
    """Limit strings, objects and lists of a body: the JSON parser holds the GIL and would delay other requests."""
    num_strings = (content.count(b'"') - content.count(b'\\"')) // 2
    if num_strings > MAX_STRINGS:
        message = f"The body has about {num_strings:,} strings; expected at most {MAX_STRINGS:,}."
        raise HttpError(400, message, code="body_too_complex")
    if content.count(b"{") + content.count(b"[") > MAX_STRINGS:
        outside = _STRING.sub(b"", content)
        if (number := outside.count(b"{") + outside.count(b"[")) > MAX_STRINGS:
            message = f"The body has {number:,} objects and lists; expected at most {MAX_STRINGS:,}."
            raise HttpError(400, message, code="body_too_complex")


def _decode(content: bytes) -> str:
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        message = f"The body is encoded as {encoding.upper()}; expected UTF-8."
        raise HttpError(400, message, code="invalid_json")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"The body has the byte 0x{content[error.start]:02x} at position {error.start} (line {line})"
        raise HttpError(400, f"{message}, which is no UTF-8; expected JSON in UTF-8.", code="invalid_json") from None


def _syntax_error(error: json.JSONDecodeError) -> HttpError:
    place = f"line {error.lineno}, column {error.colno} (character {error.pos})"
    reason = error.msg[:1].lower() + error.msg[1:].removesuffix(" at").removesuffix(" starting")
    reason = reason.replace("expecting", "expected").replace("extra data", "expected nothing after the object")
    rest = error.doc[error.pos : error.pos + MAX_EXCERPT]
    if rest.strip():
        message = f"The body is not valid JSON at {place}, before {rest!a}: {reason}."
    else:
        message = f"The body is cut off: it ends at {place}, where JSON goes on: {reason}."
    return HttpError(400, message, code="invalid_json")


def check_body(data: dict[str, Any], model: type[AnyBody], *, is_strict: bool) -> tuple[AnyBody, list[str]]:
    """Validate a body; return the request and the warnings."""
    fields, warnings = sift(data, model, model.SPELLINGS, is_strict=is_strict)
    try:
        body = model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, fields) from None
    seen: set[str] = set()
    extras = (text for part in body.parts() for text in judge_extras(*part, seen, is_strict=is_strict))
    return body, [*warnings, *extras, *body.remarks()]


def _invalid(error: ValidationError, body: dict[str, Any]) -> HttpError:
    """Return an HttpError for the deepest of pydantic's errors; shallower errors come from other branches of a union.

    An error about a list's length takes precedence over errors about the list's items.
    """
    findings = error.errors()
    places = [_place(finding["loc"], body, finding["type"]) for finding in findings]
    too_long = [place for finding, place in zip(findings, places, strict=True) if finding["type"] == "too_long"]
    deepest = max(places, key=_depth)
    if too_long and deepest not in too_long:
        deepest = max(too_long, key=_depth)
    finding = findings[places.index(deepest)]
    if finding["type"] == "refused":
        param = finding.get("ctx", {}).get("param") or deepest
        return HttpError(400, finding["msg"], param=param or None)
    if finding["type"].startswith("union_tag"):
        return _untagged(deepest, finding)
    reasons = [item["msg"] for item, place in zip(findings, places, strict=True) if place == deepest]
    given = "" if finding["type"] == "missing" else f" (given: {_shown(finding['input'])})"
    return HttpError(400, f"{deepest}: {' or '.join(dict.fromkeys(reasons))}{given}", param=deepest)


def _untagged(place: str, finding: Any) -> HttpError:
    """Return an HttpError about a discriminator field, such as the role of a message."""
    name = finding["ctx"]["discriminator"].strip("'")
    place = f"{place}.{name}".lstrip(".")
    if finding["type"] == "union_tag_not_found":
        return HttpError(400, f"{place}: Field required", param=place)
    expected, given = finding["ctx"]["expected_tags"], _shown(finding["input"].get(name))
    return HttpError(400, f"{place}: Input should be one of {expected} (given: {given})", param=place)


def _depth(place: str) -> int:
    return place.count(".") + place.count("[")


def _place(location: Sequence[Any], body: Any, kind: str) -> str:
    """Return a location as a path such as messages[0].role, without pydantic's names of union branches."""
    place = ""
    for index, part in enumerate(location):
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            place, body = f"{place}[{part}]", body[part]
        elif isinstance(body, dict) and part in body:
            place, body = f"{place}.{part}".lstrip("."), body[part]
        elif kind == "missing" and index == len(location) - 1:
            place = f"{place}.{part}".lstrip(".")
    return place


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
