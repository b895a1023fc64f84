"""Taskmaster-4 dialogues -> conversations with tool calls and tool results.

Annotations of the user's utterances hold the API calls in order (Taskmaster, TM-4-2024, CC BY 4.0). JSON results are
written compactly, other results unchanged. Texts are not corrected.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.corpus.ingest.results import Accepted, Read, Rejected
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.pipeline.errors import ChatError
from puna.pipeline.storage.records import unique_keys

SYSTEM = "You take orders in a coffee shop."


def read_taskmaster(path: Path, source: str) -> Iterator[Read]:
    """Yield every dialogue of a file as a conversation or a rejection."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            dialogues = json.load(file, object_pairs_hook=unique_keys)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        yield Rejected(source, f"unreadable: {error}")
        return
    if not isinstance(dialogues, list):
        yield Rejected(source, f"a JSON {type(dialogues).__name__}, not a list of dialogues")
        return
    for number, dialogue in enumerate(dialogues, start=1):
        try:
            yield Accepted(_conversation(dialogue))
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"not laid out as a dialogue: {type(error).__name__} {error}"
            yield Rejected(_name(dialogue, f"{source}:{number}"), reason)
        except (ValueError, ChatError) as error:
            yield Rejected(_name(dialogue, f"{source}:{number}"), str(error))


def _name(dialogue: Any, where: str) -> str:
    return str(dialogue.get("conversation_id", where)) if isinstance(dialogue, dict) else where


def _conversation(dialogue: dict[str, Any]) -> Conversation:
    if not isinstance(dialogue["conversation_id"], str):
        raise ValueError(f"a conversation_id of type {type(dialogue['conversation_id']).__name__}")
    messages = [Message("system", SYSTEM)]
    for utterance in dialogue["utterances"]:
        text = utterance["text"].strip()
        if text:
            messages.append(Message(utterance["speaker"], text))
        messages += _calls(utterance["annotations"])
    if messages[-1].role == "tool":
        messages.pop()  # no assistant message follows the result
    metadata = {"scenario": dialogue["scenario"]}
    return Conversation(tuple(messages), environment="ipython", id=dialogue["conversation_id"], metadata=metadata)


def _calls(annotations: list[dict[str, str]]) -> Iterator[Message]:
    """Turn the annotations (api_call, request, api_response, response)* into calls and results."""
    call: ToolCall | None = None
    for annotation in annotations:
        name, value = annotation["name"], annotation["value"]
        if name == "api_call":
            if call is not None:
                raise ValueError(f"the call of {call.name} has no response")
            call = ToolCall(value, {}, id=annotation["context"])
        elif name in ("request", "response") and call is None:
            raise ValueError(f"a {name} without a call")
        elif name == "request" and call:
            call = ToolCall(call.name, _arguments(value), id=call.id)
        elif name == "response" and call:
            yield Message("assistant", tool_calls=(call,))
            yield Message("tool", _compact(value), tool_call_id=call.id)
            call = None
    if call is not None:
        raise ValueError(f"the call of {call.name} has no response")


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a request is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"a request is a {type(arguments).__name__}, not an object")
    return arguments


def _compact(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
