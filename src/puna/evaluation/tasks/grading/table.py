"""GRADES: grade name -> function. EXPECTED: grade name -> required and optional fields of `expected`.

A grade is a pure function of question and answer, asks no model, and returns the same parts for every answer.
"""

from collections.abc import Callable

from puna.evaluation.tasks.grading.contains import contains
from puna.evaluation.tasks.grading.exact import exact
from puna.evaluation.tasks.grading.facts import facts
from puna.evaluation.tasks.grading.no_call import no_call
from puna.evaluation.tasks.grading.refusal import refusal
from puna.evaluation.tasks.grading.tool_call import tool_call
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message

GRADES: dict[str, Callable[[Question, Message], Grade]] = {
    "contains": contains,
    "refusal": refusal,
    "exact": exact,
    "facts": facts,
    "tool_call": tool_call,
    "no_call": no_call,
}

# Required fields of `expected`, then optional fields, with their JSON types.
EXPECTED: dict[str, tuple[dict[str, type], dict[str, type]]] = {
    "contains": ({"contains": list}, {"distractors": list}),
    "refusal": ({"contains": list}, {"distractors": list}),
    "exact": ({"exact": str}, {}),
    "facts": ({"reference": str}, {"facts": list, "distractors": list, "language": str}),
    "tool_call": ({"name": str, "arguments": dict}, {}),
    "no_call": ({"no_call": bool}, {"reference": str}),
}
