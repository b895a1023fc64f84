"""Distilling from a live teacher: divergence from the teacher's logits plus cross entropy, with two models in memory.

Shapes: T tokens of a batch, M trained tokens of the batch, C tokens of a chunk, D model width, V vocabulary.
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
from puna.training.objectives.losses import Rows, Terms, summed_over_tokens
from puna.training.objectives.text import TextObjective, trained_rows


@dataclass(frozen=True)
class LiveTeacher(TextObjective):
    """w * t^2 * divergence at temperature t, plus (1 - w) * cross entropy, at the trained tokens.

    The divergence covers the ids of the tokenizer: the vocabularies of teacher and student may be padded differently.
    Source: Hinton et al. (2015, arXiv 1503.02531).

    Example: see `puna.training.distill.live_teacher`.
    """

    divergence: Divergence
    teacher: Llama
    dtype: torch.dtype
    temperature: float
    teacher_weight: float

    needs_whole_examples = True  # the teacher reads them
    bytes_per_logit = 8  # the teacher's logit in float32, and rounded

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return self.summed(model, hidden_TD, batch, self.terms)

    def summed(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch, terms: Terms) -> dict[str, torch.Tensor]:
        """Return the sums of `terms` over the trained tokens, with the teacher's logits among the rows."""
        hidden_MD = hidden_TD[batch.trained_T]
        return summed_over_tokens(model, hidden_MD, self._rows(batch), terms, beside=self._with_logits)

    @torch.no_grad()
    def _rows(self, batch: Batch) -> Rows:
        self.teacher.to(batch.tokens_T.device)  # moves once: the device of the student is known from the first batch
        hidden_TD = batch.hidden_states(self.teacher, self.dtype)
        return {**trained_rows(batch), "teacher": hidden_TD[batch.trained_T]}

    @torch.no_grad()
    def _with_logits(self, rows: Rows) -> Rows:
        hidden_CD = rows["teacher"]
        known_CV = self.teacher.logits(padded_rows(hidden_CD))[: len(hidden_CD)]
        return {**rows, "teacher": trim_padded_vocabulary(known_CV, self.chat.tokenizer)}

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        """Return the summed losses and entropies of a chunk of targets."""
        known_CV, targets_C, is_softened = rows["teacher"], rows["targets"], self.temperature != 1
        # Cross entropy covers all rows of the output layer, so that other programs do not sample ids without a token.
        told_CV = trim_padded_vocabulary(logits_CV, self.chat.tokenizer)
        is_whole = told_CV.shape == logits_CV.shape and not self.chat.tokenizer.unused_ids

        def log_probabilities(each_CV: torch.Tensor) -> torch.Tensor:
            return F.log_softmax(each_CV / self.temperature if is_softened else each_CV, dim=-1)

        teacher_CV, student_CV = log_probabilities(known_CV), log_probabilities(told_CV)
        if is_softened or not is_whole:
            cross_entropy = F.cross_entropy(logits_CV, targets_C, reduction="sum")
        else:  # one log_softmax serves both losses
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
