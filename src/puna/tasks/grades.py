"""A question and the assistant's message -> a grade with its reason. Judges words and calls, asks no model.

GRADES names the functions, each of which gives the same parts whatever the answer; EXPECTED says what each needs in a
question's `expected`.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from puna.chat.conversation import Message
from puna.tasks.question import Grade, Question


def contains(question: Question, message: Message) -> Grade:
    """All strings of `contains` stand in the answer and none of `distractors`.

    Case and white space do not matter. A number matches as a whole only: "4.90" is not in "24.90", "4" not in "4.5".
    """
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    missing = [text for text in question.expected["contains"] if not _stands_in(text, message.content)]
    wrong = [text for text in question.expected.get("distractors", []) if _stands_in(text, message.content)]
    complaints = [f"lacks {text!r}" for text in missing] + [f"has {text!r}" for text in wrong]
    return Grade(0.0, ", ".join(complaints)) if complaints else Grade(1.0, "has all that was expected")


def refusal(question: Question, message: Message) -> Grade:
    """The answer says that the matter is not known: judged as `contains`, reported as a kind of its own."""
    grade = contains(question, message)
    return Grade(grade.score, grade.reason if grade.score else f"does not refuse: {grade.reason}")


def exact(question: Question, message: Message) -> Grade:
    """The answer is `exact`, up to white space."""
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    if " ".join(message.content.split()) == " ".join(question.expected["exact"].split()):
        return Grade(1.0, "is the expected answer")
    return Grade(0.0, f"is not {question.expected['exact']!r}")


def tool_call(question: Question, message: Message) -> Grade:
    """Exactly one call, of the tool `name`, whose `arguments` are equal as JSON: same keys, same values.

    1 and 1.0 are equal, 1 and "1" are not: what the tool's schema can coerce was coerced when the message was read.
    Parts: `name`, and `arguments`, which needs the right name as well.
    """
    name, arguments = question.expected["name"], question.expected["arguments"]
    if not message.tool_calls:
        return _call_grade(f"calls nothing, expected {name}")
    call, *more = message.tool_calls
    if more:
        return _call_grade(f"makes {len(more) + 1} calls, expected one of {name}")
    if call.name != name:
        return _call_grade(f"calls {call.name}, expected {name}")
    complaints = _differences(arguments, call.arguments)
    if complaints:
        return _call_grade("; ".join(complaints), name=1.0)
    return _call_grade("is the expected call", name=1.0, arguments=1.0)


def no_call(_question: Question, message: Message) -> Grade:
    """The assistant answers in words."""
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name}, expected an answer in words")
    if not message.content.strip():
        return Grade(0.0, "is empty")
    if message.content.lstrip().startswith(("{", "<function=")):
        return Grade(0.0, "is a call that cannot be read")
    return Grade(1.0, "answers in words")


GRADES: dict[str, Callable[[Question, Message], Grade]] = {
    "contains": contains,
    "refusal": refusal,
    "exact": exact,
    "tool_call": tool_call,
    "no_call": no_call,
}

# What a grade reads of `expected`: the fields that must be there, then those that may.
EXPECTED: dict[str, tuple[dict[str, type], dict[str, type]]] = {
    "contains": ({"contains": list}, {"distractors": list}),
    "refusal": ({"contains": list}, {"distractors": list}),
    "exact": ({"exact": str}, {}),
    "tool_call": ({"name": str, "arguments": dict}, {}),
    "no_call": ({"no_call": bool}, {}),
}


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _stands_in(text: str, answer: str) -> bool:
    wanted = _normalize(text)
    before = r"(?<!\d)(?<!\d[.,:'’])" if wanted[:1].isdecimal() else ""
    after = r"(?!\d|[.,:'’]\d)" if wanted[-1:].isdecimal() else ""
    return re.search(before + re.escape(wanted) + after, _normalize(answer)) is not None


def _call_grade(reason: str, *, name: float = 0.0, arguments: float = 0.0) -> Grade:
    return Grade(arguments, reason, {"name": name, "arguments": arguments})


def _differences(expected: dict[str, Any], given: dict[str, Any]) -> list[str]:
    complaints = [f"lacks argument {key!r}" for key in expected if key not in given]
    complaints += [f"has the unexpected argument {key!r}" for key in given if key not in expected]
    for key, value in expected.items():
        if key in given and not _are_equal(value, given[key]):
            complaints.append(f"argument {key!r} is {_shown(given[key])}, expected {_shown(value)}")
    return complaints


def _are_equal(a: Any, b: Any) -> bool:
    """Compare as JSON: in Python True == 1, in JSON it is not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_are_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_are_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
