"""Pretraining: documents and conversations -> a checkpoint trained on every token."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from puna.data.augment.drills import draw_drill, draw_run_drill
from puna.data.packing import Example
from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.fit import fit
from puna.training.loop.start import starting_model
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import TrainConfig


class Config(TrainConfig):
    """Settings of pretraining; texts longer than max_length are cut into pieces.

    Example:
        [pretrain]
        size = "demo-student"
        tokenizer = "@tokenizer"
        data = ["@ingest"]
        epochs = 1
    """

    drill_share: float = Field(
        default=0.0, ge=0, le=1, description="Fraction of rows that copying drills replace, 0 to 1"
    )
    drill_runs: float = Field(
        default=0.0, ge=0, le=1, description="Share of copying drills, 0 to 1, that repeat runs of equal tokens"
    )

    def estimate(self, known: Known) -> Estimate:
        """Estimate steps, time and memory for `puna raise --dry-run`."""
        tokenizer = starting_tokenizer(self, known)
        objective = Pretraining(ChatFormat(tokenizer), True, False, self.drill_share)
        return estimate_training(self, known, objective, tokenizer)


@dataclass(frozen=True)
class Pretraining(NextToken):
    """Cross entropy of every token; copying drills replace a fraction of the rows.

    Example:
        >>> Pretraining(ChatFormat(tokenizer), True, False, drill_share=0.5)
    """

    drill_share: float
    drill_runs: float = 0.0

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        (example,) = self.encode(row, source)
        if source.random() >= self.drill_share:
            return [example]
        with_runs = self.drill_runs > 0 and source.random() < self.drill_runs
        return [Example(*(draw_run_drill if with_runs else draw_drill)(example.ids, source))]


def run(config: Config, run: Run) -> None:
    """Write a checkpoint trained on every token of `config.data`."""
    model, tokenizer = starting_model(config)
    objective = Pretraining(
        ChatFormat(tokenizer), True, config.fresh_identifiers, config.drill_share, config.drill_runs
    )
    fit(config, run, objective, model, tokenizer)
