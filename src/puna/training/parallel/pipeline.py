"""A stage's layers and the batches of a step -> their passes forward and backward, one batch behind the other.

torch.distributed.pipelining wants pieces of one tensor, all of one shape, and functions of tensors alone; ours are
packed batches, each of its own length and with its own `attend`. Every process packs the same batches, so it knows the
shapes that it receives, and the schedule is short: one forward, one backward (1F1B), as in Megatron-LM (Narayanan et
al. 2021, arXiv 2104.04473).

Shapes: T tokens of a batch, D model width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from puna.model.llama import Embedding, Llama
from puna.training.parallel.team import Team

# (index of a batch, tokens or hidden states) -> hidden states.
Forward = Callable[[int, torch.Tensor], torch.Tensor]


class Received(nn.Module):
    """Stands where the embeddings were: hidden states of the stage before pass through it."""

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return x_TD


class ReceivedBeforeHead(Embedding):
    """The same on the last stage of a network whose table of embeddings is also its output matrix."""

    def __init__(self, weight: nn.Parameter):
        nn.Module.__init__(self)
        self.weight = weight

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return tokens_T


class Unfinished(nn.Module):
    """Stands where the final norm was; knows the device, of which the network asks its norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return x_TD


def stage_layers(num_layers: int, stage: int, num_stages: int) -> range:
    """Return the layers of a stage. First and last have fewer where it doesn't come out even: they have the embeddings.

    The Llama 3 paper takes a layer from each of the two for the same reason (section 3.3.2).
    """
    least, rest = divmod(num_layers, num_stages)
    order = sorted(range(num_stages), key=lambda each: (each in (0, num_stages - 1), each))
    counts = [least + (order.index(each) < rest) for each in range(num_stages)]
    first = sum(counts[:stage])
    return range(first, first + counts[stage])


def cut(model: Llama, stage: int, num_stages: int) -> None:
    """Leave of `model` the layers of one stage, under their names, and what the first or last stage needs beside."""
    kept = nn.ModuleList()
    for layer in stage_layers(len(model.layers), stage, num_stages):
        kept.add_module(str(layer), model.layers[layer])
    model.layers = kept
    is_first, is_last = stage == 0, stage == num_stages - 1
    if not is_first:
        is_needed = is_last and model.lm_head is None
        table = ReceivedBeforeHead(model.embed_tokens.weight) if is_needed else Received()
        model.embed_tokens = table  # type: ignore[assignment]
    if not is_last:
        model.norm = Unfinished()  # type: ignore[assignment]
        model.lm_head = None


def run_pipeline(
    team: Team,
    inputs: Sequence[torch.Tensor],
    forward: Forward,
    loss: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    width: int,
    dtype: torch.dtype,
) -> None:
    """Take all batches through this stage, and back if gradients are wanted; `inputs` are their own tokens.

    `forward` runs the stage; `loss` is called on the last stage alone.
    """
    stage, num_stages = team.place("pipeline"), team.layout.pipeline
    group, is_last = team.group("pipeline"), team.is_last_stage
    sent: list[tuple[dist.Work | None, torch.Tensor]] = []
    waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    is_trained = torch.is_grad_enabled()

    def go_forward(index: int) -> None:
        x = inputs[index]
        if stage:
            x = torch.empty(len(x), width, dtype=dtype, device=team.device)
            dist.recv(x, group=group, group_src=stage - 1)
            x.requires_grad_(is_trained)
        y = forward(index, x)
        if is_last:
            y = loss(index, y)
        else:
            out = y.detach().contiguous()
            sent.append((dist.isend(out, group=group, group_dst=stage + 1), out))
        if is_trained:
            waiting[index] = x, y

    def go_backward(index: int) -> None:
        x, y = waiting.pop(index)
        gradient = None
        if not is_last:
            gradient = torch.empty_like(y)
            dist.recv(gradient, group=team.backward_group, group_src=stage + 1)
        torch.autograd.backward([y], [gradient])
        if stage:
            assert x.grad is not None
            sent.append((dist.isend(x.grad, group=team.backward_group, group_dst=stage - 1), x.grad))

    num_ahead = min(num_stages - stage - 1, len(inputs)) if is_trained else len(inputs)
    for index in range(len(inputs) + (num_ahead if is_trained else 0)):
        if index < len(inputs):
            go_forward(index)
        if is_trained and index >= num_ahead:
            go_backward(index - num_ahead)
    for work, _ in sent:
        if work:
            work.wait()
