"""Tool definitions and calls with null padding -> the same objects without the padding.

A column of objects in Arrow is a single struct: every object has the keys of all objects of the column, and absent
keys are null. JSON written from the table keeps the nulls. Three kinds of null have a meaning and stay: the `default`
of a JSON schema, a `const` of a schema with a null type, and a nullable argument. Lists are never padded:
`enum: [null]` stays. Arguments in a string are never padded either, and stay verbatim.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from puna.formats.chat.schema_keywords import BRANCHES, LISTS, MAPS, SINGLES, pointed_value

# Fields with messages of a conversation or preference, and all stripped fields.
_MESSAGES = ("messages", "prompt", "chosen", "rejected", "edited")
PADDED = ("tools", *_MESSAGES)
_MAX_REFERENCES = 8


def without_padding(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation in OpenAI's spelling, or a preference, without null padding in tools and messages.

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
    """Strip a call in OpenAI's spelling, or in the flat spelling (name and arguments without the key `function`)."""
    if not isinstance(call, dict):
        return call
    present = _present(cast(dict[str, Any], call))
    if "function" in present:
        present["function"] = _call(present["function"], schemas)
    elif isinstance(present.get("arguments"), dict):
        schema = schemas.get(present["name"]) if isinstance(present.get("name"), str) else None
        present["arguments"] = _argument(present["arguments"], _Node(schema, schema))
    return present


class _Node(NamedTuple):
    """The schema of a node in the arguments of a call, and the schema of all arguments with the definitions."""

    schema: Any
    root: Any

    def resolved(self) -> dict[str, Any]:
        """Return the schema behind any chain of local references; an empty schema admits nothing in particular."""
        schema = self.schema
        for _ in range(_MAX_REFERENCES):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
                break
            schema = pointed_value(self.root, reference)
        return cast(dict[str, Any], schema) if isinstance(schema, dict) else {}

    def below(self, keyword: str, depth: int = _MAX_REFERENCES) -> Any:
        """Return the value of a keyword in the node's schema, or in the first branch that has the keyword."""
        schema = self.resolved()
        if keyword in schema or not depth:
            return schema.get(keyword)
        values = (branch.below(keyword, depth - 1) for branch in self.branches())
        return next((value for value in values if value is not None), None)

    def branches(self) -> Iterator["_Node"]:
        schema = self.resolved()
        return (_Node(branch, self.root) for name in BRANCHES for branch in _list(schema.get(name)))

    def admits_null(self, depth: int = _MAX_REFERENCES) -> bool:
        """Return whether the schema names null: as a type, a value, in a branch, or by OpenAPI's `nullable`."""
        schema = self.resolved()
        types = schema.get("type")
        if types == "null" or "null" in _list(types) or None in _list(schema.get("enum")):
            return True
        if schema.get("nullable") is True or ("const" in schema and schema["const"] is None):
            return True
        return depth > 0 and any(branch.admits_null(depth - 1) for branch in self.branches())


def _argument(value: Any, node: _Node) -> Any:
    """Strip an argument: a null stays where the schema admits null."""
    if isinstance(value, list):
        items = _Node(node.below("items"), node.root)
        return [_argument(item, items) for item in value]
    if not isinstance(value, dict):
        return value
    properties = node.below("properties")
    known = cast(dict[str, Any], properties) if isinstance(properties, dict) else {}
    nodes = {name: _Node(known.get(name), node.root) for name in value}
    return {
        name: _argument(item, nodes[name])
        for name, item in value.items()
        if item is not None or nodes[name].admits_null()
    }


def _schema(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    stripped: dict[str, Any] = {}
    admits_null = schema.get("type") in (None, "null") or "null" in _list(schema.get("type"))
    for keyword, value in cast(dict[str, Any], schema).items():
        if value is None:
            if keyword == "default" or (keyword == "const" and admits_null):
                stripped[keyword] = None
        elif keyword in MAPS and isinstance(value, dict):
            below = {name: _schema(item) for name, item in value.items() if item is not None}
            # A struct whose fields are all null stands for an absent object in some exports.
            stripped[keyword] = {name: item for name, item in below.items() if item != {} or value[name] == {}}
        elif keyword in (*LISTS, "items") and isinstance(value, list):
            stripped[keyword] = [_schema(item) for item in value]
        else:
            stripped[keyword] = _schema(value) if keyword in SINGLES else value
    return stripped


def _schemas_by_name(tools: Any) -> dict[str, Any]:
    functions = [tool.get("function", tool) for tool in _list(tools) if isinstance(tool, dict)]
    named = [function for function in functions if isinstance(function, dict) and isinstance(function.get("name"), str)]
    return {function["name"]: function.get("parameters") for function in named}


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []
