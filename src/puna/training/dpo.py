"""Preferences -> a checkpoint that gives the better of two answers more probability than before.

The model that training begins with is the reference. It is asked once, before the first step, and is not held in memory
beside the one that is trained.
"""

from dataclasses import replace

from pydantic import Field

from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.loop.defaults import adapt
from puna.training.loop.loop import train
from puna.training.loop.start import starting_model
from puna.training.objectives.dpo import Dpo
from puna.training.objectives.pairs import count_pairs
from puna.training.objectives.references import reference_log_probabilities
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import PreferenceConfig


class Config(PreferenceConfig):
    """Train on pairs of answers, with the settings of the Llama 3 paper."""

    beta: float = Field(default=0.1, gt=0, le=10, description="how dear it is to leave the reference")
    nll_weight: float = Field(default=0.2, ge=0, le=10, description="share of the better answer's own likelihood")

    def estimate(self, known: Known) -> Estimate:
        """Foresee a run of these settings (training/reports/preview/dry_run.py)."""
        tokenizer = starting_tokenizer(self, known)
        objective = Dpo(ChatFormat(tokenizer), frozenset(self.strengths), {}, self.beta, self.nll_weight)
        return estimate_training(self, known, objective, tokenizer)


def run(config: Config, run: Run) -> None:
    """Write a checkpoint trained on the pairs of `config.data`."""
    count_pairs(config, run)
    model, tokenizer = starting_model(config)
    objective = Dpo(ChatFormat(tokenizer), frozenset(config.strengths), {}, config.beta, config.nll_weight)
    config = adapt(config, run, objective, model)
    references = reference_log_probabilities(config, run, objective, model)
    train(config, run, replace(objective, references=references), model, tokenizer)
