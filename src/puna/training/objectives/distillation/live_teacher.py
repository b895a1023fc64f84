"""Divergence from a teacher that runs beside its student, mixed with the cross entropy.

Shapes: T tokens of a batch, M trained tokens among them, C of these at once, D model width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.packing import Batch
from puna.inference.engine.sampling.sampler import trim_padded_vocabulary
from puna.model.gradients.padding import padded_rows
from puna.model.llama import Llama
from puna.training.objectives.distillation.divergence import Divergence
from puna.training.objectives.entropy import cross_entropy_sum, entropy_sum
from puna.training.objectives.losses import Rows, summed_over_tokens
from puna.training.objectives.next_token import NextToken


@dataclass(frozen=True)
class LiveTeacher(NextToken):
    """w * t^2 * divergence at temperature t, plus (1 - w) * cross entropy, at the trained tokens.

    The divergence is over the tokens: teacher and student may be padded to different numbers of rows. Source: Hinton et
    al. (2015, arXiv 1503.02531).
    """

    divergence: Divergence
    teacher: Llama
    dtype: torch.dtype
    temperature: float
    teacher_weight: float

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        hidden_MD = hidden_TD[batch.trained_T]
        return summed_over_tokens(model, hidden_MD, self.rows(batch), self.terms, beside=self._with_logits)

    @torch.no_grad()
    def rows(self, batch: Batch) -> Rows:
        self.teacher.to(batch.tokens_T.device)  # once; the student's device is known by its first batch
        hidden_TD = batch.hidden_states(self.teacher, self.dtype)
        return {**super().rows(batch), "teacher": hidden_TD[batch.trained_T]}

    @torch.no_grad()
    def _with_logits(self, rows: Rows) -> Rows:
        hidden_CD = rows["teacher"]
        known_CV = self.teacher.logits(padded_rows(hidden_CD))[: len(hidden_CD)]
        return {**rows, "teacher": trim_padded_vocabulary(known_CV, self.chat.tokenizer)}

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        known_CV, targets_C, is_softened = rows["teacher"], rows["targets"], self.temperature != 1
        # Cross entropy is over all rows, so that other programs learn not to sample a row without a token.
        told_CV = trim_padded_vocabulary(logits_CV, self.chat.tokenizer)
        is_whole = told_CV.shape == logits_CV.shape and not self.chat.tokenizer.unused_ids

        def log_probabilities(each_CV: torch.Tensor) -> torch.Tensor:
            return F.log_softmax(each_CV / self.temperature if is_softened else each_CV, dim=-1)

        teacher_CV, student_CV = log_probabilities(known_CV), log_probabilities(told_CV)
        if is_softened or not is_whole:
            cross_entropy = F.cross_entropy(logits_CV, targets_C, reduction="sum")
        else:  # one look at the vocabulary serves both losses
            cross_entropy = F.nll_loss(student_CV, targets_C, reduction="sum")
        divergence = self.divergence.between(teacher_CV, student_CV)
        loss = self.teacher_weight * self.temperature**2 * divergence + (1 - self.teacher_weight) * cross_entropy
        return {
            "loss": loss,
            "kl_loss": divergence,
            "token_loss": cross_entropy,
            "teacher_loss": cross_entropy_sum(known_CV, targets_C),
            "entropy": entropy_sum(told_CV),
            "teacher_entropy": entropy_sum(known_CV),
            "label_entropy": entropy_sum(known_CV, self.temperature),
        }
