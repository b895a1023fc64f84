"""A dataset and an objective -> the data summary: lengths, loss masks, batches and the first examples of a run.

The summary covers the first rows of the run, up to 1,000 rows or a million tokens, and assumes similar rows after
them. No model is computed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.data.packing import Example, Packer
from puna.formats.tokenizer.tokenizer import Tokenizer

MAX_ROWS, MAX_TOKENS = 1000, 2**20
NUM_SHOWN = 3


@dataclass(frozen=True)
class Piece:
    """Text of a token, or of several tokens for a single character, and whether the token is a target.

    Example:
        >>> Piece("order", is_trained=True, is_special=False)
    """

    text: str
    is_trained: bool
    is_special: bool


@dataclass(frozen=True)
class ShownExample:
    """An example as pieces of text, with file and line of the row.

    Example: see `pieces_of`.
    """

    place: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PlannedBatch:
    """Lengths of the examples of a batch, and the number of trained tokens.

    Example:
        >>> PlannedBatch(lengths=(90, 120), num_trained=70).num_tokens
        210
    """

    lengths: tuple[int, ...]
    num_trained: int

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class DataSummary:
    """Data summary of a run.

    Attributes:
        lengths: Number of input tokens of each example in the sampled rows.
        num_untrained: Examples without a target token.
        steps: Number of optimizer steps of the whole run.
        tokens: Number of tokens of the whole run.
        batch: Largest batch of the sampled rows.
        batches: All batches of the sampled rows.

    Example: see `summarize`.
    """

    num_rows: int
    num_looked_at: int
    lengths: tuple[int, ...]
    num_trained: int
    num_too_long: int
    num_untrained: int
    is_cut: bool
    context: int
    steps: int
    tokens: int
    batch: PlannedBatch
    batches: tuple[PlannedBatch, ...]
    shown: tuple[ShownExample, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the summary covers every row."""
        return self.num_looked_at == self.num_rows

    @property
    def trained_share(self) -> float:
        return self.num_trained / max(1, sum(self.lengths))

    def histogram(self) -> list[tuple[int, int, int]]:
        """Return the histogram of lengths as (from, to, count); the width of the ranges doubles."""
        widths = [length.bit_length() for length in self.lengths]
        ranges = range(min(widths, default=1), max(widths, default=0) + 1)
        return [(2**width // 2, 2**width - 1, widths.count(width)) for width in ranges]


def summarize(
    packer: Packer, tokenizer: Tokenizer, *, steps: int | None, epochs: float | None, accumulate: int
) -> DataSummary:
    """Summarize the first rows of a run.

    Example:
        >>> summarize(packer, tokenizer, steps=100, epochs=None, accumulate=1).num_trained
    """
    lengths, trained, fitting, shown = list[int](), list[int](), list[Sequence[Example]](), list[ShownExample]()
    num_looked_at = num_too_long = 0
    for place, examples in packer.first_rows(MAX_ROWS):
        if sum(lengths) > MAX_TOKENS:
            break
        num_looked_at += 1
        if not examples:
            continue  # a row without an example, such as a pair below the strengths of dpo
        lengths += [example.num_read for example in examples]
        trained += [sum(example.mask[1:]) for example in examples]
        if packer.is_too_long(examples):
            num_too_long += 1
            continue
        fitting.append(examples)
        if len(shown) < NUM_SHOWN:
            shown += [ShownExample(place, tuple(pieces_of(example, tokenizer))) for example in examples]
    batches = list(_batches(packer, fitting)) or [PlannedBatch((), 0)]
    num_rows = len(packer.dataset)
    batches_an_epoch = len(batches) * num_rows / max(1, num_looked_at)
    tokens_a_batch = sum(batch.num_tokens for batch in batches) / len(batches)
    num_batches = steps * accumulate if steps is not None else (epochs or 0) * batches_an_epoch
    return DataSummary(
        num_rows,
        num_looked_at,
        tuple(lengths),
        sum(trained),
        num_too_long,
        sum(not count for count in trained),
        packer.is_cut,
        packer.context,
        steps if steps is not None else math.ceil(num_batches / accumulate),
        round(num_batches * tokens_a_batch),
        max(batches, key=lambda batch: batch.num_tokens),
        tuple(batches),
        tuple(shown),
    )


def _batches(packer: Packer, rows: Sequence[Sequence[Example]]) -> Iterator[PlannedBatch]:
    """Pack rows into batches as the packer does."""
    lengths, num_trained = list[int](), 0
    for examples in rows:
        for part, trained in _parts(packer, examples, packer.batch_tokens - sum(lengths)):
            if sum(lengths) + sum(part) > packer.batch_tokens:
                yield PlannedBatch(tuple(lengths), num_trained)
                lengths, num_trained = [], 0
            lengths, num_trained = lengths + part, num_trained + trained
    if lengths:
        yield PlannedBatch(tuple(lengths), num_trained)


def _parts(packer: Packer, examples: Sequence[Example], room: int) -> Iterator[tuple[list[int], int]]:
    """Yield lengths and number of trained tokens of inseparable units: a unit lies in a single batch."""
    if not packer.is_cut:
        yield [example.num_read for example in examples], sum(sum(example.mask[1:]) for example in examples)
        return
    (example,) = examples
    start = 0
    while start < example.num_read:
        num_tokens = min(example.num_read - start, packer.context, room or packer.batch_tokens)
        yield [num_tokens], sum(example.mask[start + 1 : start + num_tokens + 1])
        start, room = start + num_tokens, (room or packer.batch_tokens) - num_tokens


def pieces_of(example: Example, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the tokens of an example as text; the tokens of a multi-token character form a single piece."""
    waiting: list[int] = []
    for token_id, is_trained in zip(example.ids, example.mask, strict=True):
        waiting.append(token_id)
        text = tokenizer.decode(waiting)
        if "\ufffd" in text and len(waiting) < 4:
            continue
        yield Piece(text, bool(is_trained), tokenizer.is_special(token_id))
        waiting = []
    if waiting:
        yield Piece(tokenizer.decode(waiting), bool(example.mask[-1]), False)
