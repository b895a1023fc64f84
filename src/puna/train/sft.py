"""Conversations -> a checkpoint that has learned what the assistant says in them."""

from puna.chat.format import ChatFormat
from puna.run import Run
from puna.train.loop.loop import train
from puna.train.loop.settings import TrainConfig
from puna.train.loop.start import starting_model
from puna.train.objectives.next_token import NextToken


class Config(TrainConfig):
    """Train on the assistant's words and calls alone; conversations are never cut."""


def run(config: Config, run: Run) -> None:
    """Write a checkpoint fine-tuned on the conversations of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = NextToken(ChatFormat(tokenizer), False, config.fresh_identifiers)
    train(config, run, objective, model, tokenizer)
