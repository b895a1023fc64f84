"""Logits -> how sure a model is, for the record of a run: sums over tokens, estimated from every 16th of them.

No gradient flows through it. Every 16th token costs a sixteenth of a softmax, and is hundreds after a few steps.

Shapes: C trained tokens, S every 16th of them, V vocabulary.
"""

import torch
import torch.nn.functional as F

EVERY = 16


@torch.no_grad()
def entropy_sum(logits_CV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Estimate the sum over all C tokens of the entropy at a temperature, in nats."""
    logs_SV = F.log_softmax(logits_CV[::EVERY] / temperature, dim=-1)
    return -(logs_SV.exp() * logs_SV).sum() * _tokens_each(logits_CV)


@torch.no_grad()
def cross_entropy_sum(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Estimate the sum over all C tokens of the targets' negative log-probability."""
    return F.cross_entropy(logits_CV[::EVERY], targets_C[::EVERY], reduction="sum") * _tokens_each(logits_CV)


def _tokens_each(logits_CV: torch.Tensor) -> float:
    """Return how many tokens each of those looked at stands for."""
    return len(logits_CV) / max(1, len(logits_CV[::EVERY]))
