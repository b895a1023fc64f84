"""Conversations and a teacher -> a student that gives each token the probability that the teacher gives it.

Teacher and student must share a tokenizer.
"""

from pathlib import Path

from pydantic import Field

from puna.chat.format import ChatFormat
from puna.checkpoint.checkpoint import Checkpoint
from puna.errors import ConfigError
from puna.run import Run
from puna.train.loop.loop import train
from puna.train.loop.settings import TrainConfig
from puna.train.loop.start import starting_model
from puna.train.objectives.live_teacher import LiveTeacher


class Config(TrainConfig):
    """Train a student on a teacher's distributions, mixed with the data's own tokens."""

    teacher: Path = Field(description="checkpoint to learn from")
    temperature: float = Field(default=1.0, gt=0, le=20, description="softens both distributions")
    teacher_weight: float = Field(default=0.8, ge=0, le=1, description="share of the teacher in the loss")
    every_token: bool = Field(default=False, description="learn all tokens, not only what the assistant says")


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
    objective = LiveTeacher(
        ChatFormat(tokenizer),
        config.every_token,
        config.fresh_identifiers,
        teacher.load(config.dtype),
        config.dtype,
        config.temperature,
        config.teacher_weight,
    )
    train(config, run, objective, model, tokenizer)
