"""Divergence from a teacher's stored labels, mixed with cross entropy: distillation without a teacher in memory.

Shapes: M trained tokens of a batch, C of these at once, K entries of a label, N = K and the rest, V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.dataset import LABELS
from puna.data.labels import LabelledRow
from puna.data.packing import Example
from puna.inference.engine.sampling.sampler import trim_padded_vocabulary
from puna.training.objectives.distillation.divergence import NOTHING, Divergence, buckets
from puna.training.objectives.entropy import entropy_sum
from puna.training.objectives.losses import Rows
from puna.training.objectives.next_token import NextToken


@dataclass(frozen=True)
class StoredLabels(NextToken):
    """w * t^2 * divergence at temperature t, plus (1 - w) * cross entropy, at the tokens that have labels.

    The rows are LabelStore's own, with their ids and masks: nothing is encoded again. The labels have been taken at the
    temperature.
    """

    divergence: Divergence
    temperature: float
    teacher_weight: float

    @property
    def kinds(self) -> tuple[str, ...]:
        return (LABELS,)

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        assert isinstance(row, LabelledRow)
        return [Example(row.ids_T.tolist(), row.mask_T.tolist(), row.columns())]

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        top_CK, targets_C, is_softened = rows["top"].float(), rows["targets"], self.temperature != 1
        told_CV = trim_padded_vocabulary(logits_CV, self.chat.tokenizer)
        is_whole = told_CV.shape == logits_CV.shape and not self.chat.tokenizer.unused_ids
        softened_CV = told_CV / self.temperature if is_softened else told_CV
        student = buckets(softened_CV, rows["top_ids"].long(), top_CK.isfinite(), targets_C)
        teacher_CN = teacher_buckets(top_CK, rows["tail"].float())
        divergence = self.divergence.between(teacher_CN, student.log_CN)
        is_shared = is_whole and not is_softened  # one look at the vocabulary serves both losses
        token_loss = -student.target_C.sum() if is_shared else F.cross_entropy(logits_CV, targets_C, reduction="sum")
        loss = self.teacher_weight * self.temperature**2 * divergence + (1 - self.teacher_weight) * token_loss
        told = {"loss": loss, "kl_loss": divergence, "token_loss": token_loss, "entropy": entropy_sum(told_CV)}
        return told | self.label_sums(teacher_CN, rows["chosen"].float())

    def label_sums(self, teacher_CN: torch.Tensor, chosen_C: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what labels say of their teacher; its entropy is at least this, since the rest is one outcome here."""
        entropy = -(teacher_CN.exp() * teacher_CN).sum()
        sums = {"label_entropy": entropy, "tail_mass": teacher_CN[:, -1].exp().sum()}
        if self.temperature != 1:
            return sums
        return sums | {"teacher_entropy": entropy, "teacher_loss": -chosen_C.clamp(min=NOTHING).sum()}


def teacher_buckets(top_CK: torch.Tensor, tail_C: torch.Tensor) -> torch.Tensor:
    """Return a label's log-probabilities with the rest last, which float16 has rounded, so that they sum to 1 again."""
    return F.log_softmax(torch.cat([top_CK, tail_C[:, None]], dim=-1), dim=-1).clamp(min=NOTHING)
