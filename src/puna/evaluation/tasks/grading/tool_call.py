"""Grade `tool_call`: the assistant calls the expected tool with the expected arguments."""

import json
from typing import Any

from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message


def tool_call(question: Question, message: Message) -> Grade:
    """Require exactly one call of the tool `name` with `arguments` equal as JSON: same keys, same values.

    1 and 1.0 are equal, 1 and "1" are not: the parser has already coerced values where the tool's schema allows.
    Parts: `name` (one call of the right tool) and `arguments` (right tool and equal arguments).

    Example:
        >>> question = Question("1", conversation, {"name": "cancel", "arguments": {"id": 7}}, "tool_call")
        >>> tool_call(question, Message("assistant", tool_calls=(ToolCall("cancel", {"id": 7}),))).score
        1.0
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


def _call_grade(reason: str, *, name: float = 0.0, arguments: float = 0.0) -> Grade:
    return Grade(arguments, reason, {"name": name, "arguments": arguments})


def _differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    complaints = [f"lacks argument {key!r}" for key in expected if key not in actual]
    complaints += [f"has the unexpected argument {key!r}" for key in actual if key not in expected]
    for key, value in expected.items():
        if key in actual and not _are_equal(value, actual[key]):
            complaints.append(f"argument {key!r} is {_shown(actual[key])}, expected {_shown(value)}")
    return complaints


def _are_equal(a: Any, b: Any) -> bool:
    """Compare two values as JSON: Python's True == 1, but JSON's true and 1 differ."""
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
