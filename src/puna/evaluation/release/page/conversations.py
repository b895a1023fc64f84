"""Graded answers of several models to the same questions -> ten questions with answers side by side, for a reader.

The choice depends only on the answers: the largest leads, the largest lags, then all other questions in the order of a
content hash. Nobody can pick pleasant examples, and the same evaluation always shows the same ten questions.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from puna.evaluation.release.page.blocks import Answer, Block, Details, Paragraph, Quote, SideBySide, Verdict

COUNT, COUNT_BEST, COUNT_WORST = 10, 3, 3
BEST, WORST, RANDOM = "Better than every other", "Worse than another", "Drawn at random"
WORDS = {
    BEST: "where this model did better than every other",
    WORST: "where it did worse than another",
    RANDOM: "drawn at random",
}
SUMMARY_LENGTH = 110
ROLES = {"system": "System message", "user": "User", "assistant": "Assistant", "tool": "Result of the tool"}

Row = dict[str, Any]


class ModelAnswers(NamedTuple):
    """A model and the graded answers of the model, as rows of conversations-NAME.jsonl.

    Example:
        >>> ModelAnswers("this model", [{"task": "shop", "id": "7/2", "score": 1.0}]).name
        'this model'
    """

    name: str
    rows: Sequence[Row]


class Pick(NamedTuple):
    """A chosen question: the reason for the choice, and the row of every model that answered the question.

    Example:
        >>> Pick("Drawn at random", {"this model": {"task": "shop", "id": "7/2"}}).why
        'Drawn at random'
    """

    why: str
    rows: dict[str, Row]


def choose(sides: Sequence[ModelAnswers], count: int = COUNT) -> list[Pick]:
    """Choose questions: best, worst and random, in this order.

    Best: the first model scores above every other model. Worst: another model scores above the first model. Answers
    without a judgement of the content take no part in the comparison.

    Args:
        sides: The models, the candidate first.
        count: Number of questions; all questions if fewer exist.

    Example:
        >>> sides = [ModelAnswers("this model", mine), ModelAnswers("the teacher", theirs)]
        >>> [pick.why for pick in choose(sides, count=2)]
        ['Worse than another', 'Drawn at random']
    """
    by_key = [{_key(row): row for row in side.rows} for side in sides]
    answered = [
        {side.name: own[_key(row)] for side, own in zip(sides, by_key, strict=True) if _key(row) in own}
        for row in sides[0].rows
    ]
    shuffled = sorted(answered, key=lambda rows: _digest(rows[sides[0].name]))
    leads = {id(rows): _lead(list(rows.values())) for rows in shuffled}
    best = sorted((rows for rows in shuffled if leads[id(rows)] > 0), key=lambda rows: -leads[id(rows)])
    worst = sorted((rows for rows in shuffled if leads[id(rows)] < 0), key=lambda rows: leads[id(rows)])
    picks = [Pick(BEST, rows) for rows in best[:COUNT_BEST]] + [Pick(WORST, rows) for rows in worst[:COUNT_WORST]]
    chosen = {id(pick.rows) for pick in picks}
    return (picks + [Pick(RANDOM, rows) for rows in shuffled if id(rows) not in chosen])[:count]


def show_conversations(sides: Sequence[ModelAnswers]) -> list[Block]:
    """Return the section of the page: an introduction, then a fold for every conversation.

    Example:
        >>> sections = show_conversations([ModelAnswers("this model", mine), ModelAnswers("the teacher", theirs)])
        >>> [type(section).__name__ for section in sections]
        ['Paragraph', 'Details', 'Details']
    """
    picks = choose(sides)
    numbers = [f"{number} {words}" for why, words in WORDS.items() if (number := sum(p.why == why for p in picks))]
    total = f"{len(picks):,} of {len(sides[0].rows):,} questions: {', '.join(numbers)}"
    rule = "They were chosen by a rule, not by hand. The random ones tell best what to expect."
    firsts = {why: next((pick for pick in picks if pick.why == why), None) for why in WORDS}
    return [
        Paragraph(f"{total}. {rule} Open one to read it."),
        *(_conversation(number, pick, pick is firsts[pick.why]) for number, pick in enumerate(picks, start=1)),
    ]


def _conversation(number: int, pick: Pick, is_open: bool) -> Details:
    rows = list(pick.rows.values())
    before, open_messages = _split(rows[0]["conversation"].get("messages", []))
    tools = [tool.get("function", tool).get("name", "?") for tool in rows[0]["conversation"].get("tools") or []]
    folded: list[Block] = [Quote(ROLES.get(each["role"], "Message"), message_text(each)) for each in before]
    folded += [Quote("Tools it could call", ", ".join(map(str, tools)))] if tools else []
    count = f"What came before: {len(before)} message{'s' * (len(before) != 1)}" if before else "Tools"
    labels = ["Question" if each["role"] == "user" else ROLES.get(each["role"], "Message") for each in open_messages]
    answers = [
        Answer(name, message_text(row.get("answer") or {}), verdict_of(row), _reason(row))
        for name, row in pick.rows.items()
    ]
    question = next((message_text(each) for each in open_messages), "")
    mine, *others = answers
    judged = [each for each in others if each.verdict != "not judged"]
    num_right = sum(each.verdict == "right" for each in judged)
    verdicts = f"{mine.name}: {mine.verdict}{f'; {num_right} of {len(judged)} others right' if judged else ''}"
    return Details(
        f"{number}. {pick.why}: “{_shorten(question)}” ({verdicts})",
        [
            *([Details(count, folded)] if folded else []),
            *(Quote(label, message_text(each)) for label, each in zip(labels, open_messages, strict=True)),
            Quote("Right would be", expected_text(rows[0])),
            SideBySide(answers),
        ],
        is_open,
    )


def verdict_of(row: Row) -> Verdict:
    """Return the verdict on an answer; "not judged" without a judgement of the content.

    Example:
        >>> verdict_of({"grade": "contains", "score": 0.5})
        'partly right'
    """
    if not is_judged(row):
        return "not judged"
    return "right" if row["score"] >= 1 else "partly right" if row["score"] > 0 else "wrong"


def is_judged(row: Row) -> bool:
    """Tell whether the content of an answer was judged.

    Older evaluations lack the field `judged`. There, the grade `no_call` passed any words and counts as not judged.


    Example:
        >>> is_judged({"grade": "no_call"}), is_judged({"grade": "no_call", "judged": True})
        (False, True)
    """
    return row.get("judged", row.get("grade") != "no_call")


def expected_text(row: Row) -> str:
    """Describe a right answer in words.

    Example:
        >>> expected_text({"grade": "contains", "expected": {"contains": ["24.90"], "distractors": ["4.90"]}})
        'an answer with “24.90”, and not “4.90”'
    """
    expected, grade = row.get("expected", {}), row.get("grade", "")
    if grade == "tool_call":
        return f"the call {_call(expected.get('name', ''), expected.get('arguments', {}))}"
    if "exact" in expected:
        return str(expected["exact"])
    if "contains" in expected:
        lacks = f", and not {_listed(expected['distractors'])}" if expected.get("distractors") else ""
        names = "a refusal, with" if grade == "refusal" else "an answer with"
        return f"{names} {_listed(expected['contains'])}{lacks}"
    if reference := expected.get("reference"):
        facts = f"\n(required: {_listed(expected['facts'])})" if expected.get("facts") else ""
        return f"{reference}{facts}"
    if grade == "no_call":
        return "an answer in words; nobody wrote down which"
    return json.dumps(expected, ensure_ascii=False)


def message_text(message: Row) -> str:
    """Return the text of a message and the tool calls, one call per line.

    Example:
        >>> message_text({"content": "", "tool_calls": [{"name": "cancel", "arguments": {"id": 7}}]})
        'calls cancel(id=7)'
    """
    content = message.get("content") or ""
    words = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    functions = [call.get("function", call) for call in message.get("tool_calls") or []]
    calls = [f"calls {_call(function.get('name', ''), function.get('arguments', {}))}" for function in functions]
    return "\n".join(filter(None, [words.strip(), *calls]))


def _call(name: str, arguments: Any) -> str:
    """Write a call as in a program: `order_status(order_id="AB-1")`."""
    if not isinstance(arguments, dict):
        return f"{name}({arguments})"
    values = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name}({', '.join(values)})"


def _split(messages: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the messages before the last user message (the question), and the messages from there on."""
    last = max((index for index, each in enumerate(messages) if each["role"] == "user"), default=0)
    return messages[:last], messages[last:]


def _lead(rows: list[Row]) -> float:
    """Return the first answer's score minus the best other judged score; 0 if either score is missing."""
    mine, *others = rows
    judged = [row["score"] for row in others if is_judged(row)]
    return mine["score"] - max(judged) if judged and is_judged(mine) else 0.0


def _reason(row: Row) -> str:
    reason, evidence = row.get("reason", ""), row.get("evidence", "")
    return f"{reason} (“{evidence}”)" if evidence else reason


def _key(row: Row) -> tuple[str, str]:
    return row["task"], row["id"]


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps([_key(row), row["conversation"]], sort_keys=True).encode()).hexdigest()


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"“{value}”" for value in values)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SUMMARY_LENGTH else f"{line[: SUMMARY_LENGTH - 1]}…"
