"""Grade `contains`: required strings stand in the answer, forbidden strings do not."""

import re
import unicodedata

from puna.chat.conversation import Message
from puna.tasks.question import Grade, Question


def contains(question: Question, message: Message) -> Grade:
    """Require every string of `contains` and forbid every string of `distractors`.

    Case and white space do not matter. A number matches as a whole only: "4.90" is not in "24.90", "4" not in "4.5".

    Example:
        >>> question = Question("1", conversation, {"contains": ["24.90"], "distractors": ["4.90"]})
        >>> contains(question, Message("assistant", "It costs 24.90 euros.")).score
        1.0
    """
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    missing = [text for text in question.expected["contains"] if not _stands_in(text, message.content)]
    wrong = [text for text in question.expected.get("distractors", []) if _stands_in(text, message.content)]
    complaints = [f"lacks {text!r}" for text in missing] + [f"has {text!r}" for text in wrong]
    return Grade(0.0, ", ".join(complaints)) if complaints else Grade(1.0, "has all that was expected")


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _stands_in(text: str, answer: str) -> bool:
    wanted = _normalize(text)
    before = r"(?<!\d)(?<!\d[.,:'’])" if wanted[:1].isdecimal() else ""
    after = r"(?!\d|[.,:'’]\d)" if wanted[-1:].isdecimal() else ""
    return re.search(before + re.escape(wanted) + after, _normalize(answer)) is not None
