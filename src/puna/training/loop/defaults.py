"""Settings that a recipe leaves open, and the lengths of the data's rows -> the values that the run trains with.

Three settings adapt: the context, the tokens of a batch and the warm-up. A value in the recipe is never changed. The
choice depends on data and settings alone; a journal of the run keeps it, so that a resumed run repeats it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from puna.data.dataset import Dataset
from puna.data.packing import Packer
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.run import Run
from puna.training.objectives.objective import Objective
from puna.training.settings import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)

CHOSEN = "chosen"
MAX_ROWS, MAX_TOKENS = 1000, 2**20
# The context covers all rows, or this share of them where the longest row is so many times as long. It is a multiple
# of the step, and ends where memory becomes the question.
COVERED_SHARE, OUTLIER, CONTEXT_STEP, MAX_CONTEXT = 0.995, 2, 64, 8192
# Pieces of documents that are cut anyway.
PIECE_CONTEXT = 1024
BATCH_TOKENS, LEAST_BATCH_TOKENS = 4096, 512
LEAST_STEPS_AN_EPOCH = 32
WARMUP_STEPS, WARMUP_SHARE = 50, 0.1


@dataclass(frozen=True)
class RowLengths:
    """Tokens of the rows that a run reads first, a tuple of examples for each row, and the number of all rows.

    Attributes:
        is_cut: Whether a long row is cut into pieces of the context instead of being passed over.

    Example:
        >>> RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False).context
        120
    """

    num_rows: int
    rows: tuple[tuple[int, ...], ...]
    is_cut: bool

    @classmethod
    def read(cls, packer: Packer) -> "RowLengths":
        """Encode up to 1,000 rows or a million tokens; rows without an example do not count."""
        rows, num_tokens = list[tuple[int, ...]](), 0
        for _, examples in packer.first_rows(MAX_ROWS):
            if num_tokens > MAX_TOKENS:
                break
            rows.append(tuple(example.num_read for example in examples))
            num_tokens += sum(rows[-1])
        return cls(len(packer.dataset), tuple(rows), packer.is_cut)

    def covered(self, lengths: Sequence[int]) -> int:
        """Return the longest; where it is an outlier, the length that 99.5 % of `lengths` do not exceed."""
        usual = sorted(lengths)[math.ceil(COVERED_SHARE * len(lengths)) - 1] if lengths else 0
        longest = max(lengths, default=0)
        return longest if longest <= OUTLIER * usual else usual

    @property
    def context(self) -> int:
        """The longest example of a row, outliers among the rows aside."""
        return self.covered([max(row) for row in self.rows if row])

    @property
    def together(self) -> int:
        """The tokens of a row whose examples stay in one batch, outliers among the rows aside."""
        return self.covered([sum(row) for row in self.rows if row])

    def batches_an_epoch(self, context: int, batch_tokens: int) -> float:
        """Count the batches of an epoch, packed in the order of the rows; scaled up from the rows looked at."""
        count = sum(1 for _ in self._fill(context, batch_tokens))
        return count * self.num_rows / max(1, len(self.rows))

    def _fill(self, context: int, batch_tokens: int) -> Iterator[int]:
        if self.is_cut:
            yield from range(math.ceil(sum(map(sum, self.rows)) / batch_tokens))
            return
        filled = 0
        for row in self.rows:
            num_tokens = sum(row)
            if max(row, default=0) > context or num_tokens > batch_tokens:
                continue
            if filled + num_tokens > batch_tokens:
                yield filled
                filled = 0
            filled += num_tokens
        if filled:
            yield filled


@dataclass(frozen=True)
class Choice(Generic[Config]):
    """A config without open settings, what was chosen for them, and the reason of each choice in words.

    Example:
        >>> Choice(config, {"context": 128}, ("context = 128 (holds 100.0% of the rows)",)).line
        'chosen for this data: context = 128 (holds 100.0% of the rows)'
    """

    config: Config
    values: dict[str, int]
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line for the log; empty where nothing was open."""
        return f"chosen for this data: {'; '.join(self.reasons)}" if self.reasons else ""


def adapt(config: Config, run: Run, objective: Objective, model: Llama, *, room_for_answer: int = 0) -> Config:
    """Return the config with its open settings chosen; the first call of a run says and records the choice.

    Args:
        room_for_answer: Tokens that the context must hold beside a row: answers that the student writes itself.
    """
    if not open_settings(config):
        return config
    values = run.remember(CHOSEN, lambda: _choose_for(config, run, objective, model, room_for_answer).values)
    chosen = _with_values(config, values)
    if run.rank == 0:
        record = json.dumps(chosen.model_dump(mode="json"), indent=2) + "\n"
        artifact.write_text(run.directory / "config.json", record)
    return chosen


def _choose_for(config: Config, run: Run, objective: Objective, model: Llama, room_for_answer: int) -> Choice[Config]:
    found = RowLengths.read(_packer(config, objective, config.data))
    context = found.context
    if config.validation:
        context = max(context, RowLengths.read(_packer(config, objective, config.validation)).context)
    choice = choose(config, found, longest=context + room_for_answer, max_context=model.config.max_context)
    run.log(choice.line)
    return choice


def chosen_values(run: Run) -> dict[str, int]:
    """Return the values that `adapt` chose in this run; empty where the recipe sets all of them.

    Example:
        >>> chosen_values(run)
        {'context': 128}
    """
    return run.remember(CHOSEN, dict)


def open_settings(config: TrainConfig) -> list[str]:
    """Name the settings that adapt and that the recipe does not set.

    Example:
        >>> config = TrainConfig(data=["shop"], start="base", steps=10, context=128)
        >>> open_settings(config)
        ['batch_tokens', 'optim.warmup_steps']
    """
    values = {
        "context": config.context, "batch_tokens": config.batch_tokens, "optim.warmup_steps": config.optim.warmup_steps
    }  # fmt: skip
    return [name for name, value in values.items() if value is None]


def choose(config: Config, found: RowLengths, *, longest: int, max_context: int) -> Choice[Config]:
    """Choose the open settings for rows of these lengths.

    The context covers all rows but outliers. The batch is halved from 4,096 tokens until an epoch has 32 steps. The
    warm-up is a tenth of the steps, at most 50.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> choose(config, rows, longest=120, max_context=8192).values
        {'context': 128, 'batch_tokens': 512, 'optim.warmup_steps': 0}
    """
    is_open, values, reasons = open_settings(config), dict[str, int](), list[str]()
    bound = min(max_context, config.batch_tokens or max_context)
    context = config.context or choose_context(found, longest, bound)
    if "context" in is_open:
        values["context"] = context
        reasons.append(f"context = {context:,} ({context_reason(found, longest, context)})")
    batch_tokens = config.batch_tokens or _batch_tokens(config, found, context)
    batches = found.batches_an_epoch(context, batch_tokens)
    if "batch_tokens" in is_open:
        values["batch_tokens"] = batch_tokens
        reasons.append(f"batch_tokens = {batch_tokens:,} (an epoch has {batches / config.accumulate:,.0f} steps)")
    if "optim.warmup_steps" in is_open:
        steps = config.steps or math.ceil((config.epochs or 0) * batches / config.accumulate)
        values["optim.warmup_steps"] = min(WARMUP_STEPS, int(WARMUP_SHARE * steps))
        reasons.append(f"optim.warmup_steps = {values['optim.warmup_steps']} (of {steps:,} steps)")
    return Choice(_with_values(config, values), values, tuple(reasons))


def choose_context(found: RowLengths, longest: int, bound: int) -> int:
    """Round the longest example up to a multiple of 64, at most `bound` and 8,192; pieces of cut texts have 1,024.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> choose_context(rows, longest=rows.context, bound=8192)
        128
    """
    if found.is_cut:
        return min(PIECE_CONTEXT, bound)
    return max(1, min(MAX_CONTEXT, bound, math.ceil(longest / CONTEXT_STEP) * CONTEXT_STEP or bound))


def context_reason(found: RowLengths, longest: int, context: int) -> str:
    """Say how much of the data a chosen context holds.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> context_reason(rows, longest=120, context=128)
        'holds 100.0% of the rows'
    """
    if found.is_cut:
        return "longer texts are cut"
    share = sum(max(row, default=0) <= context for row in found.rows) / max(1, len(found.rows))
    return (
        f"holds {share:.1%} of the rows" if longest <= context else f"the most possible, holds {share:.1%} of the rows"
    )


def _batch_tokens(config: TrainConfig, found: RowLengths, context: int) -> int:
    least = max(LEAST_BATCH_TOKENS, context, 0 if found.is_cut else found.together)
    batch_tokens = max(BATCH_TOKENS, least)
    enough = LEAST_STEPS_AN_EPOCH * config.accumulate
    while batch_tokens // 2 >= least and found.batches_an_epoch(context, batch_tokens) < enough:
        batch_tokens //= 2
    return batch_tokens


def _with_values(config: Config, values: dict[str, int]) -> Config:
    sizes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    if "optim.warmup_steps" in values:
        warmup = {"warmup_steps": values["optim.warmup_steps"]}
        sizes["optim"] = config.optim.model_copy(update=warmup)
    return config.model_copy(update=sizes)


def _packer(config: TrainConfig, objective: Objective, sources: list[Path]) -> Packer:
    """Read rows as the run will; neither the context nor the batch decides how a row is encoded."""
    dataset = Dataset(sources, objective.kinds)
    sizes = {"batch_tokens": BATCH_TOKENS, "context": PIECE_CONTEXT}
    return Packer(dataset, objective.encode, seed=config.seed, is_cut=objective.is_cut, **sizes)
