"""An output matrix whose rows are divided between ranks -> logits over the whole vocabulary, of some tokens each.

Each rank multiplies all hidden states with its rows; then the logits change hands, so that a rank has all logits of its
share of the tokens. Objectives see whole distributions and need to know nothing. A cross entropy over parts of the
vocabulary would send less, but each objective would have to be written a second time; and what is sent, in bfloat16
2 V / N bytes a token there and back, is less than a hundredth of what the layers of a 70B send with N = 8.

Shapes: C tokens at once, D model width, V vocabulary, M trained tokens.
"""

from typing import Any, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Replicate, Shard


def is_divided(weight_VD: torch.Tensor) -> TypeGuard[DTensor]:
    """Tell whether a matrix's rows lie on several ranks."""
    return isinstance(weight_VD, DTensor) and weight_VD.device_mesh.mesh_dim_names == ("tensor",)


def logits_of_share(hidden_CD: torch.Tensor, weight_VD: DTensor) -> torch.Tensor:
    """Return float32 logits over the whole vocabulary, of this rank's share of the C tokens."""
    mesh = weight_VD.device_mesh
    logits_CV = F.linear(DTensor.from_local(hidden_CD, mesh, [Replicate()], run_check=False), weight_VD)
    assert isinstance(logits_CV, DTensor)
    # A copy, since the losses write over it.
    return logits_CV.redistribute(placements=[Shard(0)]).to_local().to(torch.float32, copy=True)


def share_of(count: int, weight_VD: DTensor) -> slice:
    """Return which of `count` tokens are this rank's: equal shares but for the last ones, which may be empty."""
    mesh = weight_VD.device_mesh
    size = -(-count // mesh.size())
    return slice(min(count, mesh.get_local_rank() * size), min(count, (mesh.get_local_rank() + 1) * size))


def summed_over_shares(sums: dict[str, torch.Tensor], weight_VD: DTensor) -> dict[str, torch.Tensor]:
    """Return the sums over all tokens from those over this rank's; no gradient passes."""
    total = torch.stack([value.detach() for value in sums.values()])
    dist.all_reduce(total, group=weight_VD.device_mesh.get_group())
    return dict(zip(sums, total.unbind(), strict=True))


def of_all_tokens(values_C: torch.Tensor, count: int, weight_VD: DTensor) -> torch.Tensor:
    """Return the values of all `count` tokens from those of this rank's share."""
    places = torch.arange(count, device=values_C.device)[share_of(count, weight_VD)]
    return _Summed.apply(values_C.new_zeros(count).index_add(0, places, values_C), weight_VD)  # type: ignore[return-value]


class _Summed(torch.autograd.Function):
    """The sum over ranks that all go on with it alike, so that each has the whole gradient already."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight_VD: DTensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total, group=weight_VD.device_mesh.get_group())
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return outputs[0], None
