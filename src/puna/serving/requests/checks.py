"""Checks of JSON that hold for every field: strict types, finite numbers, valid Unicode, bounded nesting."""

import math
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_DEPTH = 64

# Undeclared fields are kept for fields.py, which decides about warnings and errors.
OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def refused(param: str, reason: str) -> PydanticCustomError:
    """Return a validation error about `param`, for a check over several fields."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "param": param})


def json_problem(value: Any) -> str:
    """Return a problem of a JSON value: a non-finite number, invalid Unicode, deep nesting; "" for valid values."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                return "a number that is not finite"
            elif isinstance(item, str) and not _is_unicode(item):
                return "text that is not valid Unicode (a lone surrogate)"
        if not below:
            return ""
        level = below
    return f"nested more than {MAX_DEPTH} levels deep"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
