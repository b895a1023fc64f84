"""Graded answers of several checkpoints -> scores with intervals, and the differences between every two of them.

Reads no files and asks no model. A slice is some of the scores: all of them, one grade, one part of a grade, one task.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.tasks.intervals import Interval, difference_interval, effective_number, score_interval

OVERALL = "overall"


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


class Slice(NamedTuple):
    """Some of the rows, and the part of their grade that counts; "" is the score itself."""

    indices: list[int]
    part: str = ""


def score(everyone: Sequence[Answers]) -> dict[str, Any]:
    """Return what scores.json holds: for each checkpoint its slices, then each pair's differences (later - earlier)."""
    return {
        "level": 0.95,
        "checkpoints": {answers.name: _slice_scores(answers.rows) for answers in everyone},
        "differences": [
            {"checkpoint": later.name, "against": earlier.name, "slices": _slice_differences(later.rows, earlier.rows)}
            for earlier, later in itertools.combinations(everyone, 2)
        ],
    }


def paired_difference(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> Interval:
    """Return the difference of the mean scores of two checkpoints' answers to the same questions."""
    chosen = Slice(list(range(len(rows))))
    return difference_interval(_values(rows, chosen), _values(others, chosen), _groups(rows, chosen))


def slices(rows: Sequence[dict[str, Any]]) -> dict[str, Slice]:
    """Name the slices of these rows: "overall", each grade and its parts ("tool_call.name"), each of several tasks."""
    found: dict[str, Slice] = {OVERALL: Slice(list(range(len(rows))))}
    for index, row in enumerate(rows):
        for part in ("", *row["parts"]):
            name = f"{row['grade']}.{part}" if part else row["grade"]
            found.setdefault(name, Slice([], part)).indices.append(index)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks if len(tasks) > 1 else []:
        found[f"task {task}"] = Slice([index for index, row in enumerate(rows) if row["task"] == task])
    return found


def _slice_scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for name, chosen in slices(rows).items():
        values, groups = _values(rows, chosen), _groups(rows, chosen)
        interval = score_interval(values, groups)
        scores[name] = {
            "score": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
            "groups": len(set(groups)),
            "effective_n": round(effective_number(values, groups), 1),
        }
    return scores


def _slice_differences(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    assert [(row["task"], row["id"]) for row in rows] == [(row["task"], row["id"]) for row in others]
    differences: dict[str, dict[str, float]] = {}
    for name, chosen in slices(rows).items():
        pair = _values(rows, chosen), _values(others, chosen)
        interval = difference_interval(*pair, _groups(rows, chosen))
        differences[name] = {
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "better": sum(a > b for a, b in zip(*pair, strict=True)),
            "worse": sum(a < b for a, b in zip(*pair, strict=True)),
        }
    return differences


def _values(rows: list[dict[str, Any]], chosen: Slice) -> list[float]:
    return [rows[i]["parts"][chosen.part] if chosen.part else rows[i]["score"] for i in chosen.indices]


def _groups(rows: list[dict[str, Any]], chosen: Slice) -> list[str]:
    """Name each row's group; a question without one is a group of its own."""
    return [f"{row['task']} {row['group'] or 'question ' + row['id']}" for row in map(rows.__getitem__, chosen.indices)]
