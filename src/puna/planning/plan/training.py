"""LlamaConfig of a Llama, a device and a training run -> bytes, FLOPs, seconds and dollars: arithmetic alone.

Knows how the loop of train/ computes and what it holds when; reads no files and prints nothing: plan.py does.

In the formulas: D dim, F hidden_dim, E head_dim, L layers, H query heads, K key/value heads, V vocabulary, T tokens of
a batch, M trained ones among them, C of these at once, R rank.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from puna.model.config import ADAPTED, LlamaConfig, layer_shapes
from puna.pipeline.config import Precision
from puna.planning.plan.arithmetic import FLOAT_BYTES, Machine, count_parameters, devices_for, fits_on, forward_flops

# Logits that training holds at once, and of these as float32, with so many values for each of them.
CHUNK_VALUES, TILE_VALUES, FLOATS_IN_TILE = 2**25, 2**20, 6


@dataclass(frozen=True)
class Training:
    """A training run, in the words of the training stages' settings.

    `lora_rank` freezes all but adapters of the `targets`. `lengths` are the examples of a batch, else all of `context`;
    `trained_tokens` those of a batch that count in the loss, else all. `values_per_logit`: float32 values that an
    objective holds for each logit beside the logits themselves.
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
        """The lengths of one batch's examples; of equal ones, the last may be shorter."""
        if self.lengths:
            return self.lengths
        length = min(self.context, self.batch_tokens)
        count, rest = divmod(self.batch_tokens, length)
        return (length,) * count + ((rest,) if rest else ())


@dataclass(frozen=True)
class TrainingPlan:
    """What training takes; the parts of the memory do not all stand at once, `peak_bytes` is the most that does."""

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
    """What a batch keeps for the backward pass, in bytes: a layer, the input of one, what comes after all."""

    layer: float
    entry: float
    last: float


def lora_parameters(widths: LlamaConfig, rank: int, targets: Collection[str] = ADAPTED) -> int:
    """Count two matrices of this rank beside each of the targets in every layer."""
    shapes = layer_shapes(widths)
    return rank * widths.num_layers * sum(sum(shapes[target]) for target in targets)


def activations_of(widths: LlamaConfig, training: Training) -> Activations:
    """Return what the forward pass over one batch keeps.

    A layer keeps 4 D + 2 H E + 2 K E + 3 F values a token (both residuals, the inputs of the products, both factors of
    SwiGLU, queries, keys, values). Beside frozen weights the inputs of products without an adapter are not kept.
    """
    value, tokens, dim = training.value_bytes, sum(training.example_lengths), widths.dim
    q_dim, kv_dim = widths.num_heads * widths.head_dim, widths.num_kv_heads * widths.head_dim
    values = 4 * dim + 2 * q_dim + 2 * kv_dim + 3 * widths.hidden_dim
    if training.lora_rank is not None:
        values += training.lora_rank * len(training.targets) - _unread_values(widths, training.targets)
    return Activations(tokens * value * values, tokens * value * dim, tokens * value * 2 * dim)


def _unread_values(widths: LlamaConfig, targets: Collection[str]) -> int:
    """Return the values a token that no backward pass needs where only adapters are trained."""
    parts = {target.split(".")[1] for target in targets}
    unread = 0
    for readers in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}):
        unread += 0 if parts & readers else widths.dim
    unread += 0 if "o_proj" in parts else widths.num_heads * widths.head_dim
    return unread + (0 if "down_proj" in parts else widths.hidden_dim)


class _Step(NamedTuple):
    """Bytes that a step holds at one time or another, beside weights and moments."""

    gradients: int
    rounded: int
    activations: int
    logits: int
    peak: int


def _follow_step(widths: LlamaConfig, training: Training) -> _Step:
    """Compare a step's full moments: where the loss is computed, and the backward pass at its beginning and end."""
    counted, is_full = count_parameters(widths), training.lora_rank is None
    trained, head_values = trained_parameters(widths, training), widths.vocab_size * widths.dim
    gradients = 4 * trained
    # The head's gradient is computed along with the loss.
    head = 4 * head_values if is_full else 0
    is_rounded = training.precision != "float32"
    # The layers' weights are rounded one at a time and not kept.
    rounded = 2 * trained if is_rounded and not is_full else 0
    head_copy = 2 * head_values if is_full and is_rounded else 0
    kept = activations_of(widths, training)
    layers, recomputed = rounded + widths.num_layers * kept.layer, 0.0
    if training.checkpoint_activations:
        layers, recomputed = widths.num_layers * kept.entry, kept.layer + rounded / widths.num_layers
    logits = _logits_bytes(widths, training, is_full=is_full)
    loss, begin = layers + kept.last + head_copy + head + logits, layers + head + recomputed
    # The gradient of tied embeddings comes in two parts, which stand beside their sum.
    end = 8 * counted.embeddings if is_full and widths.tie_embeddings else recomputed
    peak = gradients + max(loss, begin, end) if training.accumulate > 1 else max(loss, begin, gradients + end)
    activations = widths.num_layers * (kept.entry if recomputed else kept.layer) + recomputed + kept.last
    return _Step(gradients, round(rounded + head_copy), round(activations), logits, round(peak))


def _logits_bytes(widths: LlamaConfig, training: Training, *, is_full: bool) -> int:
    """Return what some tokens' logits take, and the selected tokens' hidden states with their gradients.

    The gradient of logits is written over them, and then multiplied with the hidden states for the head's.
    """
    value = training.value_bytes
    num_trained = training.batch_tokens if training.trained_tokens is None else training.trained_tokens
    num_logits = logits_at_once(widths, num_trained)
    tile = 4 * FLOATS_IN_TILE * min(num_logits, TILE_VALUES)
    product = value * widths.vocab_size * widths.dim if is_full else 0
    logits = (value + 4 * training.values_per_logit) * num_logits
    return logits + max(tile, product) + 2 * value * num_trained * widths.dim


def logits_at_once(widths: LlamaConfig, num_tokens: int) -> int:
    """Count the logits that are held while the loss of so many tokens is computed.

    Example:
        >>> logits_at_once(SIZES["1b"], num_tokens=4096)
        33474816
    """
    return min(num_tokens, max(1, CHUNK_VALUES // widths.vocab_size)) * widths.vocab_size


def trained_parameters(widths: LlamaConfig, training: Training) -> int:
    """Count what training changes: everything, or adapters."""
    if training.lora_rank is None:
        return count_parameters(widths).total
    return lora_parameters(widths, training.lora_rank, training.targets)


def plan_training(widths: LlamaConfig, training: Training, machine: Machine) -> TrainingPlan:
    """Compute what training takes: AdamW on float32 weights, or on float32 adapters beside bfloat16 weights."""
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
