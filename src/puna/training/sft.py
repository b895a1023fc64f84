"""Conversations -> a checkpoint that has learned what the assistant says in them."""

from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.loop.loop import train
from puna.training.loop.start import starting_model
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import TrainConfig


class Config(TrainConfig):
    """Train on the assistant's words and calls alone; conversations are never cut."""

    def estimate(self, known: Known) -> Estimate:
        """Foresee a run of these settings (training/reports/preview/dry_run.py)."""
        tokenizer = starting_tokenizer(self, known)
        return estimate_training(self, known, NextToken(ChatFormat(tokenizer), False, False), tokenizer)


def run(config: Config, run: Run) -> None:
    """Write a checkpoint fine-tuned on the conversations of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = NextToken(ChatFormat(tokenizer), False, config.fresh_identifiers)
    train(config, run, objective, model, tokenizer)
