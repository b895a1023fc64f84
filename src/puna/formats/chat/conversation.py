"""Conversations in OpenAI's or Hugging Face's JSON <-> checked Message and Conversation values.

format.py turns the values into token ids.
"""

import json
import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from puna.formats.chat.padding import tool_without_padding
from puna.pipeline.errors import ChatError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
OTHER_SPELLINGS = {"developer": "system", "ipython": "tool"}
ENVIRONMENTS = ("", "ipython")
CallFormat = Literal["json", "tag"]
CALL_FORMATS: tuple[str, ...] = get_args(CallFormat)
BUILTIN_TOOLS = ("brave_search", "wolfram_alpha")
# Invisible letters and symbols: Hangul fillers, the empty Braille cell.
_INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_TAG_NAME = re.compile(r"[^<>{}\s]+")
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_TODAY = re.compile(rf"(0[1-9]|[12]\d|3[01]) ({_MONTHS}) \d{{4}}")


def is_blank(text: str) -> bool:
    r"""Return whether a text has no visible character: only whitespace, zero-width characters and fillers.

    Example:
        >>> is_blank(" \u200b\ufeff"), is_blank("?")
        (True, False)
    """
    return all(char.isspace() or char in _INVISIBLE or unicodedata.category(char) in ("Cc", "Cf") for char in text)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant.

    Attributes:
        original: The arguments as generated, if the tool's schema changed their types. Ignored by equality and
            rendering.

    Example:
        >>> ToolCall("lookup", {"order": "17"}).arguments
        {'order': '17'}
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""
    original: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ChatError("a tool call without a name", expected="the name of a tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: text, and tool calls of an assistant.

    Attributes:
        weight: 0 excludes an assistant message from the loss, as in OpenAI's fine-tuning files.

    Example:
        >>> Message("user", "Are you open?").to_json()
        {'role': 'user', 'content': 'Are you open?'}
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    weight: int = 1

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ChatError(f"role {self.role!r}", expected=f"one of {', '.join(ROLES)}")
        if self.tool_calls and self.role != "assistant":
            raise ChatError(f"tool_calls in a {self.role} message", expected="tool_calls in assistant messages only")
        if self.tool_call_id and self.role != "tool":
            raise ChatError(f"tool_call_id in a {self.role} message", expected="tool_call_id in tool messages only")
        if self.weight not in (0, 1) or (self.weight == 0 and self.role != "assistant"):
            raise ChatError(f"weight {self.weight} in a {self.role} message", expected="0 or 1 in assistant messages")

    @property
    def is_learned(self) -> bool:
        """Whether the message is in the loss mask."""
        return self.role == "assistant" and self.weight == 1

    @property
    def rendered(self) -> str:
        """Role, trimmed text and calls as JSON, without ids: equal for messages with equal prompts."""
        calls = [(call.name, call.arguments) for call in self.tool_calls]
        return json.dumps((self.role, self.content.strip(), calls), default=str)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            data["tool_calls"] = [_call_to_json(call) for call in self.tool_calls]
        data |= {} if self.weight else {"weight": 0}
        return data | ({"tool_call_id": self.tool_call_id} if self.tool_call_id else {})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, tools and settings of the prompt format.

    Attributes:
        tools: Tool definitions in OpenAI's format.
        environment: "ipython" enables built-in tools and code; "" otherwise.
        today: Date for the system prompt, DD Month YYYY.
        builtin_tools: Tools that Llama 3.1 knows without a schema, from `BUILTIN_TOOLS`.
        call_format: Requested spelling of calls: JSON, or `<function=NAME>` tags.

    Example:
        >>> Conversation.from_json({"messages": [{"role": "user", "content": "Hi"}]}).messages
        (Message(role='user', content='Hi', tool_calls=(), tool_call_id='', weight=1),)
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    environment: str = ""
    today: str = ""
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    builtin_tools: tuple[str, ...] = ()
    call_format: CallFormat = "json"

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise ChatError(f"environment {self.environment!r}", expected='"" or "ipython"')
        if self.today and not _TODAY.fullmatch(self.today):
            raise ChatError(f"today {self.today!r}", expected="DD Month YYYY, such as 05 March 2025")
        names = [tool_name(tool, f"tools[{index}]") for index, tool in enumerate(self.tools)]
        self._check_builtin_tools(names)
        if self.call_format not in CALL_FORMATS:
            raise ChatError(f"call_format {self.call_format!r}", expected=f"one of {', '.join(CALL_FORMATS)}")
        if self.call_format == "tag":
            for index, name in enumerate(names):
                if not _TAG_NAME.fullmatch(name):
                    raise ChatError(
                        f"tools[{index}] is named {name!r}", expected="a name without spaces, <, >, { and } for tags"
                    )

    def _check_builtin_tools(self, names: list[str]) -> None:
        for name in self.builtin_tools:
            if name not in BUILTIN_TOOLS:
                raise ChatError(f"builtin_tools has {name!r}", expected=f"only {', '.join(BUILTIN_TOOLS)}")
            if name in names or self.builtin_tools.count(name) > 1:
                raise ChatError(f"{name} is offered twice", expected="every tool once, in builtin_tools or in tools")
        if self.builtin_tools and self.environment != "ipython":
            raise ChatError("builtin_tools without an environment", expected='environment "ipython" with builtin_tools')

    def with_message(self, message: Message) -> "Conversation":
        """Return the conversation with a further message."""
        return replace(self, messages=(*self.messages, message))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object without empty fields; arguments of calls are objects, not strings."""
        data: dict[str, Any] = {"messages": [message.to_json() for message in self.messages]}
        rest = {"tools": list(self.tools), "environment": self.environment, "builtin_tools": list(self.builtin_tools)}
        rest |= {"call_format": "" if self.call_format == "json" else self.call_format, "today": self.today}
        rest |= {"id": self.id, "metadata": self.metadata}
        return data | {name: value for name, value in rest.items() if value}

    @classmethod
    def from_json(cls, data: Any) -> "Conversation":
        """Read OpenAI's or Hugging Face's spelling.

        Raises:
            ChatError: A field is malformed; the error names the path, such as messages[2].content.
        """
        setting = {"environment": str, "builtin_tools": list, "call_format": str, "today": str}
        fields = _fields(data, "", {"messages": list}, tools=list, **setting, id=str, metadata=dict)
        messages = fields.pop("messages")
        tools = fields.pop("tools", [])
        return cls(
            messages=tuple(_read_message(item, f"messages[{index}]") for index, item in enumerate(messages)),
            tools=tuple(_read_tool(item, f"tools[{index}]") for index, item in enumerate(tools)),
            builtin_tools=tuple(fields.pop("builtin_tools", ())),
            **fields,
        )


def tool_name(tool: dict[str, Any], path: str = "tool") -> str:
    """Return the name of a tool definition in OpenAI's format."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if tool.get("type") != "function" or not isinstance(name, str) or not name:
        expected = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise ChatError(path, expected=expected)
    return name


def _call_to_json(call: ToolCall) -> dict[str, Any]:
    function: dict[str, Any] = {"name": call.name, "arguments": call.arguments}
    if call.original is not None:
        function["original"] = call.original
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def _fields(data: Any, path: str, required: dict[str, type], **optional: type) -> dict[str, Any]:
    """Return the fields of an object whose values are not null, each of its type and none unknown."""
    if not isinstance(data, dict):
        raise ChatError(f"{path or 'conversation'} is {type(data).__name__}", expected="a JSON object")
    allowed = required | optional
    dot = f"{path}." if path else ""
    present = {name: value for name, value in cast(dict[str, Any], data).items() if value is not None}
    for name, value in present.items():
        if name not in allowed:
            hint = "Put what else belongs to a conversation into `metadata`" if not path else ""
            raise ChatError(f"unknown field {dot}{name}", expected=f"only {', '.join(allowed)}", hint=hint)
        if not isinstance(value, allowed[name]):
            raise ChatError(f"{dot}{name} is {type(value).__name__}", expected=allowed[name].__name__)
    for name in required:
        if name not in present:
            raise ChatError(f"{dot}{name} is missing", expected=required[name].__name__)
    return present


def _read_message(data: Any, path: str) -> Message:
    # A tool message's `name` repeats the call's; the prompt format has no place for a name.
    optional = {"content": object, "tool_calls": list, "tool_call_id": str, "name": str, "weight": int}
    fields = _fields(data, path, {"role": str}, **optional)
    role = OTHER_SPELLINGS.get(fields["role"], fields["role"])
    if "name" in fields and role != "tool":
        raise ChatError(f"unknown field {path}.name", expected="a name in tool messages only")
    calls = enumerate(fields.get("tool_calls", []))
    try:
        return Message(
            role=cast(Role, role),  # Message checks it.
            content=_read_content(fields.get("content", ""), f"{path}.content"),
            tool_calls=tuple(_read_call(call, f"{path}.tool_calls[{index}]") for index, call in calls),
            tool_call_id=fields.get("tool_call_id", ""),
            weight=int(fields.get("weight", 1)),
        )
    except ChatError as error:
        if error.given.startswith(path):
            raise
        raise ChatError(f"{path}: {error.given}", expected=error.expected, hint=error.hint) from None


def _read_content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatError(f"{path} is {type(content).__name__}", expected="a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(content):
        fields = _fields(part, f"{path}[{index}]", {"type": str}, text=str)
        if fields["type"] != "text" or "text" not in fields:
            raise ChatError(f"{path}[{index}] is of type {fields['type']!r}", expected="text only")
        texts.append(fields["text"])
    return "".join(texts)


def _read_call(data: Any, path: str) -> ToolCall:
    outer = _fields(data, path, {"function": dict}, id=str, type=str, index=int)
    if outer.get("type", "function") != "function":
        raise ChatError(f"{path}.type is {outer['type']!r}", expected='"function"')
    function = _fields(outer["function"], f"{path}.function", {"name": str}, arguments=object, original=dict)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ChatError(f"{path}.function.arguments is not JSON ({error})", expected="a JSON object") from None
    arguments = {} if arguments is None else arguments  # Some clients write "null" for a call without arguments.
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise ChatError(f"{path}.function.arguments is {kind}", expected="a JSON object, or one in a string")
    return ToolCall(function["name"], arguments, outer.get("id", ""), function.get("original"))


def _read_tool(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ChatError(f"{path} is {type(data).__name__}", expected="a JSON object")
    stripped = tool_without_padding(data)
    tool = stripped if "function" in stripped or "type" in stripped else {"type": "function", "function": stripped}
    tool_name(tool, path)
    return tool
