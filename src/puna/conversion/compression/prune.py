"""A checkpoint -> a smaller checkpoint with the most important layers, heads and channels, and the loss in quality.

Importance is measured on calibration text, the loss in quality on held-out text: after every pruning step, and at the
end on the checkpoint read back from disk. Pruning trains nothing; `puna distill` trains the pruned model afterwards.

Example:
    [prune]
    checkpoint = "llama-8b"
    data = ["held-out"]
    calibration = ["corpus"]
    parameters = "3b"
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from puna.conversion.compression.calibration_texts import calibration_texts
from puna.conversion.compression.cost import estimate_pruning, likely_size
from puna.conversion.compression.pruning.importance import Depth, Importance, Width, measure_importance
from puna.conversion.compression.pruning.layerwise import Reference, Scores, Texts
from puna.conversion.compression.pruning.refit import refit
from puna.conversion.compression.pruning.report import Step, write_report
from puna.conversion.compression.pruning.rotate import principal_directions, rotate
from puna.conversion.compression.pruning.selection import pruning_steps, select
from puna.conversion.compression.pruning.slicing import Selection, Tying, slice_source
from puna.conversion.compression.pruning.targets import (
    HeadCut,
    Shape,
    best_size,
    measure_curves,
    parse_count,
    require_reachable,
    target_size,
)
from puna.conversion.compression.settings import require_separate_texts
from puna.data.pieces import cut_examples
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.source import Source
from puna.model.config import LlamaConfig
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.config import Precision, StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.planning.plan.steps.facts import network_of

TYINGS: tuple[Tying, ...] = ("embeddings", "head", "mean")


class Config(StageConfig):
    """Settings of `puna prune`: the target size, the importance criteria and the texts of the two measurements."""

    checkpoint: Path = Field(description="Checkpoint to prune, with float weights")
    data: list[Path] = Field(min_length=1, description="Held-out documents and conversations, to measure loss on")
    calibration: list[Path] = Field(min_length=1, description="Documents and conversations to measure importance on")
    size: str | Shape | None = Field(
        default=None, description="Target size: a published size such as 1b, or a table of widths"
    )
    parameters: int | str | None = Field(
        default=None, description='Budget of parameters, instead of size: 1_000_000 or "1.2b"'
    )
    heads: HeadCut = Field(
        default="groups",
        description="Heads that a search removes: key/value heads with their query heads, or query heads (within)",
    )
    multiple: int = Field(default=64, ge=2, description="Divisor of all widths that a search with parameters considers")
    depth: Depth = Field(
        default="divergence",
        description="Importance of a layer: KL divergence without the layer, or 1 - cosine of its input and output",
    )
    width: Width = Field(
        default="contribution",
        description="Importance of heads and channels: size of their output, or optimal brain surgeon (elimination)",
    )
    stream: Literal["rotation", "channels"] = Field(
        default="rotation",
        description="Channels of a narrower model: principal directions of the residual stream, or original channels",
    )
    refit: bool = Field(
        default=True, description="Fit output matrices to the parent's residual stream by least squares"
    )
    calibration_tokens: int = Field(default=32_768, ge=1, description="Maximum number of calibration tokens")
    num_tokens: int = Field(default=4096, ge=2, description="Number of held-out tokens to measure loss on")
    max_length: int = Field(
        default=1024,
        ge=2,
        serialization_alias="context",
        description="Maximum length of a text in tokens; longer texts are cut",
    )
    precision: Precision = Field(default="float32", description="Dtype of activations during measurements")
    tolerance_perplexity: float | None = Field(
        default=None,
        ge=0,
        description="Largest allowed relative growth of perplexity: 0.1 is 10%; without a value any growth passes",
    )

    @model_validator(mode="after")
    def _has_one_target(self) -> "Config":
        if (self.size is None) == (self.parameters is None):
            raise ValueError("exactly one of 'size' (a shape) and 'parameters' (a number)")
        if self.parameters is None and self.model_fields_set & {"heads", "multiple"}:
            raise ValueError("'heads' and 'multiple' only with 'parameters': a size sets all widths")
        require_separate_texts(self.data, self.calibration)
        return self

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of the passes over the two texts (cost.py)."""
        parent = network_of(known, self.checkpoint)
        if self.parameters is not None:
            target = likely_size(parent, self.parameters, self.heads, self.multiple)
        else:
            assert self.size is not None
            target = target_size(parent, self.size)
        return estimate_pruning(
            known,
            self.checkpoint,
            target,
            calibration_tokens=self.calibration_tokens,
            num_tokens=self.num_tokens,
            precision=self.precision,
            is_by_divergence=self.depth == "divergence",
            is_search=self.parameters is not None,
            is_refitted=self.refit,
        )

    def made_of(self) -> dict[str, Path]:
        """Name the inputs with licences for the pruned model to inherit: all but the held-out `data`."""
        return {name: path for name, path in self.inputs().items() if not name.startswith("data")}


class Origin(NamedTuple):
    """The parent network, and the same network with a rotated residual stream for targets of a smaller width."""

    source: Source
    rotated: Source

    def of(self, size: LlamaConfig) -> Source:
        """Return the network to slice a model of `size` from."""
        return self.rotated if size.dim < self.source.config.dim else self.source


def run(config: Config, run: Run) -> None:
    """Write the pruned checkpoint, report.md with a picture, importance.json and a receipt of the perplexity."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized:
        hint = "Prune the float checkpoint, train the pruned model, then quantize"
        raise ConfigError(f"checkpoint = {config.checkpoint} is quantized", expected="float weights", hint=hint)
    target = target_size(parent.config, config.size) if config.size is not None else None
    source = parent.source()
    calibration, data = _texts(config, run, parent)
    is_narrower = target is None or target.dim < parent.config.dim
    importance, origin = _measure(config, run, source, calibration, is_narrower=is_narrower)
    target = target or _search(config, run, origin, importance, calibration)
    tying = _choose_tying(config, run, origin, importance, target, calibration)
    reference = _reference(config, run, source, data)
    steps = list(_measure_steps(run, reference, origin, importance, target, tying))
    selection = select(importance, parent.config, target, tying)
    is_refitted = config.refit and target != parent.config
    fitted = _refit(config, run, origin.of(target), selection, calibration) if is_refitted else {}
    write_checkpoint(run.output, slice_source(origin.of(target), selection, fitted))
    written = Checkpoint.open(run.output).source()
    name = "refit, as written" if is_refitted else "as written"
    steps.append(Step(name, target, _score(run, reference, written, "the written checkpoint")))
    _conclude(config, run, importance, selection, steps, num_counted=len(reference.targets_M))


def _texts(config: Config, run: Run, parent: Checkpoint) -> tuple[Texts, Texts]:
    """Return calibration texts and held-out texts; a shared text counts as held-out."""
    tokenizer, max_length = parent.tokenizer(), min(config.max_length, parent.config.max_context)
    data = list(cut_examples(config.data, tokenizer, num_tokens=config.num_tokens, longest=max_length))
    calibration = calibration_texts(
        config.calibration,
        tokenizer,
        run,
        held_out=[text.ids for text in data],
        num_tokens=config.calibration_tokens,
        max_length=max_length,
    )
    for name, texts in (("calibration", calibration), ("data", data)):
        if not any(any(text.mask[1:]) for text in texts):
            raise ConfigError(f"{name} has no token to predict", expected="documents, or answers of an assistant")
    return calibration, data


def _measure(config: Config, run: Run, source: Source, texts: Texts, *, is_narrower: bool) -> tuple[Importance, Origin]:
    """Return the importance of all parts and the networks to slice; a rotated stream has separate channels."""
    layers = source.config.num_layers
    # A model without layer i runs the texts through the layers after i again.
    passes = 2 * layers + layers * (layers + 1) // 2 if config.depth == "divergence" else layers
    with run.progress(passes, "measuring", unit="layer passes") as bar:
        importance = measure_importance(
            source, texts, torch_dtype(config.precision), bar, width=config.width, depth=config.depth
        )
    if not is_narrower or config.stream == "channels":
        return importance, Origin(source, source)
    rotated = rotate(source, principal_directions(importance.stream_DD))
    with run.progress(layers, "measuring the rotated stream", unit="layers") as bar:
        rotated_scores = measure_importance(
            rotated, texts, torch_dtype(config.precision), bar, width="contribution", depth="influence"
        )
    return replace(importance, dim_D=rotated_scores.dim_D, energies=rotated_scores.energies), Origin(source, rotated)


def _reference(config: Config, run: Run, source: Source, texts: Texts) -> Reference:
    with run.progress(source.config.num_layers, "predictions of the parent", unit="layers") as bar:
        return Reference(source, texts, torch_dtype(config.precision), bar)


def _score(run: Run, reference: Reference, source: Source, description: str) -> Scores:
    with run.progress(source.config.num_layers, description, unit="layers") as bar:
        return reference.score(source, bar)


def _search(config: Config, run: Run, origin: Origin, importance: Importance, texts: Texts) -> LlamaConfig:
    """Return the sizes within the parameter budget with the lowest predicted KL divergence.

    The prediction adds up the divergences of networks pruned in a single kind.
    """
    assert config.parameters is not None
    most, parent = parse_count(config.parameters), origin.source.config
    require_reachable(parent, most, config.heads, config.multiple)
    reference = _reference(config, run, origin.source, texts)

    def cost(size: LlamaConfig) -> float:
        sliced = slice_source(origin.of(size), select(importance, parent, size))
        return _score(run, reference, sliced, f"pruned to {size.num_parameters:,}").divergence

    curves = measure_curves(parent, config.heads, config.multiple, cost)
    target, predicted = best_size(parent, most, config.heads, config.multiple, curves)
    for kind, curve in curves.items():
        run.log(f"{kind}: " + ", ".join(f"{count:,} cost {cost:.3f}" for count, cost in reversed(curve)))
    run.log(f"{target.num_parameters:,} of {most:,} parameters used; predicted KL divergence: {predicted:.3f} nats")
    return target


def _choose_tying(
    config: Config, run: Run, origin: Origin, importance: Importance, target: LlamaConfig, texts: Texts
) -> Tying:
    """Return the source of a shared embedding table: the source with the lowest KL divergence from the parent."""
    source = origin.of(target)
    if source.config.tie_embeddings or not target.tie_embeddings:
        return "embeddings"
    reference, costs = _reference(config, run, origin.source, texts), dict[Tying, float]()
    for tying in TYINGS:
        sliced = slice_source(source, select(importance, source.config, target, tying))
        costs[tying] = _score(run, reference, sliced, f"tied table from {tying}").divergence
    run.log("tied table: " + ", ".join(f"{tying} {cost:.3f}" for tying, cost in costs.items()))
    return min(costs, key=lambda tying: costs[tying])


def _measure_steps(
    run: Run, reference: Reference, origin: Origin, importance: Importance, target: LlamaConfig, tying: Tying
) -> Iterator[Step]:
    """Yield the scores of the parent and of the model after every pruning step; steps are cumulative."""
    parent = reference.parent
    yield Step("parent", parent.config, _score(run, reference, parent, "parent"))
    for kind, size in pruning_steps(parent.config, target):
        sliced = slice_source(origin.of(size), select(importance, parent.config, size, tying))
        yield Step(kind, size, _score(run, reference, sliced, f"pruned: {kind}"))


def _refit(config: Config, run: Run, source: Source, selection: Selection, texts: Texts) -> dict[str, torch.Tensor]:
    with run.progress(len(selection.layers), "refitting", unit="layers") as bar:
        return refit(source, selection, texts, torch_dtype(config.precision), bar)


def _conclude(
    config: Config, run: Run, importance: Importance, selection: Selection, steps: list[Step], *, num_counted: int
) -> None:
    """Write the report and the perplexity receipt; without a tolerance the receipt holds."""
    if not write_report(run.output, importance, selection, steps):
        run.log("no prune.png: matplotlib is not installed")
    before, after = steps[0], steps[-1]
    growth = after.perplexity / before.perplexity - 1
    limit = config.tolerance_perplexity
    details = {
        "before": before.perplexity,
        "after": after.perplexity,
        "unit": "share by which the perplexity of the text grew, before any training",
        "num_tokens": num_counted,
        "parameters_before": before.config.num_parameters,
        "parameters_after": after.config.num_parameters,
        "steps": {step.name: asdict(step.scores) for step in steps},
    }
    Receipt("perplexity", config.checkpoint.name, growth, limit, limit is None or growth <= limit, details).save(
        run.output
    )
    for step in steps:
        measured = f"perplexity {step.perplexity:.4g}, KL {step.scores.divergence:.4f}"
        run.log(f"{step.name}: {step.config.num_parameters:,} parameters, {measured}")
    if limit is not None and growth > limit:
        run.log(f"perplexity does not hold: grew by {growth:.4g}, expected at most {limit:.4g}; later stages stop")
