"""Supervised fine-tuning: conversations -> a checkpoint trained on the assistant's messages."""

from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.fit import fit
from puna.training.loop.start import starting_model
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import TrainConfig


class Config(TrainConfig):
    """Settings of supervised fine-tuning; the loss covers the assistant's messages and tool calls.

    Conversations longer than max_length are skipped, never truncated.

    Example:
        [sft]
        init_from = "@import"
        data = ["@ingest"]
        epochs = 2
    """

    def estimate(self, known: Known) -> Estimate:
        """Estimate steps, time and memory for `puna raise --dry-run`."""
        tokenizer = starting_tokenizer(self, known)
        return estimate_training(self, known, NextToken(ChatFormat(tokenizer), False, False), tokenizer)


def run(config: Config, run: Run) -> None:
    """Write a checkpoint, or an adapter, fine-tuned on `config.data`."""
    model, tokenizer = starting_model(config)
    objective = NextToken(ChatFormat(tokenizer), False, config.fresh_identifiers)
    fit(config, run, objective, model, tokenizer)
