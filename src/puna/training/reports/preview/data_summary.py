"""A dataset as an objective encodes it -> what a run will train on: lengths, masks, batches, the first examples.

Looks at the rows that the run reads first, and counts on the rest being like them. Computes nothing with a network.
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
    """A token as text (several where a character takes more than one), and whether the model learns it."""

    text: str
    is_trained: bool
    is_special: bool


@dataclass(frozen=True)
class ShownExample:
    """An example, piece by piece, and where its row stands."""

    place: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PlannedBatch:
    """What one batch will hold: the tokens of each example, and how many of all are trained."""

    lengths: tuple[int, ...]
    num_trained: int

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Survey:
    """What the rows looked at are like. Lengths are tokens read, `steps` and `tokens` those of the whole run.

    `batches` are those of the rows looked at, `batch` the largest of them.
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
        """Whether every row was looked at."""
        return self.num_looked_at == self.num_rows

    @property
    def trained_share(self) -> float:
        return self.num_trained / max(1, sum(self.lengths))

    def histogram(self) -> list[tuple[int, int, int]]:
        """Count examples by length: (from, to, how many), each range twice as wide as the one before."""
        widths = [length.bit_length() for length in self.lengths]
        ranges = range(min(widths, default=1), max(widths, default=0) + 1)
        return [(2**width // 2, 2**width - 1, widths.count(width)) for width in ranges]


def survey(packer: Packer, tokenizer: Tokenizer, *, steps: int | None, epochs: float | None, accumulate: int) -> Survey:
    """Look at what a run of so many steps, or epochs, reads first."""
    lengths, trained, fitting, shown = list[int](), list[int](), list[Sequence[Example]](), list[ShownExample]()
    num_looked_at = num_too_long = 0
    for place, examples in packer.first_rows(MAX_ROWS):
        if sum(lengths) > MAX_TOKENS:
            break
        num_looked_at += 1
        if not examples:
            continue  # The objective learns nothing from this row: dpo from a pair that is too weak.
        lengths += [example.num_read for example in examples]
        trained += [sum(example.mask[1:]) for example in examples]
        if not examples:
            continue
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
    return Survey(
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
    """Lay rows side by side as the packer does."""
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
    """Yield what has to stay together: lengths and how many of the tokens are trained."""
    if not packer.is_cut:
        yield [example.num_read for example in examples], sum(sum(example.mask[1:]) for example in examples)
        return
    (example,) = examples
    start = 0
    while start < example.num_read:
        taken = min(example.num_read - start, packer.context, room or packer.batch_tokens)
        yield [taken], sum(example.mask[start + 1 : start + taken + 1])
        start, room = start + taken, (room or packer.batch_tokens) - taken


def pieces_of(example: Example, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield an example's tokens as text; those of one character, which alone are none, together."""
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
