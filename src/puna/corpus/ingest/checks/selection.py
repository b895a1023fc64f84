"""Tables of rows and settings -> rows left out of the dataset, with reasons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.corpus.ingest.checks.held_out import HeldOut, Row
from puna.corpus.ingest.checks.table import Table

Duplicates = Literal["none", "exact", "near"]


@dataclass(frozen=True)
class Selection:
    """Filter settings of ingest; rejected.jsonl lists every filtered row with the reason.

    Example:
        >>> Selection([], "exact", drop_empty=True, max_equal_answers=None).drop_duplicates
        'exact'
    """

    apart_from: Sequence[Path]
    drop_duplicates: Duplicates
    drop_empty: bool
    max_equal_answers: int | None


def leave_out(settings: Selection, tables: Sequence[Table]) -> HeldOut | None:
    """Mark the rows to leave out, check by check; return the held-out questions if the settings name any.

    The search for duplicates covers only the remaining rows. If an earlier check leaves out a row, the copy stays.

    Example:
        >>> leave_out(Selection([], "exact", drop_empty=True, max_equal_answers=None), []) is None
        True
    """
    held_out = HeldOut.read(settings.apart_from) if settings.apart_from else None
    for table in tables:
        if settings.drop_empty:
            table.left_out |= {index: "an answer is empty" for index in table.kept() if table.has_empty[index]}
        if held_out is not None:
            rows = (Row(index, table.rows[index], table.prompts[index] or None) for index in table.kept())
            overlaps = held_out.overlapping(rows)
            table.left_out |= {index: f"overlaps with held-out data: {place}" for index, place in overlaps.items()}
        if settings.drop_duplicates != "none":
            table.left_out |= {index: f"a copy of an earlier row: {table.places[earlier]}"
                               for index, earlier in table.copies().items()}  # fmt: skip
        if settings.drop_duplicates == "near":
            table.left_out |= {index: f"nearly a copy of an earlier row: {table.places[earlier]}"
                               for index, earlier in table.near_copies().items()}  # fmt: skip
        if settings.max_equal_answers is not None:
            _cap_answers(table, settings.max_equal_answers)
    return held_out


def _cap_answers(table: Table, most: int) -> None:
    """Leave out rows with the same single answer, except the first `most` rows."""
    counts = Counter[int]()
    for index in list(table.kept()):
        answer = table.only_answers[index]
        if answer:
            counts[answer] += 1
            if counts[answer] > most:
                table.left_out[index] = f"more than max_equal_answers = {most} rows have this answer"
