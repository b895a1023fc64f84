"""The batches of a step -> the passes that this process computes, and the sums over all of them.

A step is the same batches whatever the layout. Every process packs all of them, from nothing but the seed and a
position, and data rank r of N takes batches r, r + N, r + 2 N and so on: no batch is sent, and every process knows what
is counted.
"""

from collections.abc import Callable, Sequence

import torch

from puna.data.packing import Batch
from puna.training.parallel.context import own_tokens
from puna.training.parallel.pipeline import run_pipeline
from puna.training.parallel.team import Team

# (batch, tokens or a stage's hidden states) -> hidden states; (batch, hidden states) -> sums, "loss" among them.
Forward = Callable[[Batch, torch.Tensor], torch.Tensor]
Losses = Callable[[Batch, torch.Tensor], dict[str, torch.Tensor]]


def run_shares(
    team: Team,
    batches: Sequence[Batch],
    forward: Forward,
    losses: Losses,
    *,
    divisor: int,
    width: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Return the sums over all batches; where gradients are wanted they are those of the loss / `divisor`.

    `width` and `dtype` are those of the hidden states that one stage of a pipeline hands to the next.
    """
    sums: dict[str, float] = {}
    shares = [(own_tokens(batch, team), weight) for batch, weight in _own_batches(batches, team)]

    def loss(index: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        batch, weight = shares[index]
        found = losses(batch, hidden_TD)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + weight * value.item()
        return found["loss"] * weight / divisor

    if team.layout.pipeline > 1:
        inputs = [batch.tokens_T for batch, _ in shares]
        run_pipeline(team, inputs, lambda index, x: forward(shares[index][0], x), loss, width=width, dtype=dtype)
        return team.total(sums)
    for index, (batch, _) in enumerate(shares):
        scaled = loss(index, forward(batch, batch.tokens_T))
        if torch.is_grad_enabled():
            scaled.backward()
    return team.total(sums)


def _own_batches(batches: Sequence[Batch], team: Team) -> list[tuple[Batch, float]]:
    """Return the batches of this data rank with their weights.

    Where the last epoch ends there may be too few for all: a batch that counts nothing then keeps the ranks in step.
    """
    count, place = team.layout.data, team.place("data")
    num_each = -(-len(batches) // count)
    places = [place + number * count for number in range(num_each)]
    return [(batches[each], 1.0) if each < len(batches) else (batches[-1], 0.0) for each in places]
