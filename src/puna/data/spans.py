"""Two tokenizers' tokens of one text -> the smallest spans that begin and end at the same bytes in both.

Within a span the two have cut the text differently, so only what they say of it as a whole can be compared.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from puna.pipeline.errors import DataError


class Span(NamedTuple):
    """Tokens first .. end - 1 of one side, and of the other, that spell the same bytes."""

    first: int
    end: int
    other_first: int
    other_end: int


def align(tokens: Sequence[bytes], other: Sequence[bytes]) -> list[Span]:
    """Return the spans of a text, in order; they hold every token. DataError if the two spell different texts."""
    ends, other_ends = list(accumulate(map(len, tokens))), list(accumulate(map(len, other)))
    if b"".join(tokens) != b"".join(other):
        raise DataError("two tokenizers that spell a text differently", expected="the same bytes and special tokens")
    spans: list[Span] = []
    place = other_place = first = other_first = 0
    while place < len(ends) and other_place < len(other_ends):
        if ends[place] == other_ends[other_place]:
            spans.append(Span(first, place + 1, other_first, other_place + 1))
            first, other_first = place + 1, other_place + 1
        behind = ends[place] <= other_ends[other_place]
        other_place += other_ends[other_place] <= ends[place]
        place += behind
    return spans
