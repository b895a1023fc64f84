"""Context parallelism: a batch -> the local tokens of a context rank, with attention to the tokens of other ranks.

Queries stay local; keys and values are all-gathered, as in the Llama 3 paper (section 3.3.2): with grouped-query
attention they are small, and document masks stay simple. A rank has a piece from the beginning and a piece from the end
of the batch, since later tokens attend to more tokens.

Shapes: T tokens of the batch or of a rank, H query heads, K key/value heads, E head width.
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
from puna.training.parallel.process_groups import ProcessGroups


@dataclass(frozen=True)
class LocalBatch(Batch):
    """The local tokens of a batch; `lengths` are the lengths of all examples of the whole batch.

    Example: see `local_tokens`.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    attend_local: Attend | None = None

    @cached_property
    def positions_T(self) -> torch.Tensor:
        return self.positions

    def attend(self) -> Attend:
        return self.attend_local or super().attend()

    def hidden_states(self, model: Llama, dtype: torch.dtype) -> torch.Tensor:
        # No padding: attention covers tokens of other ranks as well.
        return model(self.tokens_T, self.positions_T, self.attend(), dtype=dtype)


def local_tokens(batch: Batch, groups: ProcessGroups) -> Batch:
    """Return the local tokens of a batch on the local device."""
    if groups.world_size == 1:
        return batch.on(groups.device)
    count, rank = groups.dims.context, groups.local_rank("context")
    if count == 1:
        return _on(groups.device, batch, torch.arange(len(batch.tokens_T)), None)
    padded = batch.padded(2 * count)
    indices = _token_indices(len(padded.tokens_T), count)
    attend = _attend_gathered(padded.lengths, indices, rank, groups.group("context"), groups.device)
    return _on(groups.device, padded, torch.tensor(indices[rank]), attend)


def _on(device: torch.device, batch: Batch, indices: torch.Tensor, attend: Attend | None) -> LocalBatch:
    return LocalBatch(
        tokens_T=batch.tokens_T[indices].to(device),
        targets_T=batch.targets_T[indices].to(device),
        trained_T=batch.trained_T[indices].to(device),
        lengths=batch.lengths,
        columns={name: rows[indices].to(device) for name, rows in batch.columns.items()},
        positions=batch.positions_T[indices].to(device),
        attend_local=attend,
    )


def _token_indices(num_tokens: int, count: int) -> list[list[int]]:
    """Return the token indices of every rank: piece i of 2 x count pieces from the front, and piece i from the end.

    Example:
        >>> _token_indices(8, 2)
        [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    size = num_tokens // (2 * count)
    pieces = [list(range(start, start + size)) for start in range(0, num_tokens, size)]
    return [pieces[index] + pieces[-1 - index] for index in range(count)]


def _attend_gathered(
    lengths: tuple[int, ...], indices: list[list[int]], rank: int, group: dist.ProcessGroup, device: torch.device
) -> Attend:
    """Return causal attention from local tokens to all previous tokens of the same examples."""
    order_T = torch.tensor([token for rank_indices in indices for token in rank_indices]).argsort().to(device)
    half = len(indices[rank]) // 2
    pieces = [indices[rank][:half], indices[rank][half:]]
    spans = [span for piece in pieces for span in _spans(lengths, piece[0], piece[-1] + 1)]

    def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
        both = _AllGather.apply(torch.cat((k_TKE, v_TKE), dim=1), group)
        k_TKE, v_TKE = both[order_T].chunk(2, dim=1)  # type: ignore[index]
        queries = q_THE.split([end - start for _, start, end in spans])
        outputs = [
            attend_behind_prefix(q, k_TKE[first:end].transpose(0, 1), v_TKE[first:end].transpose(0, 1))
            for q, (first, _, end) in zip(queries, spans, strict=True)
        ]
        return torch.cat(outputs)

    return attend


def _spans(lengths: tuple[int, ...], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start of the example, first token, end) for every example that overlaps with start .. end."""
    first = 0
    for length in lengths:
        if first < end and first + length > start:
            yield first, max(first, start), min(first + length, end)
        first += length


class _AllGather(torch.autograd.Function):
    """All-gather of rows in the forward pass, reduce-scatter of gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        gathered = rows.new_empty(rows.shape[0] * group.size(), *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (output,) = outputs
        local = output.new_empty(output.shape[0] // ctx.group.size(), *output.shape[1:])
        dist.reduce_scatter_single(local, output.contiguous(), group=ctx.group)
        return local, None
