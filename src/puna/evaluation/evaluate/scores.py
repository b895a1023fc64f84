"""Graded answers of several checkpoints -> scores with intervals, and the differences between every two of them.

Reads no files and asks no model. A slice is some of the scores: all judged answers, one grade, one part of a grade, one
task, and the answers whose content nobody judged. Those count in no other slice.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.evaluation.tasks.intervals import Interval, difference_interval, effective_number, score_interval

OVERALL = "overall"
UNJUDGED = "answered in words, not judged"
WORDS = "words, judged"


@dataclass(frozen=True)
class Answers:
    """What one checkpoint answered, a row a question in the same order for all; its size and what it took."""

    name: str
    rows: list[dict[str, Any]]
    num_bytes: int
    num_tokens: int
    num_prompt_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, the reading of the prompts included."""
        return self.num_tokens / self.seconds if self.seconds else 0.0


def is_judged(row: dict[str, Any]) -> bool:
    """Tell whether the content of an answer was judged; evaluations before this field existed judged every answer.

    Example:
        >>> is_judged({"score": 1.0}), is_judged({"score": 1.0, "judged": False})
        (True, False)
    """
    return row.get("judged", True)


class Slice(NamedTuple):
    """Some of the rows, and the part of their grade that counts; "" is the score itself."""

    indices: list[int]
    part: str = ""


def score(everyone: Sequence[Answers]) -> dict[str, Any]:
    """Return what scores.json holds: for each checkpoint its slices, then each pair's differences (later - earlier).

    Every checkpoint and pair has the same slices; one without questions has n = 0 and says nothing: score 0, low 0,
    high 1.
    """
    names = list(dict.fromkeys(name for answers in everyone for name in slices([answers.rows])))
    similarities = {answers.name: _similarity(answers.rows) for answers in everyone}
    return {
        "level": 0.95,
        "similarity": {name: each for name, each in similarities.items() if each["n"]},
        "checkpoints": {answers.name: _slice_scores(answers.rows, names) for answers in everyone},
        "differences": [
            {
                "checkpoint": later.name,
                "against": earlier.name,
                "slices": _slice_differences(later.rows, earlier.rows, names),
            }
            for earlier, later in itertools.combinations(everyone, 2)
        ],
    }


def paired_difference(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> Interval:
    """Return the difference of the mean scores of two checkpoints, over the questions judged for both."""
    chosen = slices([rows, others])[OVERALL]
    return difference_interval(_values(rows, chosen), _values(others, chosen), _groups(rows, chosen))


def slices(sides: Sequence[list[dict[str, Any]]]) -> dict[str, Slice]:
    """Name the slices of one checkpoint's rows, or of the rows of several that answered the same questions.

    "overall" has the rows judged for all of them, as have each grade with its parts ("tool_call.name") and each of
    several tasks. UNJUDGED has the rows judged for none of them.
    """
    found: dict[str, Slice] = {OVERALL: Slice([])}
    tasks = list(dict.fromkeys(row["task"] for row in sides[0]))
    by_task = {task: Slice([]) for task in tasks} if len(tasks) > 1 else {}
    unjudged: list[int] = []
    for index, rows in enumerate(zip(*sides, strict=True)):
        row = rows[0]
        if not any(is_judged(each) for each in rows):
            unjudged.append(index)
        if not all(is_judged(each) for each in rows):
            continue
        kind = WORDS if row["grade"] == "no_call" else row["grade"]
        found[OVERALL].indices.append(index)
        for part in ("", *row["parts"]):
            found.setdefault(f"{kind}.{part}" if part else kind, Slice([], part)).indices.append(index)
        if by_task:
            by_task[row["task"]].indices.append(index)
    found |= {f"task {task}": chosen for task, chosen in by_task.items()}
    return found | ({UNJUDGED: Slice(unjudged)} if unjudged else {})


def _similarity(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean chrF of the answers to questions with a reference."""
    values = [row["similarity"] for row in rows if row.get("similarity") is not None]
    return {"mean": round(sum(values) / len(values), 4) if values else 0.0, "n": len(values)}


def _slice_scores(rows: list[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    found = slices([rows])
    for name in names:
        chosen = found.get(name, Slice([]))
        values, groups = _values(rows, chosen), _groups(rows, chosen)
        interval = score_interval(values, groups)
        scores[name] = {
            "score": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
            "groups": len(set(groups)),
            "effective_n": round(effective_number(values, groups), 1) if values else 0.0,
        }
    return scores


def _slice_differences(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    assert [(row["task"], row["id"]) for row in rows] == [(row["task"], row["id"]) for row in others]
    differences: dict[str, dict[str, float]] = {}
    found = slices([rows, others])
    for name in (each for each in names if each != UNJUDGED):
        chosen = found.get(name, Slice([]))
        pair = _values(rows, chosen), _values(others, chosen)
        interval = difference_interval(*pair, _groups(rows, chosen))
        differences[name] = {
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": len(pair[0]),
            "better": sum(a > b for a, b in zip(*pair, strict=True)),
            "worse": sum(a < b for a, b in zip(*pair, strict=True)),
        }
    return differences


def _values(rows: list[dict[str, Any]], chosen: Slice) -> list[float]:
    return [rows[i]["parts"][chosen.part] if chosen.part else rows[i]["score"] for i in chosen.indices]


def _groups(rows: list[dict[str, Any]], chosen: Slice) -> list[str]:
    """Name each row's group; a question without one is a group of its own."""
    return [f"{row['task']} {row['group'] or 'question ' + row['id']}" for row in map(rows.__getitem__, chosen.indices)]
