"""Documents and conversations -> a checkpoint that has learned every token of them."""

import random
from dataclasses import dataclass

from pydantic import Field

from puna.chat.format import ChatFormat, Encoded
from puna.data.drills import draw_drill
from puna.run import Run
from puna.train.loop import starting_model, train
from puna.train.objective import NextToken
from puna.train.settings import TrainConfig


class Config(TrainConfig):
    """Train on every token of the text; long documents are cut into pieces of the context."""

    drill_share: float = Field(default=0.0, ge=0, le=1, description="share of rows that give way to copying drills")


@dataclass(frozen=True)
class Pretraining(NextToken):
    """Cross entropy on every token, with copying drills in the place of some rows."""

    drill_share: float

    def draw(self, row: object, source: random.Random) -> Encoded:
        encoded = self.encode(row, source)
        return draw_drill(encoded.ids, source) if source.random() < self.drill_share else encoded


def run(config: Config, run: Run) -> None:
    """Write a checkpoint trained on all of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = Pretraining(ChatFormat(tokenizer), True, config.fresh_identifiers, config.drill_share)
    train(config, run, objective, model, tokenizer)
