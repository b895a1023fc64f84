"""Taskmaster-4 dialogues -> conversations with tool calls and tool results.

The API calls stand as annotations on the user's utterances, in the order in which they were made (Taskmaster,
TM-4-2024, CC BY 4.0). Results are written as compact JSON where they are JSON at all, and as they stand otherwise.
What the dialogues say is not corrected.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.chat.conversation import Conversation, Message, ToolCall
from puna.errors import DataError

SYSTEM = "You take orders in a coffee shop."


def read_taskmaster(path: Path, source: str) -> Iterator[Conversation | tuple[str, str]]:
    """Yield each dialogue of a file as a conversation, or its id and the reason why it cannot be used."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            dialogues = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read ({error})", expected="a JSON list of dialogues") from None
    for dialogue in dialogues:
        try:
            yield _conversation(dialogue)
        except (KeyError, TypeError, ValueError) as error:
            yield str(dialogue.get("conversation_id", source)), f"{type(error).__name__}: {error}"


def _conversation(dialogue: dict[str, Any]) -> Conversation:
    messages = [Message("system", SYSTEM)]
    for utterance in dialogue["utterances"]:
        text = utterance["text"].strip()
        if text:
            messages.append(Message(utterance["speaker"], text))
        messages += _calls(utterance["annotations"])
    if messages[-1].role == "tool":
        messages.pop()  # a result that nobody answers teaches nothing
    metadata = {"scenario": dialogue["scenario"]}
    return Conversation(tuple(messages), environment="ipython", id=dialogue["conversation_id"], metadata=metadata)


def _calls(annotations: list[dict[str, str]]) -> Iterator[Message]:
    """Turn the annotations (api_call, request, api_response, response)* into calls and results."""
    call: ToolCall | None = None
    for annotation in annotations:
        name, value = annotation["name"], annotation["value"]
        if name == "api_call":
            call = ToolCall(value, {}, id=annotation["context"])
        elif name == "request":
            assert call is not None
            call = ToolCall(call.name, _arguments(value), id=call.id)
        elif name == "response":
            assert call is not None
            yield Message("assistant", tool_calls=(call,))
            yield Message("tool", _compact(value), tool_call_id=call.id)


def _arguments(text: str) -> dict[str, Any]:
    arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise ValueError(f"a request is a {type(arguments).__name__}, not an object")
    return arguments


def _compact(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text
