"""A checkpoint -> the same network in int8, with receipts of how far its predictions moved on held-out text.

Weights are rounded to int8 per output channel without calibration; embeddings, norms and lm_head stay as they are.
What is measured is what was written: the quantized checkpoint is read back from the disk first.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from puna.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.config import StageConfig
from puna.data.pieces import cut_pieces
from puna.errors import ConfigError
from puna.model.compare import Comparison, logits_of
from puna.model.quantized import swap_linears
from puna.run import Run


class Config(StageConfig):
    """Round a checkpoint's weights to int8 and measure what that changes."""

    checkpoint: Path = Field(description="checkpoint with float weights")
    data: list[Path] = Field(min_length=1, description="documents and conversations that it was not trained on")
    tolerance_kl: float = Field(default=0.02, ge=0, description="most mean KL divergence, in nats a token")
    min_agreement: float = Field(default=0.95, ge=0, le=1, description="least share of equal first choices")
    num_tokens: int = Field(default=4096, ge=1, description="tokens to compare")
    context: int = Field(default=1024, ge=2, description="tokens of a text that are read together, at most")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype to compare in")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `precision` names."""
        return getattr(torch, self.precision)

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences it inherits: the texts are only compared on."""
        return {"checkpoint": self.checkpoint}


def run(config: Config, run: Run) -> None:
    """Write the int8 checkpoint and its receipts; a receipt that does not hold stops the stages after this one."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized:
        raise ConfigError(f"checkpoint = {config.checkpoint} is quantized", expected="float weights")
    tokenizer = parent.tokenizer()
    model = parent.load()
    swap_linears(model)
    save_checkpoint(run.output, model, tokenizer, like=parent.source())
    del model
    models = {path: Checkpoint.open(path).load(config.dtype) for path in (config.checkpoint, run.output)}
    longest = min(config.context, parent.config.max_context)
    pieces = list(cut_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest))
    num_tokens = sum(len(ids) for ids in pieces)
    comparison = Comparison()
    with run.progress(num_tokens, "comparing", unit="tokens") as bar:
        for ids in pieces:
            comparison.add(*(logits_of(model, ids, path) for path, model in models.items()))
            bar.advance(len(ids))
    _write_receipts(config, run, comparison, num_tokens)


def _write_receipts(config: Config, run: Run, comparison: Comparison, num_tokens: int) -> None:
    kl = comparison.kl()
    before, after = _num_bytes(config.checkpoint), _num_bytes(run.output)
    details: dict[str, Any] = {"num_tokens": num_tokens, "bytes_before": before, "bytes_after": after}
    run.log(f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB; compared on {num_tokens:,} tokens of held-out text")
    run.log(f"KL divergence a token: mean {kl['mean']:.2g}, 99th percentile {kl['p99']:.2g}, most {kl['max']:.2g}")
    run.log(f"same first choice: {comparison.agreement():.2%} of the tokens")
    name, least = config.checkpoint.name, config.min_agreement
    for receipt in comparison.receipts(name, tolerance_kl=config.tolerance_kl, min_agreement=least, details=details):
        receipt.save(run.output)
        if not receipt.held:
            run.log(
                f"{receipt.claim} does not hold: {receipt.value:.4g}, expected {receipt.limit}; "
                "stages that read this stop"
            )


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
