"""Logits -> entropy and cross entropy as metrics, estimated from a sample of the tokens, without gradients.

The sample has a token in 16, or more where 65,536 logits allow it, at least one: a small part of the cost of the
loss. Tokens are drawn at random: in a text of equal lines, every 16th token could be the same column.

Shapes: C trained tokens, S of them in the sample, V vocabulary.
"""

import torch
import torch.nn.functional as F

ONE_IN = 16
ALWAYS = 2**16


@torch.no_grad()
def entropy_sum(logits_CV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Estimate the sum over all C tokens of the entropy at a temperature, in nats."""
    picked_S = _pick(logits_CV)
    logs_SV = F.log_softmax(logits_CV[picked_S] / temperature, dim=-1)
    return -(logs_SV.exp() * logs_SV).sum() * (len(logits_CV) / max(1, len(logs_SV)))


@torch.no_grad()
def cross_entropy_sum(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Estimate the sum over all C tokens of the targets' negative log-probability."""
    picked_S = _pick(logits_CV)
    logits_SV = logits_CV[picked_S]
    total = F.cross_entropy(logits_SV, targets_C[picked_S], reduction="sum")
    return total * (len(logits_CV) / max(1, len(logits_SV)))


def _pick(logits_CV: torch.Tensor) -> torch.Tensor | slice:
    """Return the indices of a random sample, or a slice over all tokens of a short chunk."""
    num_tokens, vocab_size = logits_CV.shape
    num_picked = max(num_tokens // ONE_IN, min(num_tokens, max(1, ALWAYS // vocab_size)))
    if num_picked == num_tokens:
        return slice(None)
    return torch.randint(num_tokens, (num_picked,)).to(logits_CV.device)
