"""Small JSON files written by Puna -> validated values, or an error with the names of file and field.

A file may be damaged, truncated, replaced or forged: sizes, types, hashes and names are checked before use.
"""

import json
import math
import stat
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from puna.pipeline.errors import ArtifactError, PunaError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Record = TypeVar("Record")

MAX_BYTES = 64 * 2**20
MAX_SHOWN = 80


def parse_strict(raw: bytes, *, allow_nan: bool = False) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: The text is no JSON, has a duplicate key or, unless `allow_nan`, holds NaN, Infinity or a
            number beyond the range of a float (1e999).
        RecursionError: The text is nested too deeply for the parser.
    """
    hooks: dict[str, Any] = {} if allow_nan else {"parse_constant": _refuse_constant, "parse_float": _finite}
    return json.loads(raw.decode(), object_pairs_hook=unique_keys, **hooks)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, as `object_pairs_hook`; duplicate keys are errors, since JSON gives duplicates no meaning.

    Raises:
        ValueError: A key is a duplicate.

    Example:
        >>> unique_keys([("a", 1), ("b", 2)])
        {'a': 1, 'b': 2}
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key '{twice[:60]}' stands twice in an object")
    return fields


def read_bounded(path: Path, *, max_bytes: int = MAX_BYTES, error: type[PunaError] = ArtifactError) -> bytes:
    """Return the bytes of a regular file; raise `error` for special files and too large files.

    FileNotFoundError passes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file", expected="a regular file")
        if status.st_size > max_bytes:
            raise error(f"{path} has {status.st_size:,} bytes", expected=f"at most {max_bytes:,}")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}", expected="a readable file") from None


def read_record(
    path: Path,
    kind: type[Record],
    *,
    expected: str,
    hint: str = "",
    error: type[PunaError] = ArtifactError,
    allow_nan: bool = False,
) -> Record:
    """Read a JSON file as a dataclass, pydantic model or annotated type.

    Args:
        kind: The type; JSON types must match: "3" is no number and 3.0 no integer.
        expected: Phrase for the whole file, for the error.
        error: Class of the error.
        allow_nan: Whether NaN and Infinity, unknown to JSON, may stand for numbers.

    Raises:
        PunaError: As `error`: the file is too large, no strict JSON, or a field does not fit. FileNotFoundError passes.

    Example:
        >>> read_record(folder / "run_cost.json", Cost, expected="seconds as a run writes them").seconds
        12.5
    """
    raw = read_bounded(path, error=error)
    try:
        parse_strict(raw, allow_nan=allow_nan)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({_short(problem)})", expected=expected, hint=hint) from None
    return validate(raw, kind, str(path), expected=expected, hint=hint, error=error)


def validate(
    raw: bytes, kind: type[Record], where: str, *, expected: str, hint: str = "", error: type[PunaError] = ArtifactError
) -> Record:
    """Return a JSON text as a value of `kind`; `where` names the text in the error."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(raw, strict=True)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        given = f"{where}: {field} = {_short(repr(first['input']))}" if field else where
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise error(given, expected=f"{expected} ({_short(message)})", hint=hint) from None


@cache
def _adapter(kind: type[Record]) -> "TypeAdapter[Record]":
    # NOTE: a late import: `puna --help` reads no file, and importing pydantic takes 0.1 s.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _short(problem: object) -> str:
    return ascii(str(problem))[1:-1][:MAX_SHOWN]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value
