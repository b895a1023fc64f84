"""What training on preferences is told beside the rest, and a count of what that leaves of the data."""

from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from puna.data.dataset import Dataset
from puna.data.preference import Preference, Strength
from puna.pipeline.errors import DataError
from puna.pipeline.run import Run
from puna.training.loop.settings import Optim, TrainConfig


class PreferenceOptim(Optim):
    """AdamW at the rate of the Llama 3 paper's DPO."""

    lr: float = Field(default=1e-5, gt=0, le=1, description="peak learning rate")


class PreferenceConfig(TrainConfig):
    """Settings that dpo and reward share."""

    # A frozen model's field may be narrower than its parent's.
    optim: PreferenceOptim = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=PreferenceOptim(), description="optimizer and schedule"
    )
    strengths: list[Strength] = Field(
        default=["significantly better", "better"],
        description="how much better a chosen answer must be; unknown strengths and edited answers always count",
    )

    @model_validator(mode="after")
    def _leaves_identifiers(self) -> Self:
        if self.fresh_identifiers:
            raise ValueError("no fresh_identifiers: answers are compared as they were judged")
        return self


def count_pairs(config: PreferenceConfig, run: Run) -> None:
    """Read every row, tell what is left out, and raise DataError if nothing is left."""
    for name, sources in (("data", config.data), ("validation", config.validation)):
        if sources:
            run.log(f"{name}: {_count(config, name, sources)}")


def _count(config: PreferenceConfig, name: str, sources: list[Path]) -> str:
    dataset, num_pairs, weak = Dataset(sources, ["preferences"]), 0, Counter[str]()
    for index in range(len(dataset)):
        row = dataset[index]
        assert isinstance(row, Preference)
        num_found = sum(ranked.num_outranked for ranked in row.ranking(config.strengths))
        weak[row.strength] += sum(ranked.num_outranked for ranked in row.ranking()) - num_found
        num_pairs += num_found
    left_out = ", ".join(f"{count:,} only {strength}" for strength, count in weak.most_common() if count)
    if not num_pairs:
        raise DataError(
            f"no pair in {name} is left", expected=", ".join(config.strengths), hint=f"There are {left_out}"
        )
    return f"{num_pairs:,} pairs of {len(dataset):,} prompts" + (f"; left out: {left_out}" if left_out else "")
