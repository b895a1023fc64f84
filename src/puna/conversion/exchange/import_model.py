"""A model in anybody's format, from a path or from the Hugging Face hub -> a checkpoint, with a receipt of its weights.

Tensors go through one at a time, so that the model's size does not matter. Nothing that came with the model is
executed; its chat template is replaced by the one of `puna.formats.chat`, which `puna doctor` compares.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from puna.conversion.exchange.hub import download
from puna.conversion.exchange.licences import carry_licences, watched
from puna.conversion.exchange.vocabulary import tokenizer_receipt
from puna.data.pieces import probe_pieces
from puna.formats.checkpoint.adapters.receipt import difference_receipt
from puna.formats.checkpoint.adapters.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.model.compare import Comparison, logits_of, require_finite
from puna.pipeline.artifacts import licence
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import CheckpointError
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.pipeline.run import Run
from puna.planning.plan.steps.facts import holds_tokenizer, network_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import weight_seconds

# Values of a tensor that are compared at once.
CHUNK_VALUES = 2**24


class Config(StageConfig):
    """Take a model in: Hugging Face, Meta, GGUF, or a PEFT adapter on its base."""

    source: Path | None = Field(default=None, description="directory, .gguf file or adapter")
    hub: str | None = Field(default=None, description="OWNER/NAME on the Hugging Face hub, in the place of source")
    revision: str = Field(default="main", description="branch, tag or commit on the hub")
    file: str = Field(default="", description="the one file to take from the hub, such as model.Q8_0.gguf")
    base: Path | None = Field(default=None, description="the model that an adapter belongs to")
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = Field(default="stored", description="dtype to write")
    licence: str = Field(default="", description="licence of the weights, where no file beside them says it")

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Config":
        if (self.source is None) == (self.hub is None):
            raise ValueError("either source or hub")
        return self

    def estimate(self, known: Known) -> Estimate:
        """Foresee the conversion; a model on the hub is known once it is downloaded."""
        if self.source is None:
            return Estimate()
        if known.sketch(self.source) is not None:
            widths, where = network_of(known, self.source), tokenizer_path(known, self.source)
        else:
            widths = open_source(self.source, base=self.base)[0].config
            where = next((path for path in (self.source, self.base) if path and holds_tokenizer(path)), None)
        seconds = STAGE_SECONDS + weight_seconds(widths, 4, 2)
        largest = 4 * widths.vocab_size * widths.dim
        return Estimate(seconds, PROCESS_BYTES + 3 * largest, Sketch(widths, where))


def run(config: Config, run: Run) -> None:
    """Write the checkpoint, read it back, and say how far the widest weight moved."""
    path, commit = (
        download(config.hub, revision=config.revision, file=config.file) if config.hub else (config.source, "")
    )
    assert path is not None
    source, note = open_source(path, base=config.base)
    dtype = source.dtype if config.dtype == "stored" else getattr(torch, config.dtype)
    run.log(f"{path}: {source.format}, {source.config.num_parameters:,} parameters, {_name(source.dtype)}")
    if note:
        run.log(note)
    with run.progress(2 * source.config.num_parameters // 10**6, "writing, then reading back", unit="M weights") as bar:
        write_checkpoint(run.output, watched(source, bar), dtype=dtype)
        change = _largest_change(source, watched(Checkpoint.open(run.output).source(), bar))
    for folder in filter(None, (path, config.base)):
        for place in licence.folders_of(folder):
            carry_licences(place, run.output)
    if config.hub and not config.licence:
        run.licences |= licence.recognize(path) or {licence.UNKNOWN}
    if doubt := _doubt(config.licence, [each for each in (path, config.base) if each]):
        run.log(doubt)
    origin = {"format": source.format, "dtype": _name(source.dtype), "hub": config.hub or "", "commit": commit}
    (run.output / "origin.json").write_text(json.dumps(origin | {"note": note}, indent=2) + "\n", encoding="utf-8")
    tolerance = torch.finfo(dtype).eps if change.is_rounded else 0.0
    details = {"unit": "greatest change of a weight / greatest weight of its tensor", "dtype": _name(dtype)}
    Receipt("weights_kept", path.name or str(path), change.value, tolerance, change.value <= tolerance, details).save(
        run.output
    )
    tokens = tokenizer_receipt(config.base or path, run.output)
    tokens.save(run.output)
    if not tokens.held:
        run.log(f"tokenizer: {tokens.value} tokens or texts differ from the source's")
    if config.base is not None:
        _prove_adapter(run, path, config.base)
    run.log(
        "weights: the same" if change.value == 0 else f"weights: rounded, by at most {change.value:.2g} of the greatest"
    )


def _prove_adapter(run: Run, path: Path, base: Path) -> None:
    """Compare what was written with the base and the adapter side by side, in the base's dtype."""
    source, result = open_source(base).source, Checkpoint.open(run.output)
    assert source.tokenizer
    model, written = load_source(source, source.dtype), result.load(source.dtype)
    reference, comparison = SideBySide(model, path), Comparison()
    for ids in probe_pieces(source.tokenizer, longest=source.config.max_context):
        comparison.add(require_finite(reference.logits(ids), path), logits_of(written, ids, run.output))
    parent = f"{path.name} beside {base.name}"
    receipt = difference_receipt(comparison, parent, written=result.dtype, computed=source.dtype, details={})
    receipt.save(run.output)
    run.log(
        f"largest difference from base and adapter side by side: {receipt.value:.2g} standard deviations of the "
        f"logits, expected at most {receipt.limit}"
    )


def _doubt(stated: str, folders: list[Path]) -> str:
    """Say, before anything is made of the model, for what terms `puna release` would refuse it; or nothing."""
    if stated and licence.identify(stated) not in licence.LICENCES:
        return (
            f"licence {stated!a} is none that Puna knows, and puna release stops at it: {', '.join(licence.LICENCES)}"
        )
    if stated or licence.UNKNOWN not in set[str]().union(*map(licences_of, folders)):
        return ""
    return "licence: unknown, no file beside the model tells it, and puna release stops at it; give --licence llama3.1"


class Change(NamedTuple):
    """The greatest change of a weight, as a share of the greatest of its tensor, and whether any was to be rounded."""

    value: float
    is_rounded: bool


def _largest_change(before: Source, after: Source) -> Change:
    """Compare every weight; raise CheckpointError where one is not finite."""
    largest, is_rounded = 0.0, False
    for name in tensor_shapes(before.config):
        old, new = before.read(name).flatten(), after.read(name).flatten()
        change = peak = 0.0
        for ours, theirs in zip(old.split(CHUNK_VALUES), new.split(CHUNK_VALUES), strict=True):
            if not ours.isfinite().all():
                raise CheckpointError(f"tensor {name} holds NaN or infinity", hint="`puna doctor` lists all that do")
            if not theirs.isfinite().all():
                raise CheckpointError(
                    f"tensor {name} does not fit into {_name(new.dtype)}", hint="Choose another dtype"
                )
            change = max(change, (ours.float() - theirs.float()).abs().max().item())
            peak = max(peak, ours.float().abs().max().item())
        largest = max(largest, change / peak if peak else change)
        is_rounded = is_rounded or old.dtype != new.dtype
    return Change(largest, is_rounded)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
