"""Documents and conversations -> a checkpoint that has learned every token of them."""

from puna.chat.format import ChatFormat
from puna.run import Run
from puna.train.loop import starting_model, train
from puna.train.objective import NextToken
from puna.train.settings import TrainConfig


class Config(TrainConfig):
    """Train on every token of the text; long documents are cut into pieces of the context."""


def run(config: Config, run: Run) -> None:
    """Write a checkpoint trained on all of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = NextToken(ChatFormat(tokenizer), True, config.fresh_identifiers)
    train(config, run, objective, model, tokenizer)
