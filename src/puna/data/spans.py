"""The tokens of a text by two tokenizers -> the smallest spans with common byte boundaries.

Two tokenizers cut the text of a span differently. Predictions can be compared per span only, for example in
distillation across tokenizers.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from puna.pipeline.errors import DataError


class Span(NamedTuple):
    """Token ranges of two tokenizers with equal bytes; ends are exclusive. Example: see `align`."""

    first: int
    end: int
    other_first: int
    other_end: int


def align(tokens: Sequence[bytes], other: Sequence[bytes]) -> list[Span]:
    """Return the spans of a text in order; together the spans hold every token.

    Raises:
        DataError: The two token sequences spell different texts.

    Example:
        >>> align([b"ab", b"c"], [b"a", b"b", b"c"])
        [Span(first=0, end=1, other_first=0, other_end=2), Span(first=1, end=2, other_first=2, other_end=3)]
    """
    ends, other_ends = list(accumulate(map(len, tokens))), list(accumulate(map(len, other)))
    if b"".join(tokens) != b"".join(other):
        raise DataError("two tokenizers that spell a text differently", expected="the same bytes and special tokens")
    spans: list[Span] = []
    index = other_index = first = other_first = 0
    while index < len(ends) and other_index < len(other_ends):
        if ends[index] == other_ends[other_index]:
            spans.append(Span(first, index + 1, other_first, other_index + 1))
            first, other_first = index + 1, other_index + 1
        behind = ends[index] <= other_ends[other_index]
        other_index += other_ends[other_index] <= ends[index]
        index += behind
    return spans
