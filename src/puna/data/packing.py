"""Encoded examples -> batches of tokens packed without padding, from any position of the stream.

The stream is a pure function of (seed, epoch, index), so a `Position` is all that a resumed run needs: nothing is
skipped, nothing comes twice. Batches hold whole examples, or pieces of at most `context` tokens where the caller allows
an example to be cut. A batch ends where its epoch ends, so that none holds an example twice.
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
    """Token ids, for each whether it is trained, and what else is known of each: columns with a row a token.

    Like the mask, a column's row t is about ids[t] as the token that is to be foreseen.
    """

    ids: Sequence[int]
    mask: Sequence[bool]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_read(self) -> int:
        """How many tokens a network reads of it: the last is only foreseen."""
        return len(self.ids) - 1

    def piece(self, start: int, num_tokens: int) -> "Example":
        """Return the part of which tokens start .. start + num_tokens - 1 are read."""
        part = slice(start, start + num_tokens + 1)
        return Example(self.ids[part], self.mask[part], {name: rows[part] for name, rows in self.columns.items()})


# A row and a source of randomness -> the examples that it is: several stay together, in one batch and in this order;
# none if the row is passed over.
Encode = Callable[[object, random.Random], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Position:
    """The next token to read: in `epoch`, the example at `index` of its order, from `offset` on."""

    epoch: int = 0
    index: int = 0
    offset: int = 0

    @property
    def is_start_of_epoch(self) -> bool:
        return self.index == 0 and self.offset == 0


@dataclass(frozen=True)
class Batch:
    """Packed examples; token t predicts targets_T[t], and counts in the loss where trained_T is true."""

    tokens_T: torch.Tensor
    targets_T: torch.Tensor
    trained_T: torch.Tensor
    lengths: tuple[int, ...]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def positions_T(self) -> torch.Tensor:
        """Each token's place in its own example, from 0."""
        return torch.cat([torch.arange(length, device=self.tokens_T.device) for length in self.lengths])

    def attend(self) -> Attend:
        """Return causal attention within each example."""
        return packed_attend(self.lengths)

    def hidden_states(self, model: Llama, dtype: torch.dtype) -> torch.Tensor:
        """Return what a network makes of the batch; on a CPU with padding that nobody sees, so that shapes recur."""
        read = self.padded(TOKENS_STEP) if self.tokens_T.device.type == "cpu" else self
        return model(read.tokens_T, read.positions_T, read.attend(), dtype=dtype)[: len(self.tokens_T)]

    def on(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device; itself if they are there."""
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
        """Add an example that is not trained, so that the tokens can be divided evenly."""
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
    """Reads a dataset from a position on, a batch at a time.

    `encode` turns a row into ids and mask, with a random generator that depends on (seed, epoch, row) alone.
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
        """Return the batch that starts at `position`, and the position after the batch.

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
                        "every conversation is longer than the context", expected=f"at most {self.context} tokens"
                    )
                continue
            fitting, position = self._take(examples, position, room)
            if not fitting:
                break
            pieces += fitting
            room -= sum(piece.num_read for piece in fitting)
        return _collate(pieces), position

    def _take(self, examples: Sequence[Example], position: Position, room: int) -> tuple[Sequence[Example], Position]:
        """Return the examples, or the piece of one, that fit into `room` tokens, and the position after them."""
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
        """Return how many epochs lie before `position`, in whole and parts."""
        return position.epoch + position.index / len(self.dataset)

    def first_rows(self, count: int) -> Iterator[tuple[str, Sequence[Example]]]:
        """Yield the rows that a run reads first, encoded: each with its place."""
        for index in range(min(count, len(self.dataset))):
            examples = self._read(Position(0, index))
            yield self.dataset.place(int(self._order[index])), examples

    def is_too_long(self, examples: Sequence[Example]) -> bool:
        """Tell whether what a row became will be passed over."""
        lengths = [example.num_read for example in examples]
        return not self.is_cut and (max(lengths, default=0) > self.context or sum(lengths) > self.batch_tokens)

    def _read(self, start: Position) -> Sequence[Example]:
        """Encode the row that begins at `start`; the last one is kept where the next batch may want a piece of it.

        What is not cut is encoded anew: an objective may draw something else by then, as a run that was resumed would.
        """
        if self._last is None or self._last[0] != start or not self.is_cut:
            if start.epoch != self._epoch:
                self._epoch, self._order = start.epoch, self.dataset.order(self.seed, start.epoch)
            index = int(self._order[start.index])
            row = self.dataset[index]
            try:
                examples = self.encode(row, random.Random(f"{self.seed} {start.epoch} {index}"))
            except ChatError as error:
                given = f"{self.dataset.place(index)}: {error.given}"
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
