"""The batches of a step -> forward and backward passes of the local batches, and sums over all ranks.

A step has the same batches for all layouts of processes. Every process packs all batches from the seed and a position;
data rank r of N computes batches r, r + N, r + 2 N ... So no batch is sent, and every process knows the number of
target tokens.
"""

from collections.abc import Callable, Sequence

import torch

from puna.data.packing import Batch
from puna.training.parallel.context import local_tokens
from puna.training.parallel.pipeline import run_pipeline
from puna.training.parallel.process_groups import ProcessGroups

# (batch, tokens or a stage's hidden states) -> hidden states; (batch, hidden states) -> sums, "loss" among them.
Forward = Callable[[Batch, torch.Tensor], torch.Tensor]
Losses = Callable[[Batch, torch.Tensor], dict[str, torch.Tensor]]


def run_local_batches(
    groups: ProcessGroups,
    batches: Sequence[Batch],
    forward: Forward,
    losses: Losses,
    *,
    divisor: int,
    width: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Run the local batches and return sums over the batches of all ranks.

    Args:
        divisor: Number of target tokens in the step; gradients are gradients of loss / divisor.
        width: Width of the hidden states between pipeline stages.
        dtype: Dtype of the hidden states between pipeline stages.
    """
    sums: dict[str, float] = {}
    local = [(local_tokens(batch, groups), weight) for batch, weight in _local_batches(batches, groups)]

    def loss(index: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        batch, weight = local[index]
        batch_sums = losses(batch, hidden_TD)
        for name, value in batch_sums.items():
            sums[name] = sums.get(name, 0.0) + weight * value.item()
        return batch_sums["loss"] * weight / divisor

    if groups.dims.pipeline > 1:
        inputs = [batch.tokens_T for batch, _ in local]
        run_pipeline(groups, inputs, lambda index, x: forward(local[index][0], x), loss, width=width, dtype=dtype)
        return groups.reduce_sums(sums)
    for index, (batch, _) in enumerate(local):
        scaled = loss(index, forward(batch, batch.tokens_T))
        if torch.is_grad_enabled():
            scaled.backward()
    return groups.reduce_sums(sums)


def _local_batches(batches: Sequence[Batch], groups: ProcessGroups) -> list[tuple[Batch, float]]:
    """Return (batch, weight) for every batch of this data rank.

    The last step may have too few batches: a batch with weight 0 then keeps the collectives of all ranks in step.
    """
    count, rank = groups.dims.data, groups.local_rank("data")
    num_local = -(-len(batches) // count)
    indices = [rank + number * count for number in range(num_local)]
    return [(batches[index], 1.0) if index < len(batches) else (batches[-1], 0.0) for index in indices]
