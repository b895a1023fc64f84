"""Preferences -> examples and pairs: the common part of the objectives of dpo and reward.

Shapes: N examples and P pairs of a batch.
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

# Column: number of the following examples in the batch with a worse answer; equal at all tokens of an example.
OUTRANKED = "outranked"


@dataclass(frozen=True)
class Pairs:
    """Base of the objectives on pairs; answers to the same prompt stay in the same batch, best answer first.

    Attributes:
        strengths: Preference strengths of the pairs in the loss.

    Example: see `Dpo`.
    """

    chat: ChatFormat
    strengths: frozenset[str]

    kinds = ("preferences",)
    is_cut = False
    reads_every_token = False
    needs_whole_examples = True  # a pair is compared as a whole
    bytes_per_logit = 12  # log-probability and two gradients in float32

    def num_counted(self, batch: Batch) -> int:
        return int(first_of_each(batch, OUTRANKED).sum())


def places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (better_P, worse_P): the indices in the batch of every pair's better and worse example."""
    counts = first_of_each(batch, OUTRANKED).tolist()
    pairs = [(place, place + after) for place, count in enumerate(counts) for after in range(1, count + 1)]
    better_P, worse_P = torch.tensor(pairs, dtype=torch.long, device=batch.tokens_T.device).reshape(-1, 2).T
    return better_P, worse_P


def first_of_each(batch: Batch, name: str) -> torch.Tensor:
    """Return the value of a column at the first token of every example, for columns constant within examples."""
    starts = [0, *accumulate(batch.lengths)][:-1]
    return batch.columns[name][starts]


def constant(ids: Sequence[int], value: int | float) -> torch.Tensor:
    """Return a column with the same value at every token."""
    return torch.full((len(ids),), value)


def count_pairs(config: PreferenceConfig, run: Run) -> None:
    """Log the number of pairs to train on and the pairs left out by strength.

    Raises:
        DataError: No pair has a configured strength.
    """
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
