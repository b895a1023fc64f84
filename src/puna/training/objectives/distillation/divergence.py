"""Two distributions over the next token -> how far apart they are; and logits -> the few tokens that a label is about.

A label knows a teacher's K most likely tokens and the mass of all others: the student's distribution is taken over the
same K tokens and one bucket for the rest, which costs what cross entropy costs. What is lost is how the teacher divides
the rest, so the divergence of buckets is at most that of whole distributions.

Shapes: C trained tokens, K entries of a label, N outcomes (K and the rest, or the vocabulary), V vocabulary.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from puna.pipeline.config import StageConfig

# The log of a mass that is none: finite, so that 0 * log 0 is 0 and not NaN.
NOTHING = -87.0


class Divergence(StageConfig):
    """How far the student is from its teacher, summed over tokens, or spans for a teacher with another tokenizer.

    forward_kl, KL(teacher || student), makes it cover all that the teacher may say; reverse_kl, KL(student || teacher),
    lets it choose what it can say well; jsd lies between them (Agarwal et al., 2024, arXiv 2306.13649).
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd", "spans"] = Field(
        default="forward_kl", description="which divergence"
    )
    beta: float = Field(default=0.5, gt=0, lt=1, description="jsd: the teacher's share of the mixture")

    def between(self, teacher_CN: torch.Tensor, student_CN: torch.Tensor) -> torch.Tensor:
        """Return the sum over tokens; both are log-probabilities, finite ones."""
        assert self.kind != "spans", "what compares spans is cross_tokenizer.py"
        if self.kind == "forward_kl":
            return _kl(teacher_CN, student_CN)
        if self.kind == "reverse_kl":
            return _kl(student_CN, teacher_CN)
        mixture_CN = torch.logaddexp(teacher_CN + math.log(self.beta), student_CN + math.log(1 - self.beta))
        return self.beta * _kl(teacher_CN, mixture_CN) + (1 - self.beta) * _kl(student_CN, mixture_CN)


def _kl(one_CN: torch.Tensor, other_CN: torch.Tensor) -> torch.Tensor:
    return (one_CN.exp() * (one_CN - other_CN)).sum()


class Buckets(NamedTuple):
    """Log-probabilities of a label's tokens and of the rest (the last column), and of the token that came."""

    log_CN: torch.Tensor
    target_C: torch.Tensor


def buckets(
    logits_CV: torch.Tensor, top_ids_CK: torch.Tensor, is_entry_CK: torch.Tensor, targets_C: torch.Tensor
) -> Buckets:
    """Return log-probabilities over a label's tokens and the rest; a column that is no entry has none of the mass."""
    log_CN, target_C = _Buckets.apply(logits_CV, top_ids_CK, is_entry_CK, targets_C)  # type: ignore[misc]
    return Buckets(log_CN, target_C)


class _Buckets(torch.autograd.Function):
    """As log_softmax, gather and logsumexp would have it, in as many looks at the logits as cross entropy takes."""

    @staticmethod
    def forward(
        ctx: Any, logits_CV: torch.Tensor, top_ids_CK: torch.Tensor, is_entry_CK: torch.Tensor, targets_C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        most_C1 = logits_CV.amax(-1, keepdim=True)
        mass_CV = (logits_CV - most_C1).exp_()
        total_C1 = mass_CV.sum(-1, keepdim=True)
        log_total_C1 = most_C1 + total_C1.log()
        target_C = (logits_CV.gather(-1, targets_C[:, None]) - log_total_C1)[:, 0]
        top_CK = torch.where(is_entry_CK, logits_CV.gather(-1, top_ids_CK) - log_total_C1, NOTHING)
        # Only the rest keeps its mass: what is left is exact however little it is, which 1 - sum is not.
        mass_CV.scatter_(-1, top_ids_CK, 0.0)
        rest_C1 = (mass_CV.sum(-1, keepdim=True) / total_C1).log().clamp(min=NOTHING)
        log_CN = torch.cat([top_CK, rest_C1], dim=-1).clamp(min=NOTHING)
        ctx.mass_CV = mass_CV.div_(total_C1)
        ctx.save_for_backward(log_CN, top_ids_CK, is_entry_CK, targets_C)
        return log_CN, target_C

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_CN, grad_target_C = gradients
        log_CN, top_ids_CK, is_entry_CK, targets_C = ctx.saved_tensors
        grad_CN = torch.cat([grad_CN[:, :-1] * is_entry_CK, grad_CN[:, -1:]], dim=-1)
        sum_C1 = grad_CN.sum(-1, keepdim=True) + grad_target_C[:, None]
        # NOTE: in place, so a second backward pass through the same logits would be wrong; there is none.
        grad_CV, ctx.mass_CV = ctx.mass_CV, None
        grad_CV.mul_(grad_CN[:, -1:] / log_CN[:, -1:].exp() - sum_C1)
        top_CK = grad_CN[:, :-1] - log_CN[:, :-1].exp() * sum_C1
        grad_CV.scatter_add_(-1, top_ids_CK, top_CK * is_entry_CK)
        grad_CV.scatter_add_(-1, targets_C[:, None], grad_target_C[:, None])
        return grad_CV, None, None, None
