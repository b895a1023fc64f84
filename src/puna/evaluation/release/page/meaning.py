"""Graded answers -> a table that defines "right": kinds of questions, grading rules and numbers of judged answers."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from puna.evaluation.release.page.blocks import Block, Paragraph, Table
from puna.evaluation.release.page.conversations import Row, is_judged


class Kind(NamedTuple):
    """A kind of question in plain words, with the condition under which the grading rule calls an answer right.

    Example:
        >>> KINDS["exact"].title
        'One exact answer'
    """

    title: str
    right: str


KINDS = {
    "contains": Kind("Facts to be named", "it has every expected word and number, and none of the wrong ones"),
    "facts": Kind(
        "Words with facts",
        "it has the numbers, dates, names and similar facts of the reference answer, and no contradicting fact; "
        "other words do not count",
    ),
    "exact": Kind("One exact answer", "it is the expected text, up to spaces"),
    "refusal": Kind("Questions without an answer", "it has the expected words of a refusal"),
    "tool_call": Kind("Actions (tool calls)", "it is exactly the expected call, with every argument equal"),
    "no_call": Kind("Free words", "it has words"),
}
UNJUDGED = "any words would pass, so these answers count in no figure"
JUDGES = {"rule": "a rule", "judge": "a judge model", "reward": "a reward model", "person": "people"}


def explain_right(rows: Sequence[Row], suite: str) -> list[Block]:
    """Return a summary of judged and unjudged answers, and a table with one row per kind of question and judge.

    Args:
        rows: Graded answers of the candidate.
        suite: Name of the questions in a sentence, e.g. "the task".

    Example:
        >>> rows = [{"grade": "exact", "judged_by": "rule", "judged": True, "score": 1.0}]
        >>> explain_right(rows, "the task")[1].rows[0][:3]
        ['One exact answer', '1 of 1', 'a rule']
    """
    counts = Counter((row.get("grade", ""), judged_by(row)) for row in rows)
    totals = Counter(row.get("grade", "") for row in rows)
    cells: list[list[str]] = []
    for (grade, judge), number in sorted(counts.items(), key=lambda item: (-totals[item[0][0]], item[0])):
        kind = KINDS.get(grade, Kind(grade, "its own grading rule passes it"))
        label = JUDGES.get(judge, judge) or "nobody"
        right = {"rule": kind.right, "": UNJUDGED}.get(judge, f"{label} found it right")
        cells.append([kind.title, f"{number:,} of {totals[grade]:,}", label, right])
    num_unjudged = sum(not is_judged(row) for row in rows)
    summary = f"The content of all {len(rows):,} was judged."
    if num_unjudged:
        judged = len(rows) - num_unjudged
        summary = f"The content of {judged:,} of {len(rows):,} was judged, that of {num_unjudged:,} was not."
    return [
        Paragraph(f"This model's answers on {suite}: {summary}"),
        Table(["kind of question", "questions", "judged by", "an answer is right when"], cells),
    ]


def judged_by(row: Row) -> str:
    """Return the judge of an answer's content, or "" for an unjudged answer.

    Judged rows of older evaluations have no `judged_by` field; a rule judged the answers in older evaluations.

    Example:
        >>> judged_by({"grade": "exact"}), judged_by({"grade": "no_call"})
        ('rule', '')
    """
    return row.get("judged_by") or "rule" if is_judged(row) else ""
