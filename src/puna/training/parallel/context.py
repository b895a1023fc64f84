"""A batch and a place along `context` -> the tokens of it that this process computes, and how these see the others.

Queries stay where their tokens are; keys and values of all tokens are gathered, as in the Llama 3 paper (section
3.3.2): with grouped queries they are small, and any mask of documents is easy. Each process has two pieces of the
batch, one from its beginning and one from its end, because later tokens see more.

Shapes: T tokens of the batch or of this process, H query heads, K key/value heads, E head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from puna.data.packing import Batch
from puna.model.attend import attend_behind_prefix
from puna.model.llama import Attend, Llama
from puna.training.parallel.team import Team


@dataclass(frozen=True)
class OwnBatch(Batch):
    """The tokens of a batch that this process computes; `lengths` are those of the whole batch."""

    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    attend_own: Attend | None = None

    @cached_property
    def positions_T(self) -> torch.Tensor:
        return self.positions

    def attend(self) -> Attend:
        return self.attend_own or super().attend()

    def hidden_states(self, model: Llama, dtype: torch.dtype) -> torch.Tensor:
        # Without padding: what is attended to are other processes' tokens too.
        return model(self.tokens_T, self.positions_T, self.attend(), dtype=dtype)


def own_tokens(batch: Batch, team: Team) -> Batch:
    """Return this process's share of a batch, on its device."""
    if team.size == 1:
        return batch.on(team.device)
    count, place = team.layout.context, team.place("context")
    if count == 1:
        return _on(team.device, batch, torch.arange(len(batch.tokens_T)), None)
    padded = batch.padded(2 * count)
    places = _places(len(padded.tokens_T), count)
    attend = _attend_gathered(padded.lengths, places, place, team.group("context"), team.device)
    return _on(team.device, padded, torch.tensor(places[place]), attend)


def _on(device: torch.device, batch: Batch, own: torch.Tensor, attend: Attend | None) -> OwnBatch:
    return OwnBatch(
        tokens_T=batch.tokens_T[own].to(device),
        targets_T=batch.targets_T[own].to(device),
        trained_T=batch.trained_T[own].to(device),
        lengths=batch.lengths,
        columns={name: rows[own].to(device) for name, rows in batch.columns.items()},
        positions=batch.positions_T[own].to(device),
        attend_own=attend,
    )


def _places(num_tokens: int, count: int) -> list[list[int]]:
    """Return which tokens each process has: of 2 x count pieces the one from the front and its mirror image."""
    size = num_tokens // (2 * count)
    pieces = [list(range(start, start + size)) for start in range(0, num_tokens, size)]
    return [pieces[index] + pieces[-1 - index] for index in range(count)]


def _attend_gathered(
    lengths: tuple[int, ...], places: list[list[int]], place: int, group: dist.ProcessGroup, device: torch.device
) -> Attend:
    """Return attention from own tokens to all that stand before them in their examples."""
    order_T = torch.tensor([token for own in places for token in own]).argsort().to(device)
    half = len(places[place]) // 2
    pieces = [places[place][:half], places[place][half:]]
    spans = [span for piece in pieces for span in _spans(lengths, piece[0], piece[-1] + 1)]

    def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
        both = _Gathered.apply(torch.cat((k_TKE, v_TKE), dim=1), group)
        k_TKE, v_TKE = both[order_T].chunk(2, dim=1)  # type: ignore[index]
        queries = q_THE.split([end - start for _, start, end in spans])
        outputs = [
            attend_behind_prefix(q, k_TKE[first:end].transpose(0, 1), v_TKE[first:end].transpose(0, 1))
            for q, (first, _, end) in zip(queries, spans, strict=True)
        ]
        return torch.cat(outputs)

    return attend


def _spans(lengths: tuple[int, ...], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each example in start .. end where it begins, and which of its tokens lie in there."""
    first = 0
    for length in lengths:
        if first < end and first + length > start:
            yield first, max(first, start), min(first + length, end)
        first += length


class _Gathered(torch.autograd.Function):
    """Rows of all processes one behind the other; the gradients that they have for a row are added."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        gathered = rows.new_empty(rows.shape[0] * group.size(), *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (output,) = outputs
        own = output.new_empty(output.shape[0] // ctx.group.size(), *output.shape[1:])
        dist.reduce_scatter_single(own, output.contiguous(), group=ctx.group)
        return own, None
