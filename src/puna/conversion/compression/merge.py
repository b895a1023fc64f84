"""A LoRA adapter and the base checkpoint -> one merged checkpoint, with receipts against the unmerged pair.

Merging rounds the adapter's update to the dtype of the stored weights. Receipts compare the written checkpoint, read
back from disk, with base and adapter side by side. A quantized base is refused.

Example:
    [merge]
    adapter = "build/sft"
    base = "llama-8b"
    data = ["held-out"]
"""

from pathlib import Path

import torch
from pydantic import Field

from puna.conversion.compression.cost import estimate_merging
from puna.data.pieces import held_out_pieces
from puna.formats.checkpoint.adapters.adapter import missing_hint, open_adapter
from puna.formats.checkpoint.adapters.folder import base_of, is_adapter
from puna.formats.checkpoint.adapters.merge import merge_notes, merged
from puna.formats.checkpoint.adapters.verification.receipt import difference_receipt
from puna.formats.checkpoint.adapters.verification.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.model.compare import Comparison, logits_of, require_finite
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.config import Precision, StageConfig, StoredDtype
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run

Pieces = list[list[int]]
# KL divergence of float32 rounding alone, in nats.
NOISE = 1e-9


class Config(StageConfig):
    """Settings of `puna merge`: adapter and base, dtype of the result, limits of the receipts."""

    adapter: Path = Field(description="Directory of a PEFT adapter to merge")
    base: Path = Field(description="Base checkpoint of the adapter, with float weights")
    data: list[Path] = Field(
        default=[], description="Held-out text for the receipts; default: a sentence in each language of Llama 3.1"
    )
    dtype: StoredDtype = Field(
        default="stored", description="Dtype of the merged weights; stored keeps the dtype of the base"
    )
    tolerance_kl: float = Field(
        default=0.01, ge=0, description="Largest allowed mean KL(unmerged, merged), in nats per token"
    )
    min_agreement: float = Field(
        default=0.97, ge=0, le=1, description="Smallest allowed share of tokens with an equal top-1 prediction"
    )
    min_kept: float = Field(
        default=0.9, ge=0, le=1, description="Smallest allowed share of the adapter's effect that survives rounding"
    )
    num_tokens: int = Field(default=4096, ge=2, description="Maximum number of tokens to compare")
    max_length: int = Field(
        default=1024,
        ge=2,
        serialization_alias="context",
        description="Maximum length of a text in tokens; longer texts are cut",
    )
    precision: Precision = Field(default="float32", description="Dtype of activations during the comparison")

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of merge and comparison (cost.py)."""
        return estimate_merging(known, self.base, num_tokens=self.num_tokens, precision=self.precision)

    def made_of(self) -> dict[str, Path]:
        """Name the inputs with licences that the merged model inherits: adapter and base, not the held-out text."""
        return {"adapter": self.adapter, "base": self.base}


def run(config: Config, run: Run) -> None:
    """Write the merged checkpoint and the receipts; a failed receipt stops later stages."""
    if not is_adapter(config.adapter):
        hint = missing_hint(config.adapter)
        raise ConfigError(f"adapter = {config.adapter}", expected="the directory of a PEFT adapter", hint=hint)
    adapter, base = open_adapter(config.adapter), Checkpoint.open(config.base)
    if base.is_quantized:
        raise _quantized_base(config.base)
    trained_on = base_of(config.adapter)
    if trained_on and artifact.content_hash(trained_on) != artifact.content_hash(config.base):
        run.log(f"the adapter was trained on {trained_on} and may fit {config.base} less well")
    source = merged(base.source(), adapter)
    dtype = base.dtype if config.dtype == "stored" else torch_dtype(config.dtype)
    run.log(f"merging {len(adapter.parts)} tensors of an adapter into {config.base}")
    for note in merge_notes(adapter, base.config):
        run.log(note)
    write_checkpoint(run.output, source, dtype=dtype)
    tokenizer, longest = base.tokenizer(), min(config.max_length, base.config.max_context)
    pieces = list(held_out_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest))
    _prove(config, run, base, pieces, dtype)


def _prove(config: Config, run: Run, base: Checkpoint, pieces: Pieces, written: torch.dtype) -> None:
    """Write receipts that compare logits of the unmerged pair with the merged checkpoint; a failed receipt is logged.

    KL(unmerged, merged) is the loss of merging. KL(unmerged, base) is the effect of the adapter, and `adapter_kept` is
    the share of the effect that survives the merge. The unmerged reference shares no code with the merge.
    """
    dtype = torch_dtype(config.precision)
    model, result = base.load(dtype), Checkpoint.open(run.output).load(dtype)
    reference = SideBySide(model, config.adapter)
    comparison, effect, num_tokens = Comparison(), Comparison(), sum(map(len, pieces))
    with run.progress(num_tokens, "comparing", unit="tokens") as bar:
        for ids in pieces:
            side_by_side = require_finite(reference.logits(ids), config.adapter)
            comparison.add(side_by_side, logits_of(result, ids, run.output))
            # An adapter may have grown the vocabulary: compare the tokens that both models have.
            alone = logits_of(model, ids, config.base)
            size = min(alone.shape[1], side_by_side.shape[1])
            effect.add(side_by_side[:, :size], alone[:, :size])
            bar.advance(len(ids))
    lost, whole = comparison.kl()["mean"], effect.kl()["mean"]
    kept_share = 1 - lost / max(whole, lost, NOISE)
    details = {"num_tokens": num_tokens, "data": "given" if config.data else "a sentence in each language"}
    parent = f"{config.adapter.name} beside {config.base.name}"
    measured = {"lost": lost, "effect": whole, "unit": "1 - KL(unmerged || merged) / KL(unmerged || base)"} | details
    receipts = (
        *comparison.receipts(
            parent, tolerance_kl=config.tolerance_kl, min_agreement=config.min_agreement, details=details
        ),
        difference_receipt(comparison, parent, written=written, computed=dtype, details=details),
        Receipt(
            "adapter_kept", parent, kept_share, config.min_kept, kept_share >= config.min_kept, measured, is_least=True
        ),
    )
    run.log(f"KL divergence per token: {whole:.2g} between base and adapter, {lost:.2g} between adapter and merged")
    for receipt in receipts:
        receipt.save(run.output)
        verdict = "holds" if receipt.held else "does not hold; later stages stop"
        run.log(f"{receipt.claim}: {receipt.value:.4g}, expected {receipt.limit}: {verdict}")


def _quantized_base(base: Path) -> ConfigError:
    """Return the error for a quantized base, with the float checkpoint to merge into as a hint."""
    parent = _float_parent(base)
    return ConfigError(
        f"base = {base} is quantized: most updates of an adapter are smaller than a quantization step; rounding "
        "again would lose them",
        expected="float weights",
        hint=f"Merge into {parent or 'the float checkpoint of this base'} and quantize the result; or keep the adapter "
        "apart: `puna serve BASE --adapters FOLDER` runs an adapter on a quantized base",
    )


def _float_parent(base: Path) -> Path | None:
    """Return the float parent of a quantized checkpoint, if the path in the manifest still exists."""
    inputs = artifact.read_manifest(base).inputs if artifact.is_artifact(base) else {}
    parent = base / inputs["checkpoint"]["path"] if "checkpoint" in inputs else None
    return parent.resolve() if parent and parent.is_dir() else None
