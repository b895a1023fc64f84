"""Preferences -> examples, best answer first, and pairs of a batch's examples: what dpo and reward have in common.

Shapes: N examples of a batch, P pairs of these.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from puna.data.dataset import Dataset
from puna.data.packing import Batch
from puna.data.preference import Preference
from puna.formats.chat.format import ChatFormat
from puna.pipeline.errors import DataError
from puna.pipeline.run import Run
from puna.training.settings import PreferenceConfig

# A column that says of each token of an example how many of the examples after it are worse.
OUTRANKED = "outranked"


@dataclass(frozen=True)
class Pairs:
    """Examples of answers to one prompt stay in one batch. `strengths` are those that make a pair worth learning."""

    chat: ChatFormat
    strengths: frozenset[str]

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("preferences",)

    @property
    def is_cut(self) -> bool:
        return False

    def num_counted(self, batch: Batch) -> int:
        return int(first_of_each(batch, OUTRANKED).sum())


def places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (better_P, worse_P): the places among the batch's examples of the answers of each pair."""
    counts = first_of_each(batch, OUTRANKED).tolist()
    pairs = [(place, place + after) for place, count in enumerate(counts) for after in range(1, count + 1)]
    better_P, worse_P = torch.tensor(pairs, dtype=torch.long, device=batch.tokens_T.device).reshape(-1, 2).T
    return better_P, worse_P


def first_of_each(batch: Batch, name: str) -> torch.Tensor:
    """Return a column's value at the first token of each example, for what is the same at all of its tokens."""
    starts = [0, *accumulate(batch.lengths)][:-1]
    return batch.columns[name][starts]


def constant(ids: Sequence[int], value: int | float) -> torch.Tensor:
    """Return a column that says the same of each token."""
    return torch.full((len(ids),), value)


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
