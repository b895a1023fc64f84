"""Scores of models that know nothing -> the section that says whether the questions tell good from bad."""

from collections.abc import Sequence
from typing import NamedTuple

from puna.evaluation.release.page.blocks import Block, Paragraph, Table


class NullScore(NamedTuple):
    """A model that knows nothing beside the candidate, on the questions judged for both. Scores are shares of 1.

    `description` completes "a model that ..."; `threshold` is the lead that the candidate must be shown to have.

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
    """Return a sentence with the conclusion and a row for each null model; nothing where none was asked.

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
            f"The questions of {suite} were put to models that know nothing, too. A good model has to be better than "
            f"each by more than {100 * rows[0].threshold:.0f} points. This one is shown to be better than {result}."
        ),
        Table(["a model that ...", "scores", "this model", "told apart"], cells),
    ]
