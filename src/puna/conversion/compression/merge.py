"""An adapter and its base -> a checkpoint of their own, with receipts against the two as they compute side by side.

A merged weight is rounded to the dtype that it is stored in, and with it what the adapter adds. Measured is what was
written: the checkpoint is read back from the disk first. Nothing is merged into quantized weights.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from puna.conversion.compression.cost import estimate_merging
from puna.data.pieces import cut_pieces, probe_pieces
from puna.formats.checkpoint.adapters.adapter import missing_hint, open_adapter
from puna.formats.checkpoint.adapters.folder import base_of, is_adapter
from puna.formats.checkpoint.adapters.merge import merge_notes, merged
from puna.formats.checkpoint.adapters.verification.receipt import difference_receipt
from puna.formats.checkpoint.adapters.verification.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.model.compare import Comparison, logits_of, require_finite
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run

Pieces = list[list[int]]
# A divergence that float32 itself gives.
NOISE = 1e-9


class Config(StageConfig):
    """Make one checkpoint of an adapter and the float weights that it was trained for."""

    adapter: Path = Field(description="adapter as PEFT writes it")
    base: Path = Field(description="checkpoint with float weights")
    data: list[Path] = Field(default=[], description="text to compare on; without it a sentence in each language")
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = Field(default="stored", description="dtype to write")
    tolerance_kl: float = Field(default=0.01, ge=0, description="most mean KL divergence, in nats a token")
    min_agreement: float = Field(default=0.97, ge=0, le=1, description="least share of equal first choices")
    min_kept: float = Field(default=0.9, ge=0, le=1, description="least share of the adapter's effect that is kept")
    num_tokens: int = Field(default=4096, ge=2, description="tokens to compare, at most")
    context: int = Field(default=1024, ge=2, description="tokens of a text that are read together, at most")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype to compare in")

    def estimate(self, known: Known) -> Estimate:
        """Foresee the merge and the comparison (compress/cost.py)."""
        return estimate_merging(known, self.base, num_tokens=self.num_tokens, precision=self.precision)

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences it inherits: the texts are only compared on."""
        return {"adapter": self.adapter, "base": self.base}


def run(config: Config, run: Run) -> None:
    """Write the merged checkpoint and its receipts; one that does not hold stops the stages after this one."""
    if not is_adapter(config.adapter):
        hint = missing_hint(config.adapter)
        raise ConfigError(f"adapter = {config.adapter}", expected="an adapter as PEFT writes it", hint=hint)
    adapter, base = open_adapter(config.adapter), Checkpoint.open(config.base)
    if base.is_quantized:
        raise _quantized_base(config.base)
    trained_beside = base_of(config.adapter)
    if trained_beside and artifact.content_hash(trained_beside) != artifact.content_hash(config.base):
        run.log(f"the adapter was trained beside {trained_beside}; what it learned may fit {config.base} less well")
    source = merged(base.source(), adapter)
    dtype = base.dtype if config.dtype == "stored" else getattr(torch, config.dtype)
    run.log(f"merging {len(adapter.parts)} tensors of an adapter into {config.base}")
    for note in merge_notes(adapter, base.config):
        run.log(note)
    write_checkpoint(run.output, source, dtype=dtype)
    tokenizer, longest = base.tokenizer(), min(config.context, base.config.max_context)
    if config.data:
        pieces = list(cut_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest))
    else:
        pieces = list(probe_pieces(tokenizer, longest=longest))
    _prove(config, run, base, pieces, dtype)


def _prove(config: Config, run: Run, base: Checkpoint, pieces: Pieces, written: torch.dtype) -> None:
    """Compare the base and the adapter side by side with what was written, and with the base alone.

    The reference reads the adapter's files by itself and shares no code with the merge.
    """
    dtype = getattr(torch, config.precision)
    model, result = base.load(dtype), Checkpoint.open(run.output).load(dtype)
    reference = SideBySide(model, config.adapter)
    comparison, effect, num_tokens = Comparison(), Comparison(), sum(map(len, pieces))
    with run.progress(num_tokens, "comparing", unit="tokens") as bar:
        for ids in pieces:
            side_by_side = require_finite(reference.logits(ids), config.adapter)
            comparison.add(side_by_side, logits_of(result, ids, run.output))
            # Of a vocabulary that the adapter has changed, the tokens of both count.
            alone = logits_of(model, ids, config.base)
            size = min(alone.shape[1], side_by_side.shape[1])
            effect.add(side_by_side[:, :size], alone[:, :size])
            bar.advance(len(ids))
    lost, whole = comparison.kl()["mean"], effect.kl()["mean"]
    kept = 1 - lost / max(whole, lost, NOISE)
    details = {"num_tokens": num_tokens, "data": "given" if config.data else "a sentence in each language"}
    parent = f"{config.adapter.name} beside {config.base.name}"
    measured = {"lost": lost, "effect": whole, "unit": "1 - KL(unmerged || merged) / KL(unmerged || base)"} | details
    receipts = (
        *comparison.receipts(
            parent, tolerance_kl=config.tolerance_kl, min_agreement=config.min_agreement, details=details
        ),
        difference_receipt(comparison, parent, written=written, computed=dtype, details=details),
        Receipt("adapter_kept", parent, kept, config.min_kept, kept >= config.min_kept, measured, is_least=True),
    )
    run.log(f"KL divergence a token: {whole:.2g} between base and adapter, {lost:.2g} between adapter and merged")
    for receipt in receipts:
        receipt.save(run.output)
        verdict = "holds" if receipt.held else "does not hold; stages that read this stop"
        run.log(f"{receipt.claim}: {receipt.value:.4g}, expected {receipt.limit}: {verdict}")


def _quantized_base(base: Path) -> ConfigError:
    """Say why nothing is merged into rounded weights, and into what instead."""
    parent = _float_parent(base)
    return ConfigError(
        f"base = {base} is quantized: what an adapter adds is mostly smaller than the steps between its weights, and "
        "would be lost where they are rounded again",
        expected="float weights",
        hint=f"Merge into {parent or 'the float checkpoint that it was made of'} and quantize what comes out; or merge "
        "nothing: `puna serve BASE --adapters FOLDER` runs the adapter beside the quantized base",
    )


def _float_parent(base: Path) -> Path | None:
    """Return the checkpoint that a quantized one was made of, if it is still where its manifest says."""
    inputs = artifact.read_manifest(base).inputs if artifact.is_artifact(base) else {}
    parent = base / inputs["checkpoint"]["path"] if "checkpoint" in inputs else None
    return parent.resolve() if parent and parent.is_dir() else None
