"""Direct preference optimization: preferences -> a checkpoint trained to prefer the better of two answers.

The initial model is the reference. The reference log-probabilities are computed before the first step, so training
holds no second model in memory.
"""

from dataclasses import replace

from pydantic import Field

from puna.formats.chat.format import ChatFormat
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.fit import fit
from puna.training.loop.defaults import adapt
from puna.training.loop.start import starting_model
from puna.training.objectives.dpo import Dpo
from puna.training.objectives.pairs import count_pairs
from puna.training.objectives.references import reference_log_probabilities
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import PreferenceConfig


class Config(PreferenceConfig):
    """Settings of DPO, with the defaults of the Llama 3 paper (arXiv 2407.21783, section 4.1.4).

    Example:
        [dpo]
        init_from = "@sft"
        data = ["build/pairs"]
        epochs = 1
    """

    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="DPO beta: strength of the KL penalty to the reference model, above 0 to 10",
    )
    nll_weight: float = Field(
        default=0.2,
        ge=0,
        le=10,
        description="Weight of the negative log-likelihood of the better answer in the loss, 0 to 10",
    )

    def estimate(self, known: Known) -> Estimate:
        """Estimate steps, time and memory for `puna raise --dry-run`."""
        tokenizer = starting_tokenizer(self, known)
        objective = Dpo(ChatFormat(tokenizer), frozenset(self.strengths), {}, self.beta, self.nll_weight)
        return estimate_training(self, known, objective, tokenizer)


def run(config: Config, run: Run) -> None:
    """Write a checkpoint, or an adapter, trained on the pairs of `config.data`."""
    count_pairs(config, run)
    model, tokenizer = starting_model(config)
    objective = Dpo(ChatFormat(tokenizer), frozenset(config.strengths), {}, config.beta, config.nll_weight)
    config = adapt(config, run, objective, model)
    references = reference_log_probabilities(config, run, objective, model)
    fit(config, run, replace(objective, references=references), model, tokenizer)
