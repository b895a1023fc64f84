"""Distilling from stored logits: divergence from a teacher's labels plus cross entropy, without a teacher in memory.

Shapes: M trained tokens of a batch, C tokens of a chunk, K entries of a label, N = K and the rest, V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.dataset import LABELS
from puna.data.labels import LabelledRow
from puna.data.packing import Batch, Example
from puna.inference.engine.sampling.sampler import trim_padded_vocabulary
from puna.model.llama import Llama
from puna.training.objectives.distillation.divergence import NOTHING, Divergence, buckets
from puna.training.objectives.entropy import entropy_sum
from puna.training.objectives.losses import Rows, summed_over_tokens
from puna.training.objectives.text import TextObjective, trained_rows


@dataclass(frozen=True)
class StoredLabels(TextObjective):
    """w * t^2 * divergence at temperature t, plus (1 - w) * cross entropy, at the labelled tokens.

    Rows come from the label store with token ids and masks. The labels were computed at the same temperature.

    Example: see `puna.training.distill.stored_labels`.
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

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return summed_over_tokens(model, hidden_TD[batch.trained_T], trained_rows(batch), self.terms)

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        """Return the summed losses and entropies of a chunk of targets."""
        top_CK, targets_C, is_softened = rows["top"].float(), rows["targets"], self.temperature != 1
        trimmed_CV = trim_padded_vocabulary(logits_CV, self.chat.tokenizer)
        is_whole = trimmed_CV.shape == logits_CV.shape and not self.chat.tokenizer.unused_ids
        softened_CV = trimmed_CV / self.temperature if is_softened else trimmed_CV
        student = buckets(softened_CV, rows["top_ids"].long(), top_CK.isfinite(), targets_C)
        teacher_CN = teacher_buckets(top_CK, rows["tail"].float())
        divergence = self.divergence.between(teacher_CN, student.log_CN)
        is_shared = is_whole and not is_softened  # one pass over the logits serves both losses
        token_loss = -student.target_C.sum() if is_shared else F.cross_entropy(logits_CV, targets_C, reduction="sum")
        loss = self.teacher_weight * self.temperature**2 * divergence + (1 - self.teacher_weight) * token_loss
        sums = {"loss": loss, "kl_loss": divergence, "token_loss": token_loss, "entropy": entropy_sum(trimmed_CV)}
        return sums | self.label_sums(teacher_CN, rows["chosen"].float())

    def label_sums(self, teacher_CN: torch.Tensor, chosen_C: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return metrics of the teacher; the entropy is a lower bound, as all unlisted tokens form a single bucket."""
        entropy = -(teacher_CN.exp() * teacher_CN).sum()
        sums = {"label_entropy": entropy, "tail_mass": teacher_CN[:, -1].exp().sum()}
        if self.temperature != 1:
            return sums
        return sums | {"teacher_entropy": entropy, "teacher_loss": -chosen_C.clamp(min=NOTHING).sum()}


def teacher_buckets(top_CK: torch.Tensor, tail_C: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of the buckets, unlisted tokens last, renormalized after rounding to float16."""
    return F.log_softmax(torch.cat([top_CK, tail_C[:, None]], dim=-1), dim=-1).clamp(min=NOTHING)
