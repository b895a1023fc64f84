"""A checkpoint -> the same network in int8, with receipts of how far its predictions moved on held-out text.

Weights are rounded to int8 per output channel without calibration; embeddings, norms and lm_head stay as they are.
What is measured is what was written: the quantized checkpoint is read back from the disk first.

Shapes: T tokens of a piece, D model width, N tokens compared, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from puna.artifact import Receipt
from puna.chat.conversation import Conversation
from puna.chat.format import ChatFormat
from puna.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.config import StageConfig
from puna.data.dataset import Dataset
from puna.errors import CheckpointError, ConfigError
from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.model.quantized import swap_linears
from puna.run import Run

# Positions whose two distributions are held at once, in float64.
CHUNK = 256


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


@dataclass
class Comparison:
    """How two models differ: the KL divergence and the agreement of the first choice, a token each."""

    divergences: list[torch.Tensor] = field(default_factory=list)
    agreements: list[torch.Tensor] = field(default_factory=list)

    def add(self, parent_NV: torch.Tensor, other_NV: torch.Tensor) -> None:
        """Take in the logits of some tokens."""
        for parent, other in zip(parent_NV.split(CHUNK), other_NV.split(CHUNK), strict=True):
            log_p, log_q = (F.log_softmax(x.double(), dim=-1) for x in (parent, other))
            self.divergences.append(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).clamp(min=0))
            self.agreements.append(parent.argmax(-1) == other.argmax(-1))

    def kl(self) -> dict[str, float]:
        """Return mean, 99th percentile and greatest KL(parent || other), in nats a token."""
        divergences_N = torch.cat(self.divergences)
        p99 = divergences_N.kthvalue(max(1, round(0.99 * len(divergences_N)))).values
        return {"mean": divergences_N.mean().item(), "p99": p99.item(), "max": divergences_N.max().item()}

    def agreement(self) -> float:
        """Return the share of tokens whose most likely next token is the same."""
        return torch.cat(self.agreements).double().mean().item()


def run(config: Config, run: Run) -> None:
    """Write the int8 checkpoint and its receipts; a receipt that does not hold stops the stages after this one."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized:
        raise ConfigError(f"checkpoint = {config.checkpoint} is quantized", expected="float weights")
    tokenizer = parent.tokenizer()
    model = parent.load()
    swap_linears(model)
    save_checkpoint(run.output, model, tokenizer)
    del model
    models = {path: Checkpoint.open(path).load(config.dtype) for path in (config.checkpoint, run.output)}
    pieces = list(_pieces(config, ChatFormat(tokenizer), parent.config.max_context))
    num_tokens = sum(len(ids) for ids in pieces)
    comparison = Comparison()
    with run.progress(num_tokens, "comparing", unit="tokens") as bar:
        for ids in pieces:
            comparison.add(*(_logits(model, ids, path) for path, model in models.items()))
            bar.advance(len(ids))
    _write_receipts(config, run, comparison, num_tokens)


def _pieces(config: Config, chat: ChatFormat, max_context: int) -> Iterator[list[int]]:
    """Cut rows from all over the data into pieces, until there are `num_tokens` or the data ends."""
    dataset = Dataset(config.data)
    longest, left = min(config.context, max_context), config.num_tokens
    for index in dataset.order(0, 0):
        row = dataset[int(index)]
        ids = chat.encode(row).ids if isinstance(row, Conversation) else chat.document(row.text)
        for start in range(0, len(ids), longest):
            if left <= 0:
                return
            yield ids[start : start + min(longest, left)]
            left -= min(longest, left, len(ids) - start)


@torch.inference_mode()
def _logits(model: Llama, ids: list[int], name: Path) -> torch.Tensor:
    hidden_TD = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
    logits_TV = model.logits(hidden_TD)
    if not logits_TV.isfinite().all():
        raise CheckpointError(f"{name} gives logits that are not finite", expected="numbers")
    return logits_TV


def _write_receipts(config: Config, run: Run, comparison: Comparison, num_tokens: int) -> None:
    kl, agreement = comparison.kl(), comparison.agreement()
    before, after = _num_bytes(config.checkpoint), _num_bytes(run.output)
    details: dict[str, Any] = {"num_tokens": num_tokens, "bytes_before": before, "bytes_after": after}
    parent = config.checkpoint.name
    receipts = (
        Receipt(
            "kl", parent, kl["mean"], config.tolerance_kl, kl["mean"] <= config.tolerance_kl,
            {**kl, "unit": "nats a token, KL(parent || quantized)", **details},
        ),
        Receipt(
            "top1_agreement", parent, agreement, config.min_agreement, agreement >= config.min_agreement,
            details, is_least=True,
        ),
    )  # fmt: skip
    run.log(f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB; compared on {num_tokens:,} tokens of held-out text")
    run.log(f"KL divergence a token: mean {kl['mean']:.2g}, 99th percentile {kl['p99']:.2g}, most {kl['max']:.2g}")
    run.log(f"same first choice: {agreement:.2%} of the tokens")
    for receipt in receipts:
        receipt.save(run.output)
        if not receipt.held:
            limit = f"at {'least' if receipt.is_least else 'most'} {receipt.tolerance:.4g}"
            run.log(f"{receipt.claim} does not hold: {receipt.value:.4g}, expected {limit}; stages that read this stop")


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
