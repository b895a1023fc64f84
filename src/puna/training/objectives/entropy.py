"""Logits -> how sure a model is, for the record of a run: sums over tokens, estimated from some where there are many.

No gradient flows through it. Of the logits given, 65 thousand are looked at and one token's at least, or every 16th
token's: a small part of what the loss costs. The tokens are drawn, since every 16th of a text of equal lines is always
the same place in a line.

Shapes: C trained tokens, S of them that are looked at, V vocabulary.
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
    """Draw the tokens to look at; all of them where they are few."""
    num_tokens, vocab_size = logits_CV.shape
    num_picked = max(num_tokens // ONE_IN, min(num_tokens, max(1, ALWAYS // vocab_size)))
    if num_picked == num_tokens:
        return slice(None)
    return torch.randint(num_tokens, (num_picked,)).to(logits_CV.device)
