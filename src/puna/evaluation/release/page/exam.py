"""Scores of null models -> the section about the power of the questions to tell good models from bad models."""

from collections.abc import Sequence
from typing import NamedTuple

from puna.evaluation.release.page.blocks import Block, Paragraph, Table


class NullScore(NamedTuple):
    """Scores of a null model and of the candidate, 0 to 1, on the questions judged for both models.

    `description` completes "a model that ..."; `threshold` is the required lead of the candidate.

    Example:
        >>> NullScore("answers nothing", 0.0, 0.9, 0.05, is_beaten=True).score
        0.0
    """

    description: str
    score: float
    candidate_score: float
    threshold: float
    is_beaten: bool


def explain_exam(rows: Sequence[NullScore], suite: str) -> list[Block]:
    """Return a sentence with the conclusion, and a table with one row per null model.

    Example:
        >>> explain_exam([NullScore("says nothing", 0.0, 0.9, 0.05, True)], "the task")[1].rows
        [['says nothing', '0.0 %', '90.0 %', 'yes']]
    """
    if not rows:
        return []
    number = sum(row.is_beaten for row in rows)
    result = (
        f"all {len(rows)}, so the questions tell good from bad"
        if number == len(rows)
        else (f"only {number} of {len(rows)}, so the questions decide nothing")
    )
    cells = [
        [
            row.description,
            f"{100 * row.score:.1f} %",
            f"{100 * row.candidate_score:.1f} %",
            "yes" if row.is_beaten else "no",
        ]
        for row in sorted(rows, key=lambda row: -row.score)
    ]
    return [
        Paragraph(
            f"Models that know nothing answered the questions of {suite}, too. A good model must lead each of them by "
            f"more than {100 * rows[0].threshold:.0f} points. This model is shown to be better than {result}."
        ),
        Table(["a model that ...", "scores", "this model", "told apart"], cells),
    ]
