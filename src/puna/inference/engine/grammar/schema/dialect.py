"""JSON schemas in any dialect of clients -> the same schemas in llguidance's draft 2020-12.

Reads the older drafts, OpenAPI 3.0, Gemini's upper-case types, and schemas that a table padded with nulls. Changes no
meaning: keywords that a grammar cannot hold stay, for fit.py.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from puna.formats.chat.schema_keywords import LISTS, MAPS, SINGLES, type_name
from puna.inference.engine.grammar.schema.patterns import rust_pattern

Node = dict[str, Any]
Path = tuple[str | int, ...]

TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
VALUED = {"type", "enum", "$ref", "anyOf", "oneOf", "allOf", "properties", "items"}
# Keywords that say nothing about values. `$schema` names the draft, which this file translates.
DROPPED = {"$schema", "$comment", "$vocabulary", "$recursiveAnchor", "default", "examples", "example", "nullable"}
# A text of so many characters is longer than any context: the bound says nothing, and llguidance cannot read it.
ENDLESS = 2**31
# What a reference (RFC 3986) may hold beside letters and digits; clients write names of other scripts unescaped.
URI_CHARACTERS = "%#/:?@!$&'()*+,;=~-._"


def read_dialect(schema: Node) -> Node:
    """Return a copy of a schema in draft 2020-12.

    Example:
        >>> read_dialect({"type": "STRING", "nullable": True, "maxLength": None})
        {'type': ['string', 'null']}
    """
    node = {
        name: _value(name, value)
        for name, value in schema.items()
        if name not in DROPPED and (value is not None or name == "const")
    }
    if "type" in node:
        node["type"] = _types(node["type"])
        if node["type"] in ([], "any"):
            del node["type"]
    # A null beside other keywords is the padding of a table.
    if "const" in node and node["const"] is None and "null" not in node.get("type", ()) and VALUED & node.keys():
        del node["const"]
    _read_bounds(node)
    _read_items(node)
    _read_required(node, schema)
    _drop_vacuous(node)
    return _with_null(node) if schema.get("nullable") is True else node


def children(node: Node) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the value of every schema directly within a schema.

    Example:
        >>> list(children({"items": {"type": "string"}}))
        [(('items',), {'type': 'string'})]
    """
    for keyword, value in node.items():
        if keyword in MAPS and isinstance(value, dict):
            yield from (((keyword, name), child) for name, child in value.items())
        elif keyword in LISTS and isinstance(value, list):
            yield from (((keyword, index), child) for index, child in enumerate(value))
        elif keyword in SINGLES and isinstance(value, dict | bool):
            yield (keyword,), value


def _value(keyword: str, value: Any) -> Any:
    """Translate the schemas within a keyword's value, without nulls."""
    if keyword in MAPS and isinstance(value, dict):
        named = {name: _child(child) for name, child in value.items() if child is not None}
        return named if keyword != "patternProperties" else {rust_pattern(name): named[name] for name in named}
    if keyword == "pattern" and isinstance(value, str):
        return rust_pattern(value)
    if keyword == "$ref" and isinstance(value, str):
        return quote(value, safe=URI_CHARACTERS)
    if (keyword in LISTS or keyword == "items") and isinstance(value, list):
        return [_child(child) for child in value if child is not None]
    return _child(value) if keyword in (*SINGLES, "additionalItems") else value


def _child(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    return False if schema.get("not") in ({}, True) else read_dialect(schema)


def _types(value: Any) -> Any:
    """Return type names in lower case; unknown names stay, for fit.py to name."""
    if isinstance(value, str):
        return type_name(value) or []
    if isinstance(value, list):
        names = ["null" if each is None else _types(each) for each in value]
        return [] if "any" in names else [name for at, name in enumerate(names) if name and name not in names[:at]]
    return value


def _read_bounds(node: Node) -> None:
    """Read exclusive bounds of draft 4, and counts written as 5.0 or "5"."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool):
            is_exclusive = node.pop(exclusive)
            if is_exclusive and bound in node:
                node[exclusive] = node.pop(bound)
    for name in COUNTS:
        count = node.get(name)
        if (isinstance(count, float) and count.is_integer()) or (isinstance(count, str) and count.isdecimal()):
            node[name] = int(count)
        if name.startswith("max") and isinstance(node.get(name), int) and node[name] >= ENDLESS:
            del node[name]


def _read_items(node: Node) -> None:
    """Read a list of `items`, the tuples before draft 2020-12."""
    rest = node.pop("additionalItems", None)
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if rest is not None:
            node["items"] = rest


def _read_required(node: Node, schema: Node) -> None:
    """Read `required: true` at properties (draft 3) into the list of their object."""
    if isinstance(node.get("required"), bool):
        del node["required"]
    properties = schema.get("properties")
    named = node.get("required", [])
    if isinstance(properties, dict) and isinstance(named, list):
        marked = [name for name, each in properties.items() if isinstance(each, dict) and each.get("required") is True]
        if marked:
            node["required"] = list(dict.fromkeys([*named, *marked]))


def _drop_vacuous(node: Node) -> None:
    """Drop keywords without effect, unknown to llguidance."""
    if "$dynamicAnchor" in node:
        node.setdefault("$anchor", node.pop("$dynamicAnchor"))
    if "if" not in node:
        node.pop("then", None)
        node.pop("else", None)
    if "contains" not in node:
        node.pop("minContains", None)
        node.pop("maxContains", None)
    if node.get("propertyNames") in (True, {}, {"type": "string"}):
        del node["propertyNames"]
    for name in ("unevaluatedItems", "unevaluatedProperties"):
        if node.get(name) in (True, {}):
            del node[name]
    for name, value in (("uniqueItems", False), ("not", False), ("dependencies", {}), ("dependentRequired", {}),
                        ("dependentSchemas", {}), ("minProperties", 0)):  # fmt: skip
        if name in node and node[name] == value:
            del node[name]


def _with_null(node: Node) -> Node:
    """Admit null beside the values of a schema, as OpenAPI 3.0 means `nullable`."""
    if "enum" in node and isinstance(node["enum"], list) and None not in node["enum"]:
        node["enum"] = [*node["enum"], None]
    types = node.get("type")
    if isinstance(types, str | list):
        names = [types] if isinstance(types, str) else types
        node["type"] = list(dict.fromkeys([*names, "null"]))
    if "const" in node or any(name in node for name in ("$ref", "allOf", "anyOf", "oneOf")):
        about = {name: node.pop(name) for name in ("title", "description") if name in node}
        return {**about, "anyOf": [node, {"type": "null"}]}
    return node
