"""Keywords of JSON Schema with schemas as values, grouped by the form of the value, and references between schemas.

Source: drafts 7 and 2020-12 (applicators).
"""

from typing import Any
from urllib.parse import unquote

# An object of schemas by name.
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
BRANCHES = ("anyOf", "oneOf", "allOf")
LISTS = (*BRANCHES, "prefixItems")
# One schema; `items` was a list of schemas before draft 2020-12, too.
SINGLES = (
    *("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)

# JSON Schema's names of types by the names that function descriptions of BFCL, Gemini and Python have.
OTHER_TYPES = {"dict": "object", "float": "number", "int": "integer", "str": "string", "bool": "boolean"}
OTHER_TYPES |= {"list": "array", "tuple": "array", "double": "number", "none": "null"}


def type_name(name: str) -> str:
    """Return JSON Schema's name of a type; an unknown name in lower case.

    Example:
        >>> type_name("STRING"), type_name("dict")
        ('string', 'object')
    """
    folded = name.strip().lower()
    return OTHER_TYPES.get(folded, folded)


def pointed_value(root: Any, reference: str) -> Any:
    """Return the target of "#" or of a JSON pointer such as "#/$defs/to" (RFC 6901, section 6); None if absent.

    Example:
        >>> pointed_value({"$defs": {"a/b": {"type": "null"}}}, "#/$defs/a~1b")
        {'type': 'null'}
    """
    start, *parts = reference.split("/")
    value = root if start == "#" else None
    for part in parts:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value
