"""Settings of prune, quantize and merge -> time and memory: forward passes over text, and weights read and written."""

from pathlib import Path

from puna.conversion.compression.pruning.targets import HeadCut, best_size, counts, parse_count, require_reachable
from puna.model.config import LlamaConfig
from puna.pipeline.config import Precision
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.planning.plan.steps.facts import network_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import forward_seconds, weight_seconds

# Assumed lengths of the texts in one batch, in tokens.
BATCH = (256,) * 8
# Passes over the calibration text: the watched pass counts twice, a rotated stream again; two for the refit.
WATCHED_PASSES, REFIT_PASSES, GPTQ_PASSES = 2, 2, 3
# A search over sizes reads the text for three cuts of four kinds; the measurement at the end for each kind of cut.
SEARCH_PASSES, MEASURE_PASSES, TYING_PASSES = 13, 7, 4


def reading_seconds(widths: LlamaConfig, num_tokens: float, precision: Precision) -> float:
    """Return the seconds of a forward pass over `num_tokens` tokens."""
    return forward_seconds(widths, BATCH, precision) * num_tokens / sum(BATCH)


def estimate_pruning(
    known: Known, checkpoint: Path, target: LlamaConfig, *,
    calibration_tokens: int, num_tokens: int, precision: Precision,
    is_by_divergence: bool, is_search: bool, is_refitted: bool,
) -> Estimate:  # fmt: skip
    """Estimate a pruning: passes over the calibration text, including passes that leave out one layer at a time."""
    widths = network_of(known, checkpoint)
    passes = WATCHED_PASSES * (2 if target.dim < widths.dim else 1)
    passes += 1 + widths.num_layers / 2 if is_by_divergence else 0
    passes += SEARCH_PASSES if is_search else 0
    passes += TYING_PASSES if target.tie_embeddings and not widths.tie_embeddings else 0
    passes += REFIT_PASSES if is_refitted else 0
    tokens = passes * calibration_tokens + MEASURE_PASSES * num_tokens
    seconds = STAGE_SECONDS + reading_seconds(widths, tokens, precision) + weight_seconds(widths, 2)
    layer = (widths.num_parameters - widths.vocab_size * widths.dim) // widths.num_layers
    memory = PROCESS_BYTES + 4 * (widths.num_parameters + 2 * layer) + 16 * calibration_tokens * widths.dim
    sketch = Sketch(target, tokenizer_path(known, checkpoint))
    return Estimate(seconds, memory, sketch, note=f"{round(passes)} passes over {calibration_tokens:,} tokens")


def likely_size(parent: LlamaConfig, parameters: int | str, heads: HeadCut, multiple: int) -> LlamaConfig:
    """Return sizes with at most `parameters` parameters, as a search would choose if all cuts cost alike.

    Example:
        >>> likely_size(SIZES["1b"], "500M", "groups", 64).num_parameters < 500_000_000
        True
    """
    most = parse_count(parameters)
    require_reachable(parent, most, heads, multiple)
    curves = {
        kind: [(count, 1 - count / steps[-1]) for count in steps]
        for kind, steps in counts(parent, heads, multiple).items()
    }
    return best_size(parent, most, heads, multiple, curves)[0]


def estimate_quantizing(
    known: Known, checkpoint: Path, *, calibration_tokens: int, num_tokens: int, precision: Precision
) -> Estimate:
    """Estimate a quantization: passes for the Hessians and through the rounded layers, then a comparison."""
    widths = network_of(known, checkpoint)
    tokens = GPTQ_PASSES * calibration_tokens + 2 * num_tokens
    seconds = STAGE_SECONDS + reading_seconds(widths, tokens, precision) + weight_seconds(widths, 3)
    memory = PROCESS_BYTES + 2 * 4 * widths.num_parameters + 16 * calibration_tokens * widths.dim
    return Estimate(seconds, memory, Sketch(widths, tokenizer_path(known, checkpoint)))


def estimate_merging(known: Known, base: Path, *, num_tokens: int, precision: Precision) -> Estimate:
    """Estimate a merge: the weights are written, then three networks read the same text."""
    widths = network_of(known, base)
    seconds = STAGE_SECONDS + reading_seconds(widths, 3 * num_tokens, precision) + weight_seconds(widths, 4)
    memory = PROCESS_BYTES + 2 * 4 * widths.num_parameters
    return Estimate(seconds, memory, Sketch(widths, tokenizer_path(known, base)))
