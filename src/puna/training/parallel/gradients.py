"""The gradients that many processes hold parts of -> one norm, and the same scale for all."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from puna.model.llama import Llama
from puna.training.parallel.parts import local_part, owned_parameters
from puna.training.parallel.pipeline import ReceivedBeforeHead
from puna.training.parallel.team import Team


def clip_gradients(model: Llama, team: Team, largest: float) -> float:
    """Scale the gradients down to a norm of `largest`, and return the norm that all of them together had."""
    if team.size == 1:
        return nn.utils.clip_grad_norm_(model.parameters(), largest).item()
    for parameter in model.parameters():
        # Without sharded weights nobody has brought them together: what comes of a table's rows may lie on all ranks.
        if isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor):
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
    if team.layout.pipeline > 1 and model.config.tie_embeddings:
        _add_tied(model, team)
    gradients = [parameter.grad for parameter in owned_parameters(model, team).values()]
    squares = [_square(gradient) for gradient in gradients if gradient is not None]
    norm = math.sqrt(team.sum(math.fsum(squares))[0])
    scale = min(1.0, largest / (norm + 1e-6))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    return norm


def _square(gradient: torch.Tensor) -> float:
    local = local_part(gradient)
    return torch.linalg.vector_norm(local, dtype=torch.float64).item() ** 2 if local.numel() else 0.0


def _add_tied(model: Llama, team: Team) -> None:
    """Add up the gradients of a table that serves on the first stage as input and on the last as output."""
    if not isinstance(model.embed_tokens, ReceivedBeforeHead) and team.place("pipeline") != 0:
        return
    gradient = model.embed_tokens.weight.grad
    assert gradient is not None
    own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    other, peer = torch.empty_like(own), team.layout.pipeline - 1 - team.place("pipeline")
    group = team.group("pipeline")
    exchange = [
        dist.P2POp(dist.isend, own.contiguous(), group=group, group_peer=peer),
        dist.P2POp(dist.irecv, other, group=group, group_peer=peer),
    ]
    for work in dist.batch_isend_irecv(exchange):
        work.wait()
    own.add_(other)
