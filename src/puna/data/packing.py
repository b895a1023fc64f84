"""Encoded examples -> batches of tokens packed without padding, from any position of the stream.

The stream is a pure function of (seed, epoch, index), so a `Position` is all that a resumed run needs: nothing is
skipped, nothing comes twice. Batches hold whole examples, or pieces of at most `context` tokens where the caller allows
an example to be cut.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from puna.chat.format import Encoded
from puna.data.dataset import Dataset
from puna.errors import DataError


@dataclass(frozen=True, slots=True)
class Position:
    """The next token to read: in `epoch`, the example at `index` of its order, from `offset` on."""

    epoch: int = 0
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """Packed examples; token t predicts targets_T[t], and counts in the loss where trained_T is true."""

    tokens_T: torch.Tensor
    targets_T: torch.Tensor
    trained_T: torch.Tensor
    lengths: tuple[int, ...]

    @cached_property
    def positions_T(self) -> torch.Tensor:
        """Each token's place in its own example, from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths])


class Packer:
    """Reads a dataset from a position on, a batch at a time.

    `encode` turns a row into ids and mask, with a random generator that depends on (seed, epoch, row) alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: Callable[[object, random.Random], Encoded],
        *,
        seed: int,
        batch_tokens: int,
        context: int,
        is_cut: bool,
    ):
        self.dataset, self.encode, self.seed = dataset, encode, seed
        self.batch_tokens, self.context, self.is_cut = batch_tokens, min(context, batch_tokens), is_cut
        self.num_too_long = 0
        self._epoch, self._order = -1, dataset.order(seed, 0)

    def next(self, position: Position) -> tuple[Batch, Position]:
        """Return the batch that begins at `position`, and the position after it."""
        pieces: list[Encoded] = []
        room = self.batch_tokens
        while room > 0:
            piece, position = self._piece(position, room)
            if piece is None:
                break
            pieces.append(piece)
            room -= len(piece.ids) - 1
        assert pieces, "an empty batch has room for any piece"
        return _collate(pieces), position

    def progress(self, position: Position) -> float:
        """Return how many epochs lie before `position`, in whole and parts."""
        return position.epoch + position.index / len(self.dataset)

    def _piece(self, position: Position, room: int) -> tuple[Encoded | None, Position]:
        """Take the piece at `position` if it fits into `room`; examples too long for the context are passed over."""
        for _ in range(len(self.dataset)):
            encoded = self._read(position)
            ids, mask = encoded.ids[position.offset :], encoded.mask[position.offset :]
            limit = min(room, self.context) + 1
            if len(ids) <= limit:
                return Encoded(ids, mask), self._after(position)
            if self.is_cut:
                cut = Position(position.epoch, position.index, position.offset + limit - 1)
                return Encoded(ids[:limit], mask[:limit]), cut
            if len(ids) <= self.context + 1:
                return None, position
            self.num_too_long += 1
            position = self._after(position)
        raise DataError("every conversation is longer than the context", expected=f"at most {self.context} tokens")

    def _read(self, position: Position) -> Encoded:
        if position.epoch != self._epoch:
            self._epoch, self._order = position.epoch, self.dataset.order(self.seed, position.epoch)
        row = int(self._order[position.index])
        return self.encode(self.dataset[row], random.Random(f"{self.seed} {position.epoch} {row}"))

    def _after(self, position: Position) -> Position:
        is_last = position.index + 1 == len(self.dataset)
        return Position(position.epoch + 1) if is_last else Position(position.epoch, position.index + 1)


def _collate(pieces: list[Encoded]) -> Batch:
    ids = [torch.tensor(piece.ids) for piece in pieces]
    return Batch(
        tokens_T=torch.cat([x[:-1] for x in ids]),
        targets_T=torch.cat([x[1:] for x in ids]),
        trained_T=torch.cat([torch.tensor(piece.mask[1:], dtype=torch.bool) for piece in pieces]),
        lengths=tuple(len(x) - 1 for x in ids),
    )
