"""A list of messages in any known spelling -> messages in OpenAI's spelling.

Read are OpenAI's roles with old `function_call` fields, ShareGPT's `from` and `value`, the roles `function_call`,
`tool_call`, `observation` and `tool_response` of LLaMA-Factory and ms-swift, and the loss flags of weights.py. A field
without a known meaning stays: Conversation.from_json names the field and its place.
"""

import json
from typing import Any, NamedTuple, cast

from puna.corpus.ingest.spellings.weights import pop_weight
from puna.pipeline.errors import ChatError

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "ipython", "function", "observation", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
# Fields without a place in the prompt format: speaker names and descriptions of the message.
DESCRIPTIVE = frozenset(
    ["name", "id", "message_id", "turn_id", "index", "timestamp", "created_at", "model", "language", "num_tokens"]
)
_TURNS = {"input": "user", "query": "user", "question": "user"} | dict.fromkeys(
    ("output", "response", "answer"), "assistant"
)
_TEXT_PARTS = (None, "text", "input_text", "output_text")


class Messages(NamedTuple):
    """Messages in OpenAI's spelling, the name of the spelling, and fields that were left out.

    Example:
        >>> read_messages([{"from": "human", "value": "Open?"}], "conversations").spelling
        'ShareGPT'
    """

    messages: list[dict[str, Any]]
    spelling: str
    left_out: frozenset[str]


def read_messages(value: Any, place: str) -> Messages:
    """Read a list of messages, or the same list as a JSON string.

    Args:
        value: The value of the column.
        place: Name of the column, for errors.

    Raises:
        ChatError: A message is unreadable; the error names the place.

    Example:
        >>> read_messages([{"from": "human", "value": "Open?"}], "conversations").messages
        [{'role': 'user', 'content': 'Open?'}]
    """
    value = parsed(value, place) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ChatError(f"{place} is {type(value).__name__}", expected="a list of messages")
    messages: list[dict[str, Any]] = []
    left_out: set[str] = set()
    follows_call = False
    items = [entry for index, item in enumerate(cast(list[Any], value)) for entry in _messages_in(item, index)]
    for index, item in items:
        message = _read_message(item, f"{place}[{index}]")
        for name in DESCRIPTIVE & message.keys():
            if (name, message["role"]) != ("name", "tool"):  # The name of a tool repeats the call.
                del message[name]
                left_out.add(f"{place}[].{name}")
        is_call = message.pop("is_call", False)
        if is_call and follows_call:
            messages[-1]["tool_calls"] += message["tool_calls"]  # Calls in a row are made at once.
        else:
            messages.append(message)
        follows_call = is_call
    has_from = any(isinstance(item, dict) and "from" in item for item in cast(list[Any], value))
    spelling = "ShareGPT" if has_from else "messages" if len(items) == len(value) else "turns"
    return Messages(messages, spelling, frozenset(left_out))


def parsed(text: str, place: str) -> Any:
    """Parse a column of JSON in a string.

    Raises:
        ChatError: The string is not JSON.

    Example:
        >>> parsed('[{"role": "user"}]', "messages")
        [{'role': 'user'}]
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(
            f"{place} is a string that is not JSON ({error})", expected="a list, or a JSON text of a list"
        ) from None


def _messages_in(item: Any, index: int) -> list[tuple[int, Any]]:
    """Return the messages of an item: ms-swift and Capybara have a turn of question and answer as one object."""
    if not isinstance(item, dict) or not {"role", "from"}.isdisjoint(item):
        return [(index, item)]
    texts_by_role = {name: text for name, text in cast(dict[str, Any], item).items() if text is not None}
    roles = [_TURNS.get(name, ROLES.get(name, "")) for name in texts_by_role]
    if roles not in (["user", "assistant"], ["tool", "assistant"], ["assistant", "user"], ["assistant", "tool"]):
        return [(index, item)]
    turns = [(index, {"from": role, "value": text}) for role, text in zip(roles, texts_by_role.values(), strict=True)]
    return turns if roles[-1] == "assistant" else turns[::-1]


def _read_message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ChatError(f"{place} is {type(item).__name__}", expected="a message as a JSON object")
    fields = {name: value for name, value in cast(dict[str, Any], item).items() if _says_something(name, value)}
    for name, other in (("role", "from"), ("content", "value")):
        if other in fields and name in fields and fields[name] != fields[other]:
            raise ChatError(f"{place} has {name} and {other}", expected=f"either {name} or {other}")
        if other in fields:
            fields[name] = fields.pop(other)
    role = ROLES.get(fields["role"].lower(), fields["role"]) if isinstance(fields.get("role"), str) else None
    if role is None:
        raise ChatError(f"{place} has no role", expected="the fields role and content, or from and value")
    weight = pop_weight(fields, role, place)
    fields = {"role": role, **{name: value for name, value in fields.items() if name != "role"}}
    if role == "call":
        calls = _calls_in(fields.pop("content", None), place)
        fields |= {"role": "assistant", "content": "", "tool_calls": calls, "is_call": True}
    if "function_call" in fields:
        if fields.get("tool_calls"):
            raise ChatError(f"{place} has function_call and tool_calls", expected="either function_call or tool_calls")
        fields["tool_calls"] = [{"type": "function", "function": fields.pop("function_call")}]
    if isinstance(in_text := fields.get("tool_calls"), str):
        fields["tool_calls"] = parsed(in_text, f"{place}.tool_calls")
    if isinstance(fields.get("tool_calls"), list):
        calls = enumerate(fields["tool_calls"])
        fields["tool_calls"] = [_in_envelope(call, f"{place}.tool_calls[{number}]") for number, call in calls]
    if fields.get("type") in ("message", "text"):
        del fields["type"]
    if isinstance(fields.get("content"), list) and not _is_data(fields["content"]):
        fields["content"] = [_text_part(part) for part in fields["content"]]
    if role == "tool" and _is_data(fields.get("content")):
        fields["content"] = json.dumps(fields["content"], ensure_ascii=False)
    return fields | ({} if weight else {"weight": 0})


def _says_something(name: str, value: Any) -> bool:
    """Tell whether a field has content: neither null nor an empty value of an unknown field."""
    return value is not None and (name in ("content", "value", "role", "from") or value not in ("", [], {}))


def _is_data(content: Any) -> bool:
    """Return whether the result of a tool is JSON data: an object, or a list of no text parts."""
    if isinstance(content, list):
        return not all(isinstance(part, dict) and {"type", "text"} & part.keys() for part in cast(list[Any], content))
    return isinstance(content, dict | int | float)


def _text_part(part: Any) -> Any:
    """Return a part of a content in OpenAI's chat spelling; the Responses API tells input from output."""
    if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type") not in _TEXT_PARTS:
        return part
    rest = {name: value for name, value in part.items() if name != "type" and value not in (None, [], {})}
    return {"type": "text", **rest}


def _in_envelope(call: Any, place: str) -> Any:
    """Return a call in OpenAI's form; other trainers write name and arguments alone, verifiers as JSON in a string."""
    call = parsed(call, place) if isinstance(call, str) else call
    if isinstance(call, dict) and "function" not in call and "name" in call:
        outer = {name: call[name] for name in ("id", "type", "index") if call.get(name) is not None}
        return {
            **outer,
            "function": {name: value for name, value in call.items() if name not in ("type", "index", "id")},
        }
    return call


def _calls_in(content: Any, place: str) -> list[dict[str, Any]]:
    """Read the calls that stand as JSON in the text of a message."""
    data = parsed(content, place) if isinstance(content, str) else content
    calls: list[dict[str, Any]] = []
    for call in cast(list[Any], data) if isinstance(data, list) else [data]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ChatError(
                f"{place} is no tool call", expected='{"name": ..., "arguments": {...}}, or a list of these'
            )
        arguments = call.get("arguments", call.get("parameters"))
        # NOTE: Nulls in a text are meant: only a string is kept from the removal of padding.
        encoded = json.dumps(arguments, ensure_ascii=False) if isinstance(content, str) else arguments
        calls.append({"type": "function", "function": {"name": call["name"], "arguments": encoded}})
    if not calls:
        raise ChatError(f"{place} holds no tool call", expected="at least one tool call")
    return calls
