"""Conversations and a teacher -> a student that gives each token the probability that the teacher gives it.

The loss is w * t^2 * KL(teacher || student) at temperature t, plus (1 - w) * cross entropy (Hinton et al., 2015,
arXiv 1503.02531). Teacher and student must share a tokenizer.

Shapes: T tokens of a batch, M trained tokens among them, D model width, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field

from puna.chat.format import ChatFormat
from puna.checkpoint.checkpoint import Checkpoint
from puna.data.packing import Batch
from puna.errors import ConfigError
from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.run import Run
from puna.train.loop import starting_model, train
from puna.train.objective import NextToken
from puna.train.settings import TrainConfig


class Config(TrainConfig):
    """Train a student on a teacher's distributions, mixed with the data's own tokens."""

    teacher: Path = Field(description="checkpoint to learn from")
    temperature: float = Field(default=1.0, gt=0, le=20, description="softens both distributions")
    teacher_weight: float = Field(default=0.8, ge=0, le=1, description="share of the teacher in the loss")
    every_token: bool = Field(default=False, description="learn all tokens, not only what the assistant says")


@dataclass(frozen=True)
class Distillation(NextToken):
    """Forward KL to a teacher at the trained tokens, mixed with the cross entropy."""

    teacher: Llama
    config: Config

    def losses(self, logits_MV: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        cross_entropy = super().losses(logits_MV, batch)["loss"]
        temperature, weight = self.config.temperature, self.config.teacher_weight
        teacher_MV = F.log_softmax(self._teacher_logits(batch) / temperature, dim=-1)
        student_MV = F.log_softmax(logits_MV / temperature, dim=-1)
        divergence = F.kl_div(student_MV, teacher_MV, reduction="sum", log_target=True)
        loss = weight * temperature**2 * divergence + (1 - weight) * cross_entropy
        return {"loss": loss, "kl_loss": divergence, "token_loss": cross_entropy}

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> torch.Tensor:
        hidden_TD = self.teacher(
            batch.tokens_T, batch.positions_T, packed_attend(batch.lengths), dtype=self.config.dtype
        )
        return self.teacher.logits(hidden_TD[batch.trained_T])


def run(config: Config, run: Run) -> None:
    """Write a student checkpoint distilled from `config.teacher`."""
    model, tokenizer = starting_model(config)
    teacher = Checkpoint.open(config.teacher)
    if teacher.tokenizer().fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"teacher {config.teacher} has another tokenizer than the student",
            expected="the same tokenizer.json",
            hint="Train the student with tokenizer = the teacher's directory",
        )
    if teacher.config.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"teacher {config.teacher} has {teacher.config.vocab_size:,} embeddings",
            expected=f"as many as the student, {model.config.vocab_size:,}",
        )
    objective = Distillation(
        ChatFormat(tokenizer), config.every_token, config.fresh_identifiers, teacher.load(config.dtype), config
    )
    train(config, run, objective, model, tokenizer)
