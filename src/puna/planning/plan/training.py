"""Network sizes, a device and a training run -> bytes, FLOPs, seconds and dollars.

The memory estimate follows the training loop (training/loop) through a step.

In the formulas: D dim, F hidden_dim, E head_dim, L layers, H query heads, K key/value heads, V vocabulary, T tokens of
a batch, M trained tokens of the batch, C trained tokens of a chunk, R rank.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from puna.model.config import ADAPTED, LlamaConfig, layer_shapes
from puna.pipeline.config import Precision
from puna.planning.plan.arithmetic import FLOAT_BYTES, Machine, count_parameters, devices_for, fits_on, forward_flops

# Number of logits in a chunk, number in float32 (a tile), and float32 values per logit of a tile.
CHUNK_VALUES, TILE_VALUES, FLOATS_IN_TILE = 2**25, 2**20, 6


@dataclass(frozen=True)
class Training:
    """A training run, with the names of the training stages' settings.

    Args:
        tokens: Number of tokens in the whole run.
        lora_rank: Rank of LoRA adapters on the `targets`; None trains all weights.
        lengths: Lengths of the examples of a batch; without lengths all examples have `context` tokens.
        trained_tokens: Number of tokens of a batch in the loss; None counts all tokens.
        values_per_logit: Float32 values that the objective holds per logit, in addition to the logit.

    Example:
        >>> Training(tokens=10**9, context=2048).example_lengths
        (2048, 2048)
    """

    tokens: int
    context: int
    batch_tokens: int = 4096
    accumulate: int = 1
    precision: Precision = "bfloat16"
    lora_rank: int | None = None
    targets: Collection[str] = ADAPTED
    checkpoint_activations: bool = False
    lengths: tuple[int, ...] = ()
    trained_tokens: int | None = None
    values_per_logit: int = 0

    @property
    def value_bytes(self) -> int:
        return FLOAT_BYTES[self.precision]

    @property
    def example_lengths(self) -> tuple[int, ...]:
        """Lengths of the examples of a batch; the last example may be shorter."""
        if self.lengths:
            return self.lengths
        length = min(self.context, self.batch_tokens)
        count, rest = divmod(self.batch_tokens, length)
        return (length,) * count + ((rest,) if rest else ())


@dataclass(frozen=True)
class TrainingPlan:
    """Memory, speed and cost of training.

    `peak_bytes` is smaller than the sum of all parts, since not all parts are in memory at the same time.

    Example: see `plan_training`.
    """

    trained_parameters: int
    weights_bytes: int
    gradients_bytes: int
    moments_bytes: int
    rounded_weights_bytes: int
    activations_bytes: int
    logits_bytes: int
    peak_bytes: int
    num_devices_needed: int
    num_devices: int
    fits: bool
    flops_per_token: int
    total_flops: int
    tokens_per_second: float | None
    seconds: float | None
    usd: float | None


class Activations(NamedTuple):
    """Bytes of a batch's activations for the backward pass: of a layer, of a layer's input, behind the last layer."""

    layer: float
    entry: float
    last: float


def lora_parameters(widths: LlamaConfig, rank: int, targets: Collection[str] = ADAPTED) -> int:
    """Return the number of LoRA parameters: two matrices per target in every layer.

    Example:
        >>> lora_parameters(SIZES["1b"], rank=16)
        11272192
    """
    shapes = layer_shapes(widths)
    return rank * widths.num_layers * sum(sum(shapes[target]) for target in targets)


def activations_of(widths: LlamaConfig, training: Training) -> Activations:
    """Return the activations that the forward pass keeps for the backward pass of a batch.

    A layer keeps 4 D + 2 H E + 2 K E + 3 F values per token: both residuals, inputs of matrix products, both factors
    of SwiGLU, queries, keys, values. With frozen weights, inputs of products without an adapter are not kept.
    """
    value, tokens, dim = training.value_bytes, sum(training.example_lengths), widths.dim
    q_dim, kv_dim = widths.num_heads * widths.head_dim, widths.num_kv_heads * widths.head_dim
    values = 4 * dim + 2 * q_dim + 2 * kv_dim + 3 * widths.hidden_dim
    if training.lora_rank is not None:
        values += training.lora_rank * len(training.targets) - _unread_values(widths, training.targets)
    return Activations(tokens * value * values, tokens * value * dim, tokens * value * 2 * dim)


def _unread_values(widths: LlamaConfig, targets: Collection[str]) -> int:
    """Return the values per token that LoRA training does not keep: inputs of matrices without an adapter."""
    parts = {target.split(".")[1] for target in targets}
    unread = 0
    for readers in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}):
        unread += 0 if parts & readers else widths.dim
    unread += 0 if "o_proj" in parts else widths.num_heads * widths.head_dim
    return unread + (0 if "down_proj" in parts else widths.hidden_dim)


class _Step(NamedTuple):
    """Bytes of a step in addition to weights and moments; `peak` is the largest simultaneous sum."""

    gradients: int
    rounded: int
    activations: int
    logits: int
    peak: int


def _follow_step(widths: LlamaConfig, training: Training) -> _Step:
    """Compute memory at three points of a step: the loss, the beginning and the end of the backward pass."""
    counted, is_full = count_parameters(widths), training.lora_rank is None
    trained, head_values = trained_parameters(widths, training), widths.vocab_size * widths.dim
    gradients = 4 * trained
    # The gradient of the head is computed together with the loss.
    head = 4 * head_values if is_full else 0
    is_rounded = training.precision != "float32"
    # Layers round weights to the dtype of activations one at a time.
    rounded = 2 * trained if is_rounded and not is_full else 0
    head_copy = 2 * head_values if is_full and is_rounded else 0
    kept = activations_of(widths, training)
    layers, recomputed = rounded + widths.num_layers * kept.layer, 0.0
    if training.checkpoint_activations:
        layers, recomputed = widths.num_layers * kept.entry, kept.layer + rounded / widths.num_layers
    logits = _logits_bytes(widths, training, is_full=is_full)
    loss, begin = layers + kept.last + head_copy + head + logits, layers + head + recomputed
    # The gradient of tied embeddings has two parts, which are in memory together with the sum.
    end = 8 * counted.embeddings if is_full and widths.tie_embeddings else recomputed
    peak = gradients + max(loss, begin, end) if training.accumulate > 1 else max(loss, begin, gradients + end)
    activations = widths.num_layers * (kept.entry if recomputed else kept.layer) + recomputed + kept.last
    return _Step(gradients, round(rounded + head_copy), round(activations), logits, round(peak))


def _logits_bytes(widths: LlamaConfig, training: Training, *, is_full: bool) -> int:
    """Return the bytes of a chunk's logits and of the trained tokens' hidden states with gradients.

    Gradients overwrite logits, and their product with the hidden states is the gradient of the head.
    """
    value = training.value_bytes
    num_trained = training.batch_tokens if training.trained_tokens is None else training.trained_tokens
    num_logits = logits_at_once(widths, num_trained)
    tile = 4 * FLOATS_IN_TILE * min(num_logits, TILE_VALUES)
    product = value * widths.vocab_size * widths.dim if is_full else 0
    logits = (value + 4 * training.values_per_logit) * num_logits
    return logits + max(tile, product) + 2 * value * num_trained * widths.dim


def logits_at_once(widths: LlamaConfig, num_tokens: int) -> int:
    """Return the number of logits of a chunk in a loss over `num_tokens` trained tokens.

    Example:
        >>> logits_at_once(SIZES["1b"], num_tokens=4096)
        33474816
    """
    return min(num_tokens, max(1, CHUNK_VALUES // widths.vocab_size)) * widths.vocab_size


def trained_parameters(widths: LlamaConfig, training: Training) -> int:
    """Return the number of trained parameters: all parameters, or LoRA parameters."""
    if training.lora_rank is None:
        return count_parameters(widths).total
    return lora_parameters(widths, training.lora_rank, training.targets)


def plan_training(widths: LlamaConfig, training: Training, machine: Machine) -> TrainingPlan:
    """Compute memory, speed and cost of training: AdamW on float32 weights, or float32 adapters on frozen weights."""
    is_full, trained = training.lora_rank is None, trained_parameters(widths, training)
    weights = 4 * trained + (0 if is_full else training.value_bytes * count_parameters(widths).total)
    step = _follow_step(widths, training)
    peak = weights + 8 * trained + step.peak
    needed = devices_for(peak, machine)
    count = machine.num_devices or needed
    lengths = training.example_lengths
    keys = sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)
    passes = (3 if is_full else 2) + training.checkpoint_activations
    flops = round(forward_flops(widths, keys) * passes)
    fits = fits_on(peak, machine)
    seconds = machine.seconds(flops * training.tokens, count) if fits or not machine.num_devices else None
    return TrainingPlan(
        trained_parameters=trained,
        weights_bytes=weights,
        gradients_bytes=step.gradients,
        moments_bytes=8 * trained,
        rounded_weights_bytes=step.rounded,
        activations_bytes=step.activations,
        logits_bytes=step.logits,
        peak_bytes=peak,
        num_devices_needed=needed,
        num_devices=count,
        fits=fits,
        flops_per_token=flops,
        total_flops=flops * training.tokens,
        tokens_per_second=training.tokens / seconds if seconds else None,
        seconds=seconds,
        usd=machine.usd(seconds, count),
    )
