"""Encoded examples -> batches of tokens packed without padding, from any position of the stream.

The stream is a pure function of (seed, epoch, index), so a `Position` is the whole state of a resumed run: no example
is lost or repeated. Batches hold whole examples, or pieces of at most `context` tokens if the caller allows cutting
(pretraining). A batch ends with the epoch, so no batch holds an example twice.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from puna.data.dataset import Dataset
from puna.model.attend import packed_attend
from puna.model.gradients.padding import TOKENS_STEP
from puna.model.llama import Attend, Llama
from puna.pipeline.errors import ChatError, DataError


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids with loss mask and further columns with a row per token, for example a teacher's labels.

    Row t of the mask and of a column describes ids[t] as the target of the previous token.

    Example:
        >>> Example([1, 5, 6, 2], [False, True, True, True]).num_read
        3
    """

    ids: Sequence[int]
    mask: Sequence[bool]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_read(self) -> int:
        """Number of input tokens: all but the last, which is a target only."""
        return len(self.ids) - 1

    def piece(self, start: int, num_tokens: int) -> "Example":
        """Return the example with the input tokens start .. start + num_tokens - 1."""
        part = slice(start, start + num_tokens + 1)
        return Example(self.ids[part], self.mask[part], {name: rows[part] for name, rows in self.columns.items()})


# (row, random generator) -> examples of the row, which stay in one batch in this order; () skips the row.
Encode = Callable[[object, random.Random], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the stream: the token at `offset` of the example at `index` in the order of `epoch`.

    Example: see `Packer`.
    """

    epoch: int = 0
    index: int = 0
    offset: int = 0

    @property
    def is_start_of_epoch(self) -> bool:
        return self.index == 0 and self.offset == 0


@dataclass(frozen=True)
class Batch:
    """Packed examples: token t predicts targets_T[t], with a loss where trained_T is true. Example: see `Packer`."""

    tokens_T: torch.Tensor
    targets_T: torch.Tensor
    trained_T: torch.Tensor
    lengths: tuple[int, ...]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def positions_T(self) -> torch.Tensor:
        """Position of every token in the example, from 0."""
        return torch.cat([torch.arange(length, device=self.tokens_T.device) for length in self.lengths])

    def attend(self) -> Attend:
        """Return causal attention within every example."""
        return packed_attend(self.lengths)

    def hidden_states(self, model: Llama, dtype: torch.dtype) -> torch.Tensor:
        """Return the model's final hidden states of the batch.

        On a CPU the batch is padded to a multiple of TOKENS_STEP, so that oneDNN reuses kernels of equal shapes.
        """
        read = self.padded(TOKENS_STEP) if self.tokens_T.device.type == "cpu" else self
        return model(read.tokens_T, read.positions_T, read.attend(), dtype=dtype)[: len(self.tokens_T)]

    def on(self, device: torch.device) -> "Batch":
        """Return the batch with all tensors on a device."""
        if self.tokens_T.device.type == device.type:
            return self
        return replace(
            self,
            tokens_T=self.tokens_T.to(device),
            targets_T=self.targets_T.to(device),
            trained_T=self.trained_T.to(device),
            columns={name: rows.to(device) for name, rows in self.columns.items()},
        )

    def padded(self, divisor: int) -> "Batch":
        """Append an example without loss, so the number of tokens is a multiple of `divisor`."""
        missing = -len(self.tokens_T) % divisor
        if not missing:
            return self

        def longer(rows: torch.Tensor) -> torch.Tensor:
            return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))

        return replace(
            self,
            tokens_T=longer(self.tokens_T),
            targets_T=longer(self.targets_T),
            trained_T=longer(self.trained_T),
            lengths=(*self.lengths, missing),
            columns={name: longer(rows) for name, rows in self.columns.items()},
        )


class Packer:
    """Packs the rows of a dataset into batches, starting from any position.

    Args:
        dataset: Rows with an order per epoch.
        encode: Row -> examples; the random generator depends on (seed, epoch, row) alone.
        batch_tokens: Largest number of tokens per batch.
        context: Largest number of tokens per example, or per piece with `is_cut`.
        is_cut: Whether an example may be cut into pieces of different batches.
        num_too_long: Initial value of the counter of rows skipped because of length, over all epochs; a resumed run
            continues to count.

    Example:
        packer = Packer(dataset, objective.encode, seed=0, batch_tokens=8192, context=2048, is_cut=False)
        batch, position = packer.next(Position())
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: Encode,
        *,
        seed: int,
        batch_tokens: int,
        context: int,
        is_cut: bool,
        num_too_long: int = 0,
    ):
        assert context <= batch_tokens, "a batch has room for an example"
        self.dataset, self.encode, self.seed = dataset, encode, seed
        self.batch_tokens, self.context, self.is_cut = batch_tokens, context, is_cut
        self.num_too_long = num_too_long
        self._epoch, self._order = -1, dataset.order(seed, 0)
        self._last: tuple[Position, Sequence[Example]] | None = None

    def next(self, position: Position) -> tuple[Batch, Position]:
        """Return the batch from `position` on, and the position after the batch.

        Rows without examples are skipped, and so are rows too long for the context; `num_too_long` counts the latter.

        Raises:
            DataError: All rows are skipped.
        """
        start, room = position, self.batch_tokens
        pieces: list[Example] = []
        while not (pieces and position.is_start_of_epoch):
            examples = self._read(replace(position, offset=0))
            if not examples or self.is_too_long(examples):
                self.num_too_long += bool(examples)
                position = self._next_row(position)
                if not pieces and position.epoch > start.epoch + 1:
                    raise DataError(
                        "every conversation is longer than the context",
                        expected=f"conversations of at most {self.context} tokens",
                    )
                continue
            fitting, position = self._take(examples, position, room)
            if not fitting:
                break
            pieces += fitting
            room -= sum(piece.num_read for piece in fitting)
        return _collate(pieces), position

    def _take(self, examples: Sequence[Example], position: Position, room: int) -> tuple[Sequence[Example], Position]:
        """Return the examples, or the piece of an example, for `room` tokens, and the next position."""
        if not self.is_cut:
            fits = 0 < sum(example.num_read for example in examples) <= room
            return (examples, self._next_row(position)) if fits else ((), position)
        (example,) = examples
        num_left = example.num_read - position.offset
        num_taken = min(num_left, room, self.context)
        if num_taken == 0:
            return (), position
        piece = example.piece(position.offset, num_taken)
        is_read = num_taken == num_left
        return [piece], self._next_row(position) if is_read else replace(position, offset=position.offset + num_taken)

    def progress(self, position: Position) -> float:
        """Return the number of epochs before `position`, with fractions."""
        return position.epoch + position.index / len(self.dataset)

    def first_rows(self, count: int) -> Iterator[tuple[str, Sequence[Example]]]:
        """Yield the first rows of epoch 0 as (place, examples)."""
        for index in range(min(count, len(self.dataset))):
            examples = self._read(Position(0, index))
            yield self.dataset.location(int(self._order[index])), examples

    def is_too_long(self, examples: Sequence[Example]) -> bool:
        """Return whether the examples of a row exceed the context, or together a batch."""
        lengths = [example.num_read for example in examples]
        return not self.is_cut and (max(lengths, default=0) > self.context or sum(lengths) > self.batch_tokens)

    def _read(self, start: Position) -> Sequence[Example]:
        """Encode the row at `start`; with `is_cut` the last row is cached for the next piece.

        Whole examples are encoded again on every call, as in a resumed run: an objective may draw a different sample.
        """
        if self._last is None or self._last[0] != start or not self.is_cut:
            if start.epoch != self._epoch:
                self._epoch, self._order = start.epoch, self.dataset.order(self.seed, start.epoch)
            index = int(self._order[start.index])
            row = self.dataset[index]
            try:
                examples = self.encode(row, random.Random(f"{self.seed} {start.epoch} {index}"))
            except ChatError as error:
                given = f"{self.dataset.location(index)}: {error.given}"
                raise ChatError(given, expected=error.expected, hint=error.hint) from None
            self._last = start, examples
        return self._last[1]

    def _next_row(self, position: Position) -> Position:
        is_last = position.index + 1 == len(self.dataset)
        return Position(position.epoch + 1) if is_last else Position(position.epoch, position.index + 1)


def _collate(pieces: Sequence[Example]) -> Batch:
    assert pieces, "an empty batch has room for any example"
    ids = [torch.tensor(piece.ids) for piece in pieces]
    return Batch(
        tokens_T=torch.cat([x[:-1] for x in ids]),
        targets_T=torch.cat([x[1:] for x in ids]),
        trained_T=torch.cat([torch.tensor(piece.mask[1:], dtype=torch.bool) for piece in pieces]),
        lengths=tuple(piece.num_read for piece in pieces),
        columns={name: torch.cat([piece.columns[name][1:] for piece in pieces]) for name in pieces[0].columns},
    )
