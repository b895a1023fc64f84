"""Documents and conversations -> a checkpoint that has learned every token of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from puna.data.augment.drills import draw_drill, draw_run_drill
from puna.data.packing import Example
from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.loop.loop import train
from puna.training.loop.start import starting_model
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import TrainConfig


class Config(TrainConfig):
    """Train on every token of the text; long documents are cut into pieces of the context."""

    drill_share: float = Field(default=0.0, ge=0, le=1, description="share of rows that give way to copying drills")
    drill_runs: float = Field(
        default=0.0, ge=0, le=1, description="Share of copying drills, 0 to 1, that repeat runs of equal tokens"
    )

    def estimate(self, known: Known) -> Estimate:
        """Foresee a run of these settings (training/reports/preview/dry_run.py)."""
        tokenizer = starting_tokenizer(self, known)
        objective = Pretraining(ChatFormat(tokenizer), True, False, self.drill_share)
        return estimate_training(self, known, objective, tokenizer)


@dataclass(frozen=True)
class Pretraining(NextToken):
    """Cross entropy on every token, with copying drills in the place of some rows."""

    drill_share: float
    drill_runs: float = 0.0

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        (example,) = self.encode(row, source)
        if source.random() >= self.drill_share:
            return [example]
        with_runs = self.drill_runs > 0 and source.random() < self.drill_runs
        return [Example(*(draw_run_drill if with_runs else draw_drill)(example.ids, source))]


def run(config: Config, run: Run) -> None:
    """Write a checkpoint trained on all of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = Pretraining(
        ChatFormat(tokenizer), True, config.fresh_identifiers, config.drill_share, config.drill_runs
    )
    train(config, run, objective, model, tokenizer)
