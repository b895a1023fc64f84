"""Text of an assistant message -> text and tool calls.

Reads four spellings: JSON, `brave_search.call(query="...")`, Python source, `<function=NAME>{...}</function>`.
Malformed calls stay text instead of raising an error. If a schema changes the types of arguments, the call keeps the
original arguments too. Call ids are the server's concern.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.formats.chat.conversation import BUILTIN_TOOLS, ToolCall
from puna.formats.chat.schema_keywords import type_name

CODE_TOOL = "code_interpreter"
TAG_OPENING, TAG_CLOSING = "<function=", "</function>"
# Python source with these prefixes would be read as another spelling.
CODE_TAKEN = ("{", "[", TAG_OPENING, *(f"{name}.call(" for name in BUILTIN_TOOLS))
_BUILTIN_CALL = re.compile(rf'({"|".join(BUILTIN_TOOLS)})\.call\(query="([^"]*)"\)')
# Strings are matched whole, so that a closing tag inside an argument does not end the call.
_STRING = r'"(?:[^"\\]|\\.)*+"'
_FUNCTION_TAG = re.compile(rf"{TAG_OPENING}([^<>{{}}\s]+)>((?>{_STRING}|.)*?){TAG_CLOSING}", re.DOTALL)
_SEPARATOR = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()

Schemas = Mapping[str, Any]  # Tool name -> JSON schema of the arguments.


def read_marked(text: str, schemas: Schemas) -> tuple[ToolCall, ...]:
    """Return the calls in a text after python_tag; () for malformed JSON."""
    text = text.strip()
    builtin = _BUILTIN_CALL.fullmatch(text)
    if builtin:
        return (ToolCall(builtin[1], {"query": builtin[2]}),)
    if text.startswith(("{", "[")):
        return _read_json_calls(text, schemas)
    tagged, rest = read_tags(text, schemas, only_known=False)
    if tagged and not rest:
        return tagged
    return (ToolCall(CODE_TOOL, {"code": text}),) if text else ()


def read_bare(text: str, schemas: Schemas) -> tuple[ToolCall, ...]:
    """Return the calls of a text without python_tag; () if one names a tool outside `schemas`."""
    calls = _read_json_calls(text.strip(), schemas) if text.lstrip().startswith(("{", "[")) else ()
    return calls if all(call.name in schemas for call in calls) else ()


def read_tags(text: str, schemas: Schemas, *, only_known: bool = True) -> tuple[tuple[ToolCall, ...], str]:
    """Return the calls in `<function=...>` tags and the surrounding text; ((), text) if a tag is malformed."""
    calls: list[ToolCall] = []
    for match in _FUNCTION_TAG.finditer(text):
        values = _load_objects(match[2].strip() or "{}")
        if len(values) != 1 or (only_known and match[1] not in schemas):
            return (), text
        calls.append(_call(match[1], values[0], schemas))
    return tuple(calls), _FUNCTION_TAG.sub("", text).rstrip() if calls else text


def _read_json_calls(text: str, schemas: Schemas) -> tuple[ToolCall, ...]:
    calls = [_call_from_object(value, schemas) for value in _load_objects(text)]
    return () if None in calls else tuple(call for call in calls if call)


def _call_from_object(value: dict[str, Any], schemas: Schemas) -> ToolCall | None:
    name = value.get("name")
    arguments = value.get("parameters", value.get("arguments", {}))
    if isinstance(arguments, str):
        inner = _load_objects(arguments)
        arguments = inner[0] if len(inner) == 1 else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return _call(name, arguments, schemas)


def _call(name: str, arguments: dict[str, Any], schemas: Schemas) -> ToolCall:
    coerced = coerce(arguments, schemas.get(name))
    return ToolCall(name, coerced, original=None if coerced == arguments else arguments)


def _load_objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a text, in a list or in sequence; [] if the text holds anything else."""
    values = _load_values(text)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return values if all(isinstance(value, dict) for value in values) else []


def _load_values(text: str) -> list[Any]:
    """Return the JSON values of a text in sequence; [] if the text holds anything else."""
    values: list[Any] = []
    position = 0
    try:
        while position < len(text):
            value, end = _DECODER.raw_decode(text, position)
            values.append(value)
            separator = _SEPARATOR.match(text, end)
            position = separator.end() if separator else end
        # Values without a JSON form (NaN, a lone surrogate) would fail later, on rendering.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return []
    return values


def coerce(value: Any, schema: Any) -> Any:
    """Return a value in the type of a JSON schema if the text of the value permits, else unchanged.

    Models write numbers as strings and identifiers as numbers: "3" -> 3, 17 -> "17".

    Example:
        >>> coerce({"count": "3", "id": 17}, {"properties": {"count": {"type": "integer"}, "id": {"type": "string"}}})
        {'count': 3, 'id': '17'}
    """
    if not isinstance(schema, dict):
        return value
    types = _types_of(schema)
    if isinstance(value, dict):
        properties = schema.get("properties")
        known: dict[str, Any] = properties if isinstance(properties, dict) else {}
        return {name: coerce(item, known.get(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [coerce(item, schema.get("items")) for item in value]
    if not types or any(_is_of_type(value, name) for name in types):
        return value
    if isinstance(value, str):
        return _value_in_text(value, schema, types)
    return json.dumps(value) if "string" in types and value is not None else value


def _value_in_text(text: str, schema: dict[str, Any], types: Sequence[str]) -> Any:
    values = _load_values(text.strip()) or _load_values(text.strip().lower())  # Python writes True.
    if len(values) != 1 or not any(_is_of_type(values[0], name) for name in types):
        return text
    return coerce(values[0], schema)


def _types_of(schema: dict[str, Any]) -> list[str]:
    named = schema.get("type")
    if isinstance(named, str):
        return [type_name(named)]
    if isinstance(named, list):
        return [type_name(name) for name in named if isinstance(name, str)]
    choices = schema.get("anyOf") or schema.get("oneOf")
    parts = [part for part in choices if isinstance(part, dict)] if isinstance(choices, list) else []
    return [name for part in parts for name in _types_of(part)]


def _is_of_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int):
        return name in ("integer", "number")
    if isinstance(value, float):
        return name == "number" or (name == "integer" and value.is_integer())
    types: dict[str, Any] = {"string": str, "array": list, "object": dict, "null": type(None)}
    return name in types and isinstance(value, types[name])
