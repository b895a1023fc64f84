"""A checkpoint -> a smaller one with its most needed layers, heads and channels, and what that cost.

What is needed is measured on calibration text, what it cost on other text, after each kind of cut and at the end on
what was written. Trains nothing: a pruned model is where a student begins, which `distill` then teaches.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator

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
from puna.data.pieces import cut_examples
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.source import Source
from puna.model.config import LlamaConfig
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.planning.plan.steps.facts import network_of

TYINGS: tuple[Tying, ...] = ("embeddings", "head", "mean")


class Config(StageConfig):
    """What shall be left, how the most needed parts are found, and on what the loss is measured."""

    checkpoint: Path = Field(description="checkpoint with float weights")
    data: list[Path] = Field(min_length=1, description="documents and conversations that it was not trained on")
    calibration: list[Path] = Field(min_length=1, description="documents and conversations that show what is needed")
    size: str | Shape | None = Field(default=None, description="the shape of a published size, or a table of widths")
    parameters: int | str | None = Field(default=None, description='how many parameters at most: 1_000_000, "1.2b"')
    heads: HeadCut = Field(
        default="groups",
        description="with parameters: key/value heads go with all of theirs, or each loses query heads",
    )
    multiple: int = Field(default=64, ge=2, description="with parameters: what widths are a multiple of")
    depth: Depth = Field(
        default="divergence", description="layers by how predictions move without them, or how they turn the stream"
    )
    width: Width = Field(
        default="contribution", description="heads and channels by what they add, or what the rest can't make up for"
    )
    stream: Literal["rotation", "channels"] = Field(
        default="rotation", description="a narrower model: turn the residual stream first, or keep channels as they are"
    )
    refit: bool = Field(default=True, description="fit what the layers write to the parent's, by least squares")
    calibration_tokens: int = Field(default=32_768, ge=1, description="tokens to calibrate on, at most")
    num_tokens: int = Field(default=4096, ge=2, description="tokens to measure the loss on")
    context: int = Field(default=1024, ge=2, description="tokens of a text that are read together, at most")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype of the activations")
    tolerance_perplexity: float | None = Field(
        default=None, ge=0, description="most share that perplexity may grow by; without it nothing stops"
    )

    @model_validator(mode="after")
    def _has_one_target(self) -> "Config":
        if (self.size is None) == (self.parameters is None):
            raise ValueError("exactly one of 'size' (a shape) and 'parameters' (a number)")
        if self.parameters is None and self.model_fields_set & {"heads", "multiple"}:
            raise ValueError("'heads' and 'multiple' only with 'parameters': a size says both itself")
        if {path.resolve() for path in self.data} & {path.resolve() for path in self.calibration}:
            raise ValueError("data and calibration name the same path: measure on other text than you calibrate on")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `precision` names."""
        return getattr(torch, self.precision)

    def estimate(self, known: Known) -> Estimate:
        """Foresee the passes over the texts (compress/cost.py)."""
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
        """Name the inputs whose licences it inherits: on `data` it is only measured."""
        return {name: path for name, path in self.inputs().items() if not name.startswith("data")}


class Origin(NamedTuple):
    """What is cut: the parent, or where the width shrinks the parent with its stream turned."""

    source: Source
    rotated: Source

    def of(self, size: LlamaConfig) -> Source:
        """Return which of them a model of this size is cut from."""
        return self.rotated if size.dim < self.source.config.dim else self.source


def run(config: Config, run: Run) -> None:
    """Write the pruned checkpoint, report.md with its picture, importance.json and a receipt of the perplexity."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized:
        hint = "Prune first, train what is left, then quantize"
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
    steps.append(Step(name, target, _score(run, reference, written, "what was written")))
    _conclude(config, run, importance, selection, steps, num_counted=len(reference.targets_M))


def _texts(config: Config, run: Run, parent: Checkpoint) -> tuple[Texts, Texts]:
    """Return what to calibrate and what to measure on; what is in both counts as the latter."""
    tokenizer, longest = parent.tokenizer(), min(config.context, parent.config.max_context)
    data = list(cut_examples(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest))
    known = {tuple(text.ids) for text in data}
    texts = list(cut_examples(config.calibration, tokenizer, num_tokens=config.calibration_tokens, longest=longest))
    left = [text for text in texts if tuple(text.ids) not in known]
    if len(left) < len(texts):
        run.log(f"{len(texts) - len(left):,} of {len(texts):,} calibration texts are also measured on: left out")
    for name, chosen in (("calibration", left), ("data", data)):
        if not any(any(text.mask[1:]) for text in chosen):
            raise ConfigError(f"{name} leaves no token to foresee", expected="documents, or answers of an assistant")
    num_tokens = sum(len(text.ids) for text in left)
    run.log(f"calibrating on {num_tokens:,} tokens of {len(left):,} texts")
    return left, data


def _measure(config: Config, run: Run, source: Source, texts: Texts, *, is_narrower: bool) -> tuple[Importance, Origin]:
    """Return how much each part is needed and what to cut from; a turned stream has channels of its own."""
    layers = source.config.num_layers
    # Without one layer after the other, the texts go through all the layers behind.
    passes = 2 * layers + layers * (layers + 1) // 2 if config.depth == "divergence" else layers
    with run.progress(passes, "measuring", unit="layer passes") as bar:
        importance = measure_importance(source, texts, config.dtype, bar, width=config.width, depth=config.depth)
    if not is_narrower or config.stream == "channels":
        return importance, Origin(source, source)
    rotated = rotate(source, principal_directions(importance.stream_DD))
    with run.progress(layers, "measuring the turned stream", unit="layers") as bar:
        found = measure_importance(rotated, texts, config.dtype, bar, width="contribution", depth="influence")
    return replace(importance, dim_D=found.dim_D, energies=found.energies), Origin(source, rotated)


def _reference(config: Config, run: Run, source: Source, texts: Texts) -> Reference:
    with run.progress(source.config.num_layers, "what the parent foresees", unit="layers") as bar:
        return Reference(source, texts, config.dtype, bar)


def _score(run: Run, reference: Reference, source: Source, description: str) -> Scores:
    with run.progress(source.config.num_layers, description, unit="layers") as bar:
        return reference.score(source, bar)


def _search(config: Config, run: Run, origin: Origin, importance: Importance, texts: Texts) -> LlamaConfig:
    """Return the least harmful sizes for the number of parameters, by what cuts of one kind alone cost."""
    assert config.parameters is not None
    most, parent = parse_count(config.parameters), origin.source.config
    require_reachable(parent, most, config.heads, config.multiple)
    reference = _reference(config, run, origin.source, texts)

    def cost(size: LlamaConfig) -> float:
        sliced = slice_source(origin.of(size), select(importance, parent, size))
        return _score(run, reference, sliced, f"a cut to {size.num_parameters:,}").divergence

    curves = measure_curves(parent, config.heads, config.multiple, cost)
    target, predicted = best_size(parent, most, config.heads, config.multiple, curves)
    for kind, curve in curves.items():
        run.log(f"{kind}: " + ", ".join(f"{count:,} cost {cost:.3f}" for count, cost in reversed(curve)))
    run.log(
        f"of {most:,} parameters {target.num_parameters:,} are used; these cuts alone add up to {predicted:.3f} nats"
    )
    return target


def _choose_tying(
    config: Config, run: Run, origin: Origin, importance: Importance, target: LlamaConfig, texts: Texts
) -> Tying:
    """Return what the shared table is made of: that with which the cut model stays nearest to its parent."""
    source = origin.of(target)
    if source.config.tie_embeddings or not target.tie_embeddings:
        return "embeddings"
    reference, costs = _reference(config, run, origin.source, texts), dict[Tying, float]()
    for tying in TYINGS:
        sliced = slice_source(source, select(importance, source.config, target, tying))
        costs[tying] = _score(run, reference, sliced, f"one table from {tying}").divergence
    run.log("one table: " + ", ".join(f"{tying} {cost:.3f}" for tying, cost in costs.items()))
    return min(costs, key=lambda tying: costs[tying])


def _measure_steps(
    run: Run, reference: Reference, origin: Origin, importance: Importance, target: LlamaConfig, tying: Tying
) -> Iterator[Step]:
    """Yield the model before and after each kind of cut, each on top of those before it."""
    parent = reference.parent
    yield Step("parent", parent.config, _score(run, reference, parent, "parent"))
    for kind, size in pruning_steps(parent.config, target):
        sliced = slice_source(origin.of(size), select(importance, parent.config, size, tying))
        yield Step(kind, size, _score(run, reference, sliced, f"cut: {kind}"))


def _refit(config: Config, run: Run, source: Source, selection: Selection, texts: Texts) -> dict[str, torch.Tensor]:
    with run.progress(len(selection.layers), "fitting what is left", unit="layers") as bar:
        return refit(source, selection, texts, config.dtype, bar)


def _conclude(
    config: Config, run: Run, importance: Importance, selection: Selection, steps: list[Step], *, num_counted: int
) -> None:
    """Write the report and the receipt: what was measured, which stops nothing unless a tolerance was given."""
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
        told = f"perplexity {step.perplexity:.4g}, KL {step.scores.divergence:.4f}"
        run.log(f"{step.name}: {step.config.num_parameters:,} parameters, {told}")
    if limit is not None and growth > limit:
        run.log(
            f"perplexity does not hold: grew by {growth:.4g}, expected at most {limit:.4g}; stages that read this stop"
        )
