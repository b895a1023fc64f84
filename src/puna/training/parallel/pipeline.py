"""Pipeline parallelism: the layers of a stage and the batches of a step -> forward and backward passes (1F1B).

torch.distributed.pipelining needs microbatches of one shape and functions of tensors alone; packed batches differ in
length and attention. Every process packs the same batches and so knows the shapes to receive. The schedule is one
forward, one backward (1F1B), as in Megatron-LM (Narayanan et al. 2021, arXiv 2104.04473).

Shapes: T tokens of a batch, D model width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from puna.model.llama import Embedding, Llama
from puna.training.parallel.process_groups import ProcessGroups

# (index of a batch, tokens or hidden states) -> hidden states.
Forward = Callable[[int, torch.Tensor], torch.Tensor]


class PipelineInput(nn.Module):
    """Placeholder for the embeddings on later pipeline stages: passes hidden states through."""

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return x_TD


class TiedHeadTable(Embedding):
    """Placeholder for tied embeddings on the last stage: keeps the table for the head, passes hidden states through."""

    def __init__(self, weight: nn.Parameter):
        nn.Module.__init__(self)
        self.weight = weight

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return tokens_T


class FinalNormPlaceholder(nn.Module):
    """Placeholder for the final norm on all stages but the last; `weight` tells the network's device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return x_TD


def stage_layers(num_layers: int, stage: int, num_stages: int) -> range:
    """Return the layers of a stage; the first and the last stage get fewer layers, since they hold the tables.

    The Llama 3 paper removes a layer from both stages for the same reason (section 3.3.2).

    Example:
        >>> [len(stage_layers(6, stage, 4)) for stage in range(4)]
        [1, 2, 2, 1]
    """
    least, rest = divmod(num_layers, num_stages)
    order = sorted(range(num_stages), key=lambda number: (number in (0, num_stages - 1), number))
    counts = [least + (order.index(number) < rest) for number in range(num_stages)]
    first = sum(counts[:stage])
    return range(first, first + counts[stage])


def keep_stage(model: Llama, stage: int, num_stages: int) -> None:
    """Keep the layers of a stage in place, under the original names, with embeddings or head on the outer stages."""
    layers = nn.ModuleList()
    for layer in stage_layers(len(model.layers), stage, num_stages):
        layers.add_module(str(layer), model.layers[layer])
    model.layers = layers
    is_first, is_last = stage == 0, stage == num_stages - 1
    if not is_first:
        is_needed = is_last and model.lm_head is None
        table = TiedHeadTable(model.embed_tokens.weight) if is_needed else PipelineInput()
        model.embed_tokens = table  # type: ignore[assignment]
    if not is_last:
        model.norm = FinalNormPlaceholder()  # type: ignore[assignment]
        model.lm_head = None


def run_pipeline(
    groups: ProcessGroups,
    inputs: Sequence[torch.Tensor],
    forward: Forward,
    loss: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    width: int,
    dtype: torch.dtype,
) -> None:
    """Run the 1F1B schedule of this stage; backward passes run if gradients are enabled.

    Args:
        inputs: Local tokens of every batch.
        forward: Runs the layers of the stage.
        loss: Computes the loss from hidden states; called on the last stage only.
        width: Width of the hidden states between stages.
        dtype: Dtype of the hidden states between stages.
    """
    stage, num_stages = groups.local_rank("pipeline"), groups.dims.pipeline
    group, is_last = groups.group("pipeline"), groups.is_last_stage
    sent: list[tuple[dist.Work | None, torch.Tensor]] = []
    waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    is_trained = torch.is_grad_enabled()

    def go_forward(index: int) -> None:
        x = inputs[index]
        if stage:
            x = torch.empty(len(x), width, dtype=dtype, device=groups.device)
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
            dist.recv(gradient, group=groups.backward_group, group_src=stage + 1)
        torch.autograd.backward([y], [gradient])
        if stage:
            assert x.grad is not None
            sent.append((dist.isend(x.grad, group=groups.backward_group, group_dst=stage - 1), x.grad))

    num_ahead = min(num_stages - stage - 1, len(inputs)) if is_trained else len(inputs)
    for index in range(len(inputs) + (num_ahead if is_trained else 0)):
        if index < len(inputs):
            go_forward(index)
        if is_trained and index >= num_ahead:
            go_backward(index - num_ahead)
    for work, _ in sent:
        if work:
            work.wait()
