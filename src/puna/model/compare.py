"""The logits of two models for the same tokens -> measures of their difference.

Shapes: T tokens of a text, D model width, N compared tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.errors import CheckpointError

# Number of positions with both distributions in memory at once, in float64.
CHUNK = 256
IGNORED = -1


@dataclass
class Comparison:
    """Differences of two models by token: KL divergence, agreement of the most likely token, largest difference.

    Example:
        >>> comparison = Comparison()
        >>> comparison.add(parent_NV, quantized_NV)
        >>> mean, percentile_99, largest = comparison.kl()
    """

    divergences: list[torch.Tensor] = field(default_factory=list)
    is_same: list[torch.Tensor] = field(default_factory=list)
    # Log-probability of the parent's first choice minus that of the other's first choice, under the parent, in nats.
    gaps: list[torch.Tensor] = field(default_factory=list)
    differences: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    # Mean squares over the vocabulary of centred logits: of the parent, and of the difference.
    squares: list[torch.Tensor] = field(default_factory=list)

    def add(self, parent_NV: torch.Tensor, other_NV: torch.Tensor, *, ids: Sequence[int] = ()) -> None:
        """Add the logits of some tokens; with `ids`, the tokens of the text, also add to the perplexities."""
        targets_N = torch.tensor([*ids[1:], IGNORED] if ids else [IGNORED] * len(parent_NV))
        parts = zip(parent_NV.split(CHUNK), other_NV.split(CHUNK), targets_N.split(CHUNK), strict=True)
        for parent, other, targets in parts:
            log_p, log_q = (F.log_softmax(x.double(), dim=-1) for x in (parent, other))
            is_known = targets != IGNORED
            columns = targets[is_known][:, None]
            self.losses.append(-torch.cat([x[is_known].gather(1, columns) for x in (log_p, log_q)], dim=1))
            self.divergences.append(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).clamp(min=0))
            first = other.argmax(-1, keepdim=True)
            self.is_same.append(parent.argmax(-1, keepdim=True) == first)
            self.gaps.append(log_p.amax(-1) - log_p.gather(-1, first).squeeze(-1))
            self.differences.append((log_p - log_q).abs().amax(-1))
            variances = [x.var(-1, correction=0) for x in (log_p, log_p - log_q)]
            self.squares.append(torch.stack(variances, dim=-1))

    def kl(self) -> dict[str, float]:
        """Return mean, 99th percentile and maximum of KL(parent || other), in nats per token."""
        divergences_N = torch.cat(self.divergences)
        p99 = divergences_N.kthvalue(max(1, round(0.99 * len(divergences_N)))).values
        return {"mean": divergences_N.mean().item(), "p99": p99.item(), "max": divergences_N.max().item()}

    def agreement(self) -> float:
        """Return the share of tokens with the same most likely next token in both models."""
        return torch.cat(self.is_same).double().mean().item()

    def agreement_beyond(self, gap: float) -> float:
        """Return the share of tokens with the same most likely next token; near ties of the parent count as equal.

        Args:
            gap: Largest difference of log-probabilities in nats, under the parent, that counts as a tie.
        """
        return (torch.cat(self.gaps) <= gap).double().mean().item()

    def perplexities(self) -> tuple[float, float]:
        """Return the perplexity of the texts under the parent and under the other model."""
        before, after = torch.cat(self.losses).mean(0).exp().tolist()
        return before, after

    def max_difference(self) -> float:
        """Return the largest difference of a log-probability; unaffected by a constant added to all logits."""
        return torch.cat(self.differences).max().item()

    def deviation(self) -> float:
        """Return the standard deviation of the parent's logits over the vocabulary, as a root mean square of tokens."""
        return torch.cat(self.squares)[:, 0].mean().sqrt().item()

    def difference(self) -> float:
        """Return the root mean square difference of logits, divided by the parent's `deviation`.

        A constant added to all logits of a token changes neither value. Rounding errors grow with the logits, but this
        ratio does not.
        """
        parent, between = torch.cat(self.squares).mean(0).tolist()
        return (between / max(parent, 1e-300)) ** 0.5

    def receipts(
        self,
        parent: str,
        *,
        tolerance_kl: float,
        min_agreement: float,
        details: dict[str, Any] | None = None,
        prefix: str = "",
    ) -> tuple[Receipt, Receipt]:
        """Return receipts that a derived model predicts the same tokens as `parent`."""
        kl, agreement = self.kl(), self.agreement()
        measured = {**kl, "unit": "nats a token, KL(parent || made)", "max_difference": self.max_difference()}
        more = details or {}
        return (
            Receipt(f"{prefix}kl", parent, kl["mean"], tolerance_kl, kl["mean"] <= tolerance_kl, measured | more),
            Receipt(
                f"{prefix}top1_agreement",
                parent,
                agreement,
                min_agreement,
                agreement >= min_agreement,
                more,
                is_least=True,
            ),
        )

    def perplexity_receipt(
        self, parent: str, *, tolerance: float, details: dict[str, Any], prefix: str = ""
    ) -> Receipt:
        """Return the receipt on the relative growth of perplexity from `parent` to the derived model."""
        before, after = self.perplexities()
        growth = after / before - 1
        measured = {"before": before, "after": after, "unit": "share by which the perplexity of the text grew"}
        return Receipt(f"{prefix}perplexity", parent, growth, tolerance, growth <= tolerance, measured | details)


@torch.inference_mode()
def logits_of(model: Llama, ids: Sequence[int], name: Path) -> torch.Tensor:
    """Return logits_TV of one text.

    Raises:
        CheckpointError: The logits contain NaN or infinity; the message names the model by `name`.
    """
    hidden_TD = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
    return require_finite(model.logits(hidden_TD), name)


def require_finite(logits_TV: torch.Tensor, name: Path) -> torch.Tensor:
    """Return the logits; raise CheckpointError for NaN or infinity."""
    if not logits_TV.isfinite().all():
        raise CheckpointError(f"{name} gives logits that are not finite", expected="finite logits for every token")
    return logits_TV
