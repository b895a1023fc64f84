"""A JSON object and its allowed fields -> an error for the first missing, unknown or mistyped field."""

from typing import Any

from puna.pipeline.errors import DataError


def require_fields(row: dict[str, Any], where: str, required: dict[str, type], optional: dict[str, type]) -> None:
    """Require every field of `required`, and no field outside `required` and `optional`; types must match.

    Example:
        >>> require_fields({"id": 7}, "questions.jsonl row 3", {"id": str}, {})
        Traceback (most recent call last):
        puna.pipeline.errors.DataError: questions.jsonl row 3: id is int; expected str

    Raises:
        DataError: A field is missing, unknown or of another type; the message begins with `where`.
    """
    allowed = required | optional
    for name in required:
        if name not in row:
            raise DataError(f"{where} lacks '{name}'", expected=", ".join(required))
    for name, value in row.items():
        if name not in allowed:
            raise DataError(f"{where} has the unknown field '{name}'", expected=", ".join(allowed))
        if not isinstance(value, allowed[name]):
            raise DataError(f"{where}: {name} is {type(value).__name__}", expected=allowed[name].__name__)
