"""The state of one training run in memory: model, optimizer, data stream, position and process group."""

from dataclasses import dataclass

import torch

from puna.data.packing import Packer
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.run import Run
from puna.training.loop.counts import TokenCounter
from puna.training.loop.state import TrainState
from puna.training.objectives.objective import Objective
from puna.training.parallel.process_groups import ProcessGroups
from puna.training.settings import TrainConfig


@dataclass
class Training:
    """The objects of a training run, shared by the loop and the observers.

    Attributes:
        config: Settings with the values that `adapt` chose.
        state: Step, position in the data and counters, as saved for a resumed run.
        counter: Counts the trained tokens of a step for the metrics.

    Example: see `puna.training.fit.prepare`.
    """

    config: TrainConfig
    run: Run
    objective: Objective
    model: Llama
    optimizer: torch.optim.AdamW
    packer: Packer
    state: TrainState
    groups: ProcessGroups
    counter: TokenCounter

    @property
    def tokenizer(self) -> Tokenizer:
        return self.counter.tokenizer

    @property
    def done(self) -> float:
        """Completed share of the run, from 0 to 1: of the steps, or of the epochs."""
        if self.config.steps is not None:
            return self.state.step / self.config.steps
        assert self.config.epochs is not None
        return self.epochs / self.config.epochs

    @property
    def epochs(self) -> float:
        """Number of passes over the data so far."""
        return self.packer.progress(self.state.position)
