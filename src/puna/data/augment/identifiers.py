"""A conversation -> the same conversation with random identifiers, which a model must copy instead of remember.

An identifier is a run of at least four digits in the arguments of a tool call or in a tool result ("latte-3490",
"28740"). Digits of a decimal number (1234.50) are excluded. All occurrences of an identifier get the same new digits of
the same length; different identifiers stay different. Argument names do not change.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from puna.formats.chat.conversation import Conversation, Message

IDENTIFIER = re.compile(r"(?<![0-9])(?<![0-9]\.)[0-9]{4,}(?![0-9]|\.[0-9])")
DRAWS = 100


def fresh_identifiers(conversation: Conversation, source: random.Random) -> Conversation:
    """Replace every identifier of the conversation with random digits that do not occur in the conversation."""
    fresh = _draw(sorted(_named(conversation)), source)

    def renew(value: Any) -> Any:
        if isinstance(value, str):
            return IDENTIFIER.sub(lambda match: fresh.get(match.group(), match.group()), value)
        if isinstance(value, int) and not isinstance(value, bool):
            return int(renew(str(value)))
        if isinstance(value, dict):
            return {key: renew(item) for key, item in value.items()}
        return [renew(item) for item in value] if isinstance(value, list) else value

    def renew_message(message: Message) -> Message:
        calls = tuple(replace(call, arguments=renew(call.arguments), original=None) for call in message.tool_calls)
        return replace(message, content=renew(message.content), tool_calls=calls)

    return replace(conversation, messages=tuple(renew_message(message) for message in conversation.messages))


def _named(conversation: Conversation) -> set[str]:
    texts = [message.content for message in conversation.messages if message.role == "tool"]
    calls = [call for message in conversation.messages for call in message.tool_calls]
    return {name for text in [*texts, *_texts([call.arguments for call in calls])] for name in IDENTIFIER.findall(text)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        yield str(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _draw(names: list[str], source: random.Random) -> dict[str, str]:
    """Draw new digits for every identifier: unique, not an old identifier, a leading zero only in place of one."""
    fresh: dict[str, str] = {}
    taken = set(names)
    for name in names:
        candidates = (_digits_like(name, source) for _ in range(DRAWS))
        # With thousands of four-digit identifiers no free one may be left; then the identifier stays.
        fresh[name] = next((digits for digits in candidates if digits not in taken), name)
        taken.add(fresh[name])
    return fresh


def _digits_like(name: str, source: random.Random) -> str:
    first = "0" if name[0] == "0" else source.choice("123456789")
    return first + "".join(source.choices("0123456789", k=len(name) - 1))
