"""Conversation <-> token ids and loss mask, in Llama 3.1's prompt format, for training and inference alike.

Text of users, tools and models is encoded as plain text and cannot forge a header or an end token. The rendering has no
clock and no defaults, so a training example and a prompt of the same conversation are equal. Source:
llama3_1/prompt_format.md in llama-models.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from puna.formats.chat.conversation import BUILTIN_TOOLS, CallFormat, Conversation, Message, ToolCall, tool_name
from puna.formats.chat.parse import CODE_TAKEN, CODE_TOOL, TAG_CLOSING, TAG_OPENING, read_bare, read_marked, read_tags
from puna.formats.tokenizer import Tokenizer
from puna.pipeline.errors import ChatError

# Source: llama3_1/prompt_format.md in llama-models.
TOOLS_BEFORE = (
    "Answer the user's question by making use of the following functions if needed.\n"
    "If none of the function can be used, please say so.\n"
    "Here is a list of functions in JSON format:\n"
)
TOOLS_AFTER = "\n\nReturn function calls in JSON format."
TAGS_BEFORE = "You have access to the following functions:\n\n"
TAGS_EACH = ("Use the function '", "' to '", "':\n")  # Before the name, the description and the schema.
TAGS_AFTER = (
    "\n\nThink very carefully before calling functions.\n"
    "If you choose to call a function ONLY reply in the following format with no prefix or suffix:\n\n"
    '<function=example_function_name>{"example_name": "example_value"}</function>\n\n'
    "Reminder:\n"
    "- If looking for real time information use relevant functions before falling back to brave_search\n"
    "- Function calls MUST follow the specified format, start with <function= and end with </function>\n"
    "- Required parameters MUST be specified\n"
    "- Only call one function at a time\n"
    "- Put the entire function call reply on one line"
)
# The grammar of JSON strings admits no raw delete character, which json.dumps does not escape.
DELETE, DELETE_ESCAPED = "\x7f", r"\u007f"
TOOLS_LINE = "Tools: "
KNOWLEDGE_LINE = "Cutting Knowledge Date: December 2023"
CALL_SEPARATOR = "; "


class Encoded(NamedTuple):
    """Token ids and the loss mask."""

    ids: list[int]
    mask: list[bool]


class Body(NamedTuple):
    """The parts of a message: text, then the text after python_tag (None without a tag), then the end token."""

    content: str
    marked: str | None
    end: str


class ChatFormat:
    """Renders conversations for one tokenizer, and parses assistant messages.

    Example:
        ids, mask = ChatFormat(tokenizer).encode(conversation)
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._begin = tokenizer.special("begin_of_text")
        self._end_of_text = tokenizer.special("end_of_text")
        self.python_tag = tokenizer.special("python_tag")
        self.pad_id = tokenizer.special("finetune_right_pad_id")
        self.stop_ids = (tokenizer.special("eot_id"), tokenizer.special("eom_id"), self._end_of_text)
        self.call_ids = (self.python_tag, tokenizer.special("eom_id"))  # Tokens of messages with calls only.
        self._headers = {name: self._header(name) for name in ("system", "user", "assistant", "ipython")}

    def encode(self, conversation: Conversation) -> Encoded:
        """Return the ids of a whole conversation; the mask covers assistant messages of weight 1 with end tokens."""
        ids, mask = self._render(conversation)
        if not any(mask):
            raise ChatError(
                f"conversation {conversation.id!r} has no message to train on",
                expected="at least one assistant message of weight 1",
            )
        return Encoded(ids, mask)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the ids of the conversation, followed by the header of an assistant message."""
        return self._render(conversation).ids + self._headers["assistant"]

    def prompt_to_continue(self, conversation: Conversation) -> list[int]:
        """Return the ids of a conversation without the end of the last message, which the assistant continues.

        The message is trimmed, as in training. transformers calls this `continue_final_message`.

        Raises:
            ChatError: The last message is not the assistant's, or calls tools.
        """
        last = conversation.messages[-1] if conversation.messages else None
        if last is None or last.role != "assistant":
            given = f"the last message is of role {last.role!r}" if last else "a conversation without messages"
            raise ChatError(given, expected="an assistant message to continue")
        if last.tool_calls:
            raise ChatError("the last message calls tools", expected="a text message to continue")
        return self._render(conversation).ids[:-1]

    def document(self, text: str) -> list[int]:
        """Return the ids of a text for pretraining, between begin_of_text and end_of_text."""
        return [self._begin, *self.tokenizer.encode(text), self._end_of_text]

    def parse(self, ids: Sequence[int], tools: Iterable[dict[str, Any]] = ()) -> Message:
        """Parse the ids of an assistant message, with or without the end token; malformed calls become text.

        JSON after python_tag is a call. Without python_tag, JSON or `<function=...>` is a call only if it names one of
        `tools`, because users also request JSON as an answer.
        """
        segments: list[list[int]] = [[]]
        for token_id in ids:
            if token_id in self.stop_ids:
                break
            if token_id == self.python_tag:
                segments.append([])
            elif not self.tokenizer.is_special(token_id):
                segments[-1].append(token_id)
        texts = [self.tokenizer.decode(segment) for segment in segments]
        return _read_message(texts[0], texts[1:], {tool_name(tool): _schema(tool) for tool in tools})

    def _header(self, name: str) -> list[int]:
        start, end = (self.tokenizer.special(f"{side}_header_id") for side in ("start", "end"))
        return [start, *self.tokenizer.encode(name), end, *self.tokenizer.encode("\n\n")]

    def _render(self, conversation: Conversation) -> Encoded:
        out = Encoded([self._begin], [False])
        for header, text in opening(conversation):
            self._append(out, header, Body(text, None, "eot_id"), learn=False)
        names = {tool_name(tool) for tool in conversation.tools}
        start = 1 if conversation.messages and conversation.messages[0].role == "system" else 0
        for message in conversation.messages[start:]:
            header = "ipython" if message.role == "tool" else message.role
            body = message_body(message, names, conversation.environment, conversation.call_format)
            self._append(out, header, body, learn=message.is_learned)
        return out

    def _append(self, out: Encoded, header: str, body: Body, *, learn: bool) -> None:
        ids = self.tokenizer.encode(body.content)
        if body.marked is not None:
            ids += [self.python_tag, *self.tokenizer.encode(body.marked)]
        ids.append(self.tokenizer.special(body.end))
        out.ids.extend(self._headers[header] + ids)
        out.mask.extend([False] * len(self._headers[header]) + [learn] * len(ids))


def opening(conversation: Conversation) -> list[tuple[str, str]]:
    """Return (header, text) of the messages before the dialogue: the system message, then the tools."""
    first = conversation.messages[0] if conversation.messages else None
    text = first.content.strip() if first and first.role == "system" else ""
    lines = [f"Environment: {conversation.environment}"] if conversation.environment else []
    lines += [TOOLS_LINE + ", ".join(conversation.builtin_tools)] if conversation.builtin_tools else []
    lines += [KNOWLEDGE_LINE, f"Today Date: {conversation.today}"] if conversation.today else []
    messages: list[tuple[str, str]] = []
    if lines or (first and first.role == "system"):
        messages.append(("system", "\n\n".join(part for part in ("\n".join(lines), text) if part)))
    if conversation.tools:
        messages.append(
            ("user", _tagged_tools(conversation) if conversation.call_format == "tag" else _tools(conversation))
        )
    return messages


def _tools(conversation: Conversation) -> str:
    schemas = "\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in conversation.tools)
    return TOOLS_BEFORE + schemas + TOOLS_AFTER


def _tagged_tools(conversation: Conversation) -> str:
    functions = [tool["function"] for tool in conversation.tools]
    before_name, before_description, before_schema = TAGS_EACH
    descriptions = [
        f"{before_name}{function['name']}{before_description}{function.get('description') or ''}{before_schema}"
        + json.dumps(function, ensure_ascii=False)
        for function in functions
    ]
    return TAGS_BEFORE + "\n\n".join(descriptions) + TAGS_AFTER


def message_body(
    message: Message, tool_names: Collection[str], environment: str, call_format: CallFormat = "json"
) -> Body:
    """Return the parts of a message.

    Calls without python_tag are rendered only if no reader can mistake them: all tools are in `tool_names`, and the
    message holds nothing else (JSON) or no further tag.
    """
    content, calls = message.content.strip(), message.tool_calls
    if not calls:
        return Body(content, None, "eot_id")
    end = "eom_id" if environment else "eot_id"
    native = _native_spelling(calls[0]) if len(calls) == 1 and calls[0].name not in tool_names else None
    if environment and native:
        return Body(content, native, end)
    is_announced = all(call.name in tool_names for call in calls)
    if call_format == "tag" and is_announced and TAG_OPENING not in content:
        return Body(content + "".join(_tagged_call(call) for call in calls), None, "eot_id")
    spelled = CALL_SEPARATOR.join(_json_call(call) for call in calls)
    if environment or content or not is_announced:
        return Body(content, spelled, end)
    return Body(spelled, None, end)


def _native_spelling(call: ToolCall) -> str | None:
    """Return the built-in spelling of a call, None if the spelling cannot hold the arguments."""
    if call.name in BUILTIN_TOOLS and list(call.arguments) == ["query"]:
        query = call.arguments["query"]
        return f'{call.name}.call(query="{query}")' if isinstance(query, str) and '"' not in query else None
    if call.name == CODE_TOOL and list(call.arguments) == ["code"]:
        code = call.arguments["code"]
        is_plain = isinstance(code, str) and code == code.strip() and not code.startswith(CODE_TAKEN)
        return code if is_plain and code else None
    return None


def _json_call(call: ToolCall) -> str:
    return _dump({"type": "function", "name": call.name, "parameters": call.arguments}, call)


def _tagged_call(call: ToolCall) -> str:
    # A closing tag inside a string argument is safe: parse.py matches strings whole.
    return f"{TAG_OPENING}{call.name}>{_dump(call.arguments, call)}{TAG_CLOSING}"


def _dump(data: dict[str, Any], call: ToolCall) -> str:
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).replace(DELETE, DELETE_ESCAPED)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"arguments of {call.name} ({error})", expected="values with a JSON form") from error


def _schema(tool: dict[str, Any]) -> Any:
    return tool["function"].get("parameters")


def _read_message(text: str, marked: list[str], schemas: Mapping[str, Any]) -> Message:
    if not marked:
        calls, rest = read_bare(text, schemas), ""
        if not calls:
            calls, rest = read_tags(text, schemas)
        return Message("assistant", rest, calls)
    parsed = [read_marked(part, schemas) for part in marked]
    if not all(parsed):
        return Message("assistant", "".join([text, *marked]))
    return Message("assistant", text.rstrip(), tuple(call for calls in parsed for call in calls))
