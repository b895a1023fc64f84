"""Conversations that people held -> a question for every turn of the assistant, given the true history before it."""

from collections.abc import Iterator
from dataclasses import replace

from puna.chat.conversation import Conversation, Message
from puna.tasks.question import Question


def turn_questions(conversation: Conversation) -> Iterator[Question]:
    """Ask for each assistant message in turn: the call that was made, or words.

    No rule judges the content of words; the reference is kept for a judge. A turn with several calls is passed over:
    a question expects one.
    """
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant" and index and len(message.tool_calls) < 2:
            grade, expected = _expected(message)
            prompt = replace(conversation, messages=conversation.messages[:index])
            yield Question(f"{conversation.id}/{index}", prompt, expected, grade, group=conversation.id)


def _expected(message: Message) -> tuple[str, dict[str, object]]:
    if message.tool_calls:
        call = message.tool_calls[0]
        return "tool_call", {"name": call.name, "arguments": call.arguments}
    reference = {"reference": message.content} if message.content.strip() else {}
    return "no_call", {"no_call": True, **reference}
