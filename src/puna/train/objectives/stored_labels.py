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
from puna.train.objectives.divergence import NOTHING, Divergence, buckets
from puna.train.objectives.losses import Rows
from puna.train.objectives.next_token import NextToken


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
        softened_CV = logits_CV / self.temperature if is_softened else logits_CV
        student = buckets(softened_CV, rows["top_ids"].long(), top_CK.isfinite(), targets_C)
        divergence = self.divergence.between(teacher_buckets(top_CK, rows["tail"].float()), student.log_CN)
        token_loss = F.cross_entropy(logits_CV, targets_C, reduction="sum") if is_softened else -student.target_C.sum()
        loss = self.teacher_weight * self.temperature**2 * divergence + (1 - self.teacher_weight) * token_loss
        return {"loss": loss, "kl_loss": divergence, "token_loss": token_loss}


def teacher_buckets(top_CK: torch.Tensor, tail_C: torch.Tensor) -> torch.Tensor:
    """Return a label's log-probabilities with the rest last, which float16 has rounded, so that they sum to 1 again."""
    return F.log_softmax(torch.cat([top_CK, tail_C[:, None]], dim=-1), dim=-1).clamp(min=NOTHING)
