"""A model of another program, from a path or from the Hugging Face hub -> a checkpoint, with receipts of fidelity.

Tensors are converted one at a time, so models larger than memory work. No code of the model runs; the chat template
of `puna.formats.chat` replaces the model's template, and `puna doctor` compares both.

Example:
    [import]
    hub = "meta-llama/Llama-3.2-1B-Instruct"
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator

from puna.conversion.exchange.hub import download
from puna.conversion.exchange.licences import copy_licences, counted
from puna.conversion.exchange.vocabulary import tokenizer_receipt
from puna.data.pieces import probe_pieces
from puna.formats.checkpoint.adapters.receipt import difference_receipt
from puna.formats.checkpoint.adapters.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.model.compare import Comparison, logits_of, require_finite
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts import licence
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import StageConfig, StoredDtype
from puna.pipeline.errors import CheckpointError
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.pipeline.run import Run
from puna.planning.plan.steps.facts import holds_tokenizer, network_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import weight_seconds

# Number of values of a tensor in one comparison.
CHUNK_VALUES = 2**24


class Config(StageConfig):
    """Settings of `puna import`: a model in Hugging Face, Meta or GGUF format, or a PEFT adapter with a base."""

    source: Path | None = Field(default=None, description="Model directory, .gguf file or PEFT adapter to import")
    hub: str | None = Field(default=None, description="Model OWNER/NAME on the Hugging Face hub, instead of source")
    revision: str = Field(default="main", description="Branch, tag or commit of the hub model")
    file: str = Field(default="", description="Single file to download from the hub, such as model.Q8_0.gguf")
    base: Path | None = Field(default=None, description="Base model of the adapter; the adapter is merged")
    dtype: StoredDtype = Field(
        default="stored", description="Dtype of the written weights; stored keeps the dtype of the source"
    )
    licence: str = Field(
        default="", description="Licence of the weights, such as llama3.1; needed without a licence file in the source"
    )

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Config":
        if (self.source is None) == (self.hub is None):
            raise ValueError("exactly one of source and hub")
        return self

    def stated_licence(self) -> str:
        """Return `licence`."""
        return self.licence

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of the conversion; a hub model has no estimate before the download."""
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
    """Write the checkpoint and receipts of weights and tokenizer, with the largest change of a weight."""
    path, commit = (
        download(config.hub, revision=config.revision, file=config.file) if config.hub else (config.source, "")
    )
    assert path is not None
    source, note = open_source(path, base=config.base)
    dtype = source.dtype if config.dtype == "stored" else torch_dtype(config.dtype)
    run.log(f"{path}: {source.format}, {source.config.num_parameters:,} parameters, {_name(source.dtype)}")
    if note:
        run.log(note)
    with run.progress(2 * source.config.num_parameters // 10**6, "writing, then reading back", unit="M weights") as bar:
        write_checkpoint(run.output, counted(source, bar), dtype=dtype)
        change = _largest_change(source, counted(Checkpoint.open(run.output).source(), bar))
    for model in filter(None, (path, config.base)):
        for folder in licence.folders_of(model):
            copy_licences(folder, run.output)
    if config.hub and not config.licence:
        run.licences |= licence.recognize(path) or {licence.UNKNOWN}
    if doubt := _doubt(config.licence, [folder for folder in (path, config.base) if folder]):
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
        "weights: unchanged"
        if change.value == 0
        else f"weights: rounded; the largest change is {change.value:.2g} of the tensor's largest weight"
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
    """Return a warning if `puna release` would refuse the model for unknown licence terms, else ""."""
    if stated and licence.identify(stated) not in licence.LICENCES:
        return f"licence {stated!a} is unknown, and puna release refuses it; known: {', '.join(licence.LICENCES)}"
    if stated or licence.UNKNOWN not in set[str]().union(*map(licences_of, folders)):
        return ""
    return "licence: unknown without a licence file, and puna release refuses unknown licences; give --licence llama3.1"


class Change(NamedTuple):
    """Largest change of a weight, as a share of the tensor's largest weight, and whether any dtype changed."""

    value: float
    is_rounded: bool


def _largest_change(before: Source, after: Source) -> Change:
    """Compare every weight.

    Raises:
        CheckpointError: A weight is NaN or infinite, or overflows the new dtype.
    """
    largest, is_rounded = 0.0, False
    for name in tensor_shapes(before.config):
        old, new = before.read(name).flatten(), after.read(name).flatten()
        change = peak = 0.0
        for ours, theirs in zip(old.split(CHUNK_VALUES), new.split(CHUNK_VALUES), strict=True):
            if not ours.isfinite().all():
                raise CheckpointError(f"tensor {name} holds NaN or infinity", hint="`puna doctor` lists such tensors")
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
