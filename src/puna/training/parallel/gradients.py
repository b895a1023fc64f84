"""Sharded gradients -> the global gradient norm, and clipping with the same scale on all ranks."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from puna.model.llama import Llama
from puna.training.parallel.pipeline import TiedHeadTable
from puna.training.parallel.process_groups import ProcessGroups
from puna.training.parallel.shards import local_shard, owned_parameters


def clip_gradients(model: Llama, groups: ProcessGroups, largest: float) -> float:
    """Clip gradients to a global norm of `largest`, and return the global norm before clipping."""
    if groups.world_size == 1:
        return nn.utils.clip_grad_norm_(model.parameters(), largest).item()
    for parameter in model.parameters():
        # Without FSDP, gradients of vocabulary-parallel tables are partial sums on all tensor ranks: reduce them.
        if isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor):
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
    if groups.dims.pipeline > 1 and model.config.tie_embeddings:
        _add_tied(model, groups)
    gradients = [parameter.grad for parameter in owned_parameters(model, groups).values()]
    squares = [_square(gradient) for gradient in gradients if gradient is not None]
    norm = math.sqrt(groups.all_reduce(math.fsum(squares))[0])
    scale = min(1.0, largest / (norm + 1e-6))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    return norm


def _square(gradient: torch.Tensor) -> float:
    local = local_shard(gradient)
    return torch.linalg.vector_norm(local, dtype=torch.float64).item() ** 2 if local.numel() else 0.0


def _add_tied(model: Llama, groups: ProcessGroups) -> None:
    """Add the gradients of tied embeddings of the first and the last pipeline stage."""
    if not isinstance(model.embed_tokens, TiedHeadTable) and groups.local_rank("pipeline") != 0:
        return
    gradient = model.embed_tokens.weight.grad
    assert gradient is not None
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    other, peer = torch.empty_like(local), groups.dims.pipeline - 1 - groups.local_rank("pipeline")
    group = groups.group("pipeline")
    exchange = [
        dist.P2POp(dist.isend, local.contiguous(), group=group, group_peer=peer),
        dist.P2POp(dist.irecv, other, group=group, group_peer=peer),
    ]
    for work in dist.batch_isend_irecv(exchange):
        work.wait()
    local.add_(other)
