"""Graded answers of several models -> scores with intervals by slice, and paired differences of every two models.

A slice is a subset of the scores: all judged answers, a grade, a part of a grade, a task, or all unjudged answers.
Unjudged answers count only in the last slice. The computation reads no files and asks no model.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from puna.evaluation.scores import OVERALL, EvaluatedModel, group_of, is_judged
from puna.evaluation.tasks.intervals import Interval, difference_interval, effective_number, score_interval

UNJUDGED = "answered in words, not judged"
WORDS = "words, judged"


class Slice(NamedTuple):
    """Indices of rows, and the counted part of the grade; "" stands for the whole score.

    Example:
        >>> slices([[row]])["overall"]
        Slice(indices=[0], part='')
    """

    indices: list[int]
    part: str = ""


def score(everyone: Sequence[EvaluatedModel]) -> dict[str, Any]:
    """Return the content of scores.json: slices of every model, and differences of every pair (later - earlier).

    All models and pairs have the same slices. A slice without questions has n = 0, score 0, low 0 and high 1.
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
    """Return the difference of two models' mean scores, over the questions judged for the two models."""
    chosen = slices([rows, others])[OVERALL]
    return difference_interval(_values(rows, chosen), _values(others, chosen), _groups(rows, chosen))


def slices(sides: Sequence[list[dict[str, Any]]]) -> dict[str, Slice]:
    """Return the slices of a model's rows, or of several models' rows for the same questions, by name.

    The slices "overall", grades, parts of grades ("tool_call.name") and tasks hold the rows judged for all models.
    UNJUDGED holds the rows judged for no model.
    """
    named: dict[str, Slice] = {OVERALL: Slice([])}
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
        named[OVERALL].indices.append(index)
        for part in ("", *row["parts"]):
            named.setdefault(f"{kind}.{part}" if part else kind, Slice([], part)).indices.append(index)
        if by_task:
            by_task[row["task"]].indices.append(index)
    named |= {f"task {task}": chosen for task, chosen in by_task.items()}
    return named | ({UNJUDGED: Slice(unjudged)} if unjudged else {})


def _similarity(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean chrF of the answers to questions with a reference."""
    values = [row["similarity"] for row in rows if row.get("similarity") is not None]
    return {"mean": round(sum(values) / len(values), 4) if values else 0.0, "n": len(values)}


def _slice_scores(rows: list[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    by_name = slices([rows])
    for name in names:
        chosen = by_name.get(name, Slice([]))
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
    by_name = slices([rows, others])
    for name in (each for each in names if each != UNJUDGED):
        chosen = by_name.get(name, Slice([]))
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
    return [group_of(row["task"], row["id"], row["group"]) for row in (rows[index] for index in chosen.indices)]
