"""Network sizes, a number of GPUs and a batch -> degrees of parallelism for training, with reasons.

All layouts that fit in memory are compared by the estimated time of communication and pipeline bubbles. The dimensions
are the dimensions of training/parallel; training.py counts the memory of a single device.

In the formulas: D dim, K key/value heads, E head width, B tokens of a batch on one rank of `context`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from puna.model.config import LlamaConfig
from puna.planning.plan.arithmetic import Machine, count_parameters, forward_flops
from puna.planning.plan.training import Training, activations_of, logits_at_once

GPUS_IN_A_MACHINE = 8
# Bytes per second that a GPU sends: within a machine (NVLink of the H100), between machines (400 Gb/s per GPU).
INSIDE_RATE, OUTSIDE_RATE = 450e9, 50e9
# Batches in a step for every pipeline stage.
BATCHES_A_STAGE = 4
# Largest step: the 16M tokens of the Llama 3 paper's 405B (section 3.4.1).
MOST_STEP_TOKENS = 2**24
SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class LayoutPlan:
    """Degrees of parallelism, memory of the fullest GPU, and waiting times as shares of its computing time.

    Example: see `propose_layout`.
    """

    data: int
    tensor: int
    context: int
    pipeline: int
    accumulate: int
    step_tokens: int
    weights_bytes: int
    moments_bytes: int
    gradients_bytes: int
    gathered_bytes: int
    activations_bytes: int
    logits_bytes: int
    is_recomputed: bool
    tensor_share: float
    weights_share: float
    context_share: float
    bubble_share: float

    def __str__(self) -> str:
        sizes = f"data {self.data} x pipeline {self.pipeline} x context {self.context} x tensor {self.tensor}"
        return f"{sizes}, accumulate {self.accumulate:,} ({self.step_tokens:,} tokens a step)"

    @property
    def num_devices(self) -> int:
        return self.data * self.tensor * self.context * self.pipeline

    @property
    def total_bytes(self) -> int:
        states = self.weights_bytes + self.moments_bytes + self.gradients_bytes
        return states + self.gathered_bytes + self.activations_bytes + self.logits_bytes

    @property
    def waiting_share(self) -> float:
        again = 1 / 3 if self.is_recomputed else 0.0  # a second forward pass
        return self.tensor_share + self.weights_share + self.context_share + self.bubble_share + again


def propose_layout(widths: LlamaConfig, training: Training, machine: Machine, num_devices: int) -> LayoutPlan | None:
    """Return the layout with the shortest waiting time of all layouts that fit in memory.

    Returns:
        None if no layout fits, for a single device, for LoRA or without known FLOP/s.
    """
    rate = machine.device.bfloat16_flops_per_second
    if num_devices < 2 or rate is None or training.lora_rank is not None:
        return None
    fitting = [
        layout
        for layout in _layouts(widths, training, num_devices, rate * machine.flops_share)
        if layout.total_bytes <= machine.usable_bytes and layout.step_tokens <= MOST_STEP_TOKENS
    ]
    # Ties go to the smaller product of tensor, context and pipeline degrees.
    return min(fitting, key=lambda x: (round(x.waiting_share, 2), x.tensor * x.context * x.pipeline), default=None)


def explain_layout(plan: LayoutPlan) -> Iterator[str]:
    """Yield a sentence with the reason for every dimension above 1."""
    if plan.data * plan.context > 1:
        yield (
            f"data {plan.data}: weights, gradients and moments lie on {plan.data * plan.context} GPUs each, "
            f"{plan.weights_share:.0%} waiting for what computing does not hide of gathering them"
        )
    if plan.tensor > 1:
        yield (
            f"tensor {plan.tensor}: divides the matrices and most activations; within a machine of "
            f"{GPUS_IN_A_MACHINE}, because hidden states are sent four times a layer ({plan.tensor_share:.0%} waiting)"
        )
    if plan.context > 1:
        yield f"context {plan.context}: divides the tokens of a batch, for its activations ({plan.context_share:.0%})"
    if plan.pipeline > 1:
        yield (
            f"pipeline {plan.pipeline}: divides the layers, and with them what is gathered for a batch; "
            f"{plan.bubble_share:.0%} waiting while it fills and empties"
        )
    if plan.is_recomputed:
        yield "checkpoint_activations: layers are computed again in the backward pass, a third more FLOPs"


def _layouts(
    widths: LlamaConfig, training: Training, num_devices: int, flops_per_second: float
) -> Iterator[LayoutPlan]:
    for tensor, context, pipeline, again in product(SIZES[:4], SIZES, SIZES, (False, True)):
        data, rest = divmod(num_devices, tensor * context * pipeline)
        is_whole = not (rest or widths.num_kv_heads % tensor or widths.hidden_dim % tensor)
        if is_whole and data and pipeline <= widths.num_layers and tensor <= GPUS_IN_A_MACHINE:
            yield _count(widths, training, (data, tensor, context, pipeline), again, flops_per_second)


def _count(
    widths: LlamaConfig, training: Training, sizes: tuple[int, int, int, int], again: bool, flops_per_second: float
) -> LayoutPlan:
    data, tensor, context, pipeline = sizes
    shards, counted = data * context, count_parameters(widths)
    num_layers = -(-widths.num_layers // pipeline)
    layer = (counted.attention + counted.mlp) / widths.num_layers / tensor
    tables = (counted.embeddings if pipeline > 1 else counted.embeddings + counted.head) / tensor
    held = num_layers * layer + tables + counted.norms / pipeline
    num_batches = BATCHES_A_STAGE * pipeline if pipeline > 1 else max(1, -(-training.accumulate // data))
    # FSDP holds two gathered layers, the tables and the gradients of a layer; a pipeline keeps all layers gathered.
    gathered = (
        2 * (num_layers * layer if pipeline > 1 or shards == 1 else 2 * layer) + 2 * tables + 2 * (layer + tables)
    )
    tokens = training.batch_tokens / context
    activation_bytes = activations_of(widths, training)
    # Residuals, norms and inputs of matrix products are replicated on all tensor ranks.
    replicated = training.batch_tokens * 4 * widths.dim * training.value_bytes
    one = (replicated + (activation_bytes.layer - replicated) / tensor) / context
    activations = num_layers * activation_bytes.entry / context + one if again else num_layers * one
    logits = 2 * training.value_bytes * logits_at_once(widths, training.batch_tokens) / tensor
    flops = 3 * forward_flops(widths, training.context / 2) * tokens / pipeline / tensor
    seconds = flops / flops_per_second
    return LayoutPlan(
        *(data, tensor, context, pipeline),
        accumulate=data * num_batches,
        step_tokens=data * num_batches * training.batch_tokens,
        weights_bytes=round(4 * held / shards),
        moments_bytes=round(8 * held / shards),
        gradients_bytes=round(4 * held / shards),
        gathered_bytes=round(gathered),
        activations_bytes=round(
            activations * pipeline + activation_bytes.last / context
        ),  # as many batches are in flight
        logits_bytes=round(logits),
        is_recomputed=again,
        tensor_share=_tensor_seconds(widths, tokens, tensor) * num_layers / seconds,
        weights_share=_weights_seconds(held, sizes, seconds) / seconds,
        context_share=_context_seconds(widths, training, context, tensor) * num_layers / seconds,
        bubble_share=(pipeline - 1) / num_batches,
    )


def _tensor_seconds(widths: LlamaConfig, tokens: float, tensor: int) -> float:
    """Return the seconds of a layer's four all-reduces of hidden states; an all-reduce sends the data twice."""
    return 4 * 2 * (tensor - 1) / tensor * tokens * widths.dim * 2 / INSIDE_RATE


def _weights_seconds(held: float, sizes: tuple[int, int, int, int], seconds: float) -> float:
    """Return the seconds of weight all-gathers (bfloat16) and gradient reduce-scatters (float32) beyond computing.

    Weights are gathered twice per batch, or once in a pipeline, which keeps gathered weights for the backward pass.
    """
    data, tensor, context, pipeline = sizes
    shards = data * context
    rate = INSIDE_RATE if shards * tensor <= GPUS_IN_A_MACHINE else OUTSIDE_RATE
    sent = (shards - 1) / shards * held
    gathered = 2 * sent if pipeline > 1 else 4 * sent
    return max(0.0, (gathered + 4 * sent) / rate - seconds)


def _context_seconds(widths: LlamaConfig, training: Training, context: int, tensor: int) -> float:
    """Return the seconds of a layer's all-gather of keys and values and of the reduce-scatter of gradients."""
    rate = INSIDE_RATE if context * tensor <= GPUS_IN_A_MACHINE else OUTSIDE_RATE
    values = 2 * widths.num_kv_heads * widths.head_dim / tensor * training.batch_tokens
    return 2 * 2 * values * (context - 1) / context / rate
