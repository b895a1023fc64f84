"""Tool definitions and calls with null padding -> the same objects without the padding.

A column of objects in Arrow is one struct: every object has the keys of all objects of the column, and a key that an
object lacks is null. JSON written from such a table keeps these nulls. Three kinds of null have a meaning and stay:
the `default` of a JSON schema, a `const` that the type of its schema admits, and an argument whose schema admits null.
Lists are never padded: `enum: [null]` stays. Arguments in a string are never padded either, and stay verbatim.
"""

from collections.abc import Mapping
from typing import Any, cast

# Keywords of JSON Schema (2020-12 and draft 7), by the form of their value.
_MAPS_OF_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_LISTS_OF_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems", "items"}
_SCHEMAS = {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
# Fields of a conversation or of a preference that hold messages, and all fields that this file strips.
_MESSAGES = ("messages", "prompt", "chosen", "rejected", "edited")
PADDED = ("tools", *_MESSAGES)
_BRANCHES = ("anyOf", "oneOf", "allOf")


def without_padding(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation in OpenAI's spelling, or a preference, without null padding in its tools and messages.

    Malformed parts stay as given: Conversation.from_json names the place.

    Example:
        >>> without_padding({"messages": [{"role": "user", "content": "Hi", "tool_calls": None}]})
        {'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    cleaned = dict(conversation)
    if isinstance(cleaned.get("tools"), list):
        cleaned["tools"] = [tool_without_padding(tool) for tool in cleaned["tools"]]
    schemas = _schemas_by_name(cleaned.get("tools"))
    lists = {name: cleaned[name] for name in _MESSAGES if isinstance(cleaned.get(name), list)}
    return cleaned | {name: [_message(message, schemas) for message in messages] for name, messages in lists.items()}


def tool_without_padding(tool: Any) -> Any:
    """Return a tool definition, with or without the envelope `function`, without null padding.

    Example:
        >>> schema = {"type": "object", "properties": {"zone": {"type": "string", "default": None}, "city": None}}
        >>> tool_without_padding({"name": "now", "strict": None, "parameters": schema})["parameters"]["properties"]
        {'zone': {'type': 'string', 'default': None}}
    """
    if not isinstance(tool, dict):
        return tool
    present = _present(cast(dict[str, Any], tool))
    if "function" in present:
        present["function"] = tool_without_padding(present["function"])
    if "parameters" in present:
        present["parameters"] = _schema(present["parameters"])
    return present


def _message(message: Any, schemas: Mapping[str, Any]) -> Any:
    if not isinstance(message, dict):
        return message
    present = _present(cast(dict[str, Any], message))
    if isinstance(present.get("tool_calls"), list):
        present["tool_calls"] = [_call(call, schemas) for call in present["tool_calls"]]
    if isinstance(present.get("content"), list):
        present["content"] = [_present(part) if isinstance(part, dict) else part for part in present["content"]]
    return present


def _call(call: Any, schemas: Mapping[str, Any]) -> Any:
    """Strip a call in OpenAI's spelling, or in the flat one: name and arguments without the envelope `function`."""
    if not isinstance(call, dict):
        return call
    present = _present(cast(dict[str, Any], call))
    if "function" in present:
        present["function"] = _call(present["function"], schemas)
    elif isinstance(present.get("arguments"), dict):
        schema = schemas.get(present["name"]) if isinstance(present.get("name"), str) else None
        present["arguments"] = _argument(present["arguments"], schema)
    return present


def _argument(value: Any, schema: Any) -> Any:
    """Strip an argument: a null stays where the schema of its place admits null."""
    if isinstance(value, list):
        return [_argument(item, _below(schema, "items")) for item in value]
    if not isinstance(value, dict):
        return value
    places = {name: _property(schema, name) for name in value}
    return {
        name: _argument(item, places[name])
        for name, item in value.items()
        if item is not None or _admits_null(places[name])
    }


def _property(schema: Any, name: str) -> Any:
    properties = _below(schema, "properties")
    return properties.get(name) if isinstance(properties, dict) else None


def _below(schema: Any, keyword: str) -> Any:
    """Return the value of a keyword in a schema, or in the first of its branches that has the keyword."""
    if not isinstance(schema, dict):
        return None
    if keyword in schema:
        return schema[keyword]
    branches = (branch for name in _BRANCHES for branch in _list(schema.get(name)))
    return next((found for branch in branches if (found := _below(branch, keyword)) is not None), None)


def _admits_null(schema: Any) -> bool:
    """Return whether a schema names null: as a type, as a value, in a branch, or with OpenAPI's `nullable`."""
    if not isinstance(schema, dict):
        return False
    types = schema.get("type")
    if types == "null" or "null" in _list(types) or None in _list(schema.get("enum")) or schema.get("nullable") is True:
        return True
    is_null = "const" in schema and schema["const"] is None
    return is_null or any(_admits_null(branch) for name in _BRANCHES for branch in _list(schema.get(name)))


def _schema(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    stripped: dict[str, Any] = {}
    for keyword, value in cast(dict[str, Any], schema).items():
        if value is None:
            if keyword == "default" or (keyword == "const" and _admits_null_const(schema)):
                stripped[keyword] = None
        elif keyword in _MAPS_OF_SCHEMAS and isinstance(value, dict):
            below = {name: _schema(item) for name, item in value.items() if item is not None}
            # A struct whose fields are all null stands for an absent object in some exports.
            stripped[keyword] = {name: item for name, item in below.items() if item != {} or value[name] == {}}
        elif keyword in _LISTS_OF_SCHEMAS and isinstance(value, list):
            stripped[keyword] = [_schema(item) for item in value]
        else:
            stripped[keyword] = _schema(value) if keyword in _SCHEMAS else value
    return stripped


def _admits_null_const(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") is None or _admits_null({"type": schema["type"]})


def _schemas_by_name(tools: Any) -> dict[str, Any]:
    functions = [tool.get("function", tool) for tool in _list(tools) if isinstance(tool, dict)]
    named = [function for function in functions if isinstance(function, dict) and isinstance(function.get("name"), str)]
    return {function["name"]: function.get("parameters") for function in named}


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []
