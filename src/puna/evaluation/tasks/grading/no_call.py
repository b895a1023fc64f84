"""Grade `no_call`: the assistant answers in words. The content of the words is not judged."""

from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message


def no_call(_question: Question, message: Message) -> Grade:
    """Require words instead of a tool call. Any words pass, so the grade counts as not judged.

    Example:
        >>> no_call(Question("1", conversation, {"no_call": True}), Message("assistant", "At nine.")).is_judged
        False
    """
    if message.tool_calls:
        return _unjudged(0.0, f"calls {message.tool_calls[0].name}, expected an answer in words")
    if not message.content.strip():
        return _unjudged(0.0, "is empty")
    if message.content.lstrip().startswith(("{", "<function=")):
        return _unjudged(0.0, "is a call that cannot be read")
    return _unjudged(1.0, "answers in words, not judged")


def _unjudged(score: float, reason: str) -> Grade:
    return Grade(score, reason, is_judged=False)
