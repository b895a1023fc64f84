"""A conversation -> the same conversation with other identifiers, so that a model must copy them, not remember them.

An identifier is a run of at least four digits in a tool call or a tool result ("latte-3490", "28740"). Each is replaced
by random digits of the same length, the same everywhere in the conversation.
"""

import random
import re
from dataclasses import replace
from typing import Any

from puna.chat.conversation import Conversation, Message

IDENTIFIER = re.compile(r"\d{4,}")


def fresh_identifiers(conversation: Conversation, source: random.Random) -> Conversation:
    """Replace every identifier of the conversation by one that was never seen."""
    names = sorted(_named(conversation))
    fresh = {name: "".join(source.choices("0123456789", k=len(name))) for name in names}

    def renew(value: Any) -> Any:
        if isinstance(value, str):
            return IDENTIFIER.sub(lambda match: fresh.get(match.group(), match.group()), value)
        if isinstance(value, dict):
            return {key: renew(item) for key, item in value.items()}
        return [renew(item) for item in value] if isinstance(value, list) else value

    def renew_message(message: Message) -> Message:
        calls = tuple(replace(call, arguments=renew(call.arguments)) for call in message.tool_calls)
        return replace(message, content=renew(message.content), tool_calls=calls)

    return replace(conversation, messages=tuple(renew_message(message) for message in conversation.messages))


def _named(conversation: Conversation) -> set[str]:
    texts = [message.content for message in conversation.messages if message.role == "tool"]
    texts += [str(call.arguments) for message in conversation.messages for call in message.tool_calls]
    return {name for text in texts for name in IDENTIFIER.findall(text)}
