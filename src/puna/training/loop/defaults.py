"""Open settings of a recipe and lengths of the rows -> values of max_length, batch_tokens and warmup_steps.

A value in the recipe is never changed. The choice depends on data and settings alone; a journal keeps the values for a
resumed run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from puna.data.dataset import Dataset
from puna.data.packing import Packer
from puna.model.llama import Llama
from puna.pipeline.config import former_names
from puna.pipeline.run import Run
from puna.training.objectives.objective import Objective
from puna.training.settings import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)

CHOSEN = "chosen"
MAX_ROWS, MAX_TOKENS = 1000, 2**20
# max_length covers all rows. Where the longest row is more than OUTLIER times as long as the row at COVERED_SHARE,
# max_length covers that share alone. It is a multiple of CONTEXT_STEP, at most MAX_CONTEXT to bound the memory.
COVERED_SHARE, OUTLIER, CONTEXT_STEP, MAX_CONTEXT = 0.995, 2, 64, 8192
# Length of the pieces of documents, which are cut in any case.
PIECE_CONTEXT = 1024
BATCH_TOKENS, LEAST_BATCH_TOKENS = 4096, 512
LEAST_STEPS_AN_EPOCH = 32
WARMUP_STEPS, WARMUP_SHARE = 50, 0.1


@dataclass(frozen=True)
class RowLengths:
    """Lengths of the examples of the first rows of a run, in tokens.

    Attributes:
        num_rows: Number of all rows of the data.
        rows: Lengths of the examples of every sampled row.
        is_cut: Whether a long row is cut into pieces instead of being skipped.

    Example:
        >>> RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False).context
        120
    """

    num_rows: int
    rows: tuple[tuple[int, ...], ...]
    is_cut: bool

    @classmethod
    def read(cls, dataset: Dataset, objective: Objective, *, seed: int) -> "RowLengths":
        """Encode up to 1,000 rows or a million tokens as a run does; rows without an example do not count."""
        # The encoding does not depend on batch size and maximum length, which are not chosen yet.
        sizes = {"batch_tokens": BATCH_TOKENS, "context": PIECE_CONTEXT}
        packer = Packer(dataset, objective.encode, seed=seed, is_cut=objective.is_cut, **sizes)
        rows, num_tokens = list[tuple[int, ...]](), 0
        for _, examples in packer.first_rows(MAX_ROWS):
            if num_tokens > MAX_TOKENS:
                break
            rows.append(tuple(example.num_read for example in examples))
            num_tokens += sum(rows[-1])
        return cls(len(dataset), tuple(rows), objective.is_cut)

    def covered(self, lengths: Sequence[int]) -> int:
        """Return the longest length; where the longest is an outlier, the 99.5th percentile."""
        usual = sorted(lengths)[math.ceil(COVERED_SHARE * len(lengths)) - 1] if lengths else 0
        longest = max(lengths, default=0)
        return longest if longest <= OUTLIER * usual else usual

    @property
    def context(self) -> int:
        """Length of the longest example, without outliers among the rows."""
        return self.covered([max(row) for row in self.rows if row])

    @property
    def together(self) -> int:
        """Largest number of tokens of a row, whose examples stay in one batch; without outliers among the rows."""
        return self.covered([sum(row) for row in self.rows if row])

    def batches_an_epoch(self, context: int, batch_tokens: int) -> float:
        """Estimate the number of batches per epoch from the sampled rows, packed in order."""
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
    """A config with chosen values for the open settings, and the reason for each value.

    Example:
        >>> Choice(config, {"max_length": 128}, ("max_length = 128 (holds 100.0% of the rows)",)).line
        'chosen for this data: max_length = 128 (holds 100.0% of the rows)'
    """

    config: Config
    values: dict[str, int]
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """Line for the log; empty without open settings."""
        return f"chosen for this data: {'; '.join(self.reasons)}" if self.reasons else ""


def adapt(config: Config, run: Run, objective: Objective, model: Llama, *, room_for_answer: int = 0) -> Config:
    """Return the config with values for all open settings; the first call of a run logs and records the choice.

    Args:
        room_for_answer: Tokens to reserve beside a row for a generated answer (on-policy distillation).
    """
    if not open_settings(config):
        return config
    current = former_names(type(config))
    recorded = {new: old for old, new in current.items()}

    def choose_values() -> dict[str, int]:
        values = _choose_for(config, run, objective, model, room_for_answer).values
        return {recorded.get(name, name): value for name, value in values.items()}

    remembered: dict[str, int] = run.remember(CHOSEN, choose_values)
    values = {current.get(name, name): value for name, value in remembered.items()}
    chosen = _with_values(config, values)
    if run.rank == 0:
        chosen.write_record(run.directory)
    return chosen


def _choose_for(config: Config, run: Run, objective: Objective, model: Llama, room_for_answer: int) -> Choice[Config]:
    lengths = RowLengths.read(Dataset(config.data, objective.kinds), objective, seed=config.seed)
    context = lengths.context
    if config.validation:
        validation = Dataset(config.validation, objective.kinds)
        context = max(context, RowLengths.read(validation, objective, seed=config.seed).context)
    choice = choose(config, lengths, longest=context + room_for_answer, max_context=model.config.max_context)
    run.log(choice.line)
    return choice


def chosen_values(run: Run) -> dict[str, int]:
    """Return the values that `adapt` chose in this run, by the former names of the settings, as records use them.

    Example:
        >>> chosen_values(run)
        {'context': 128}
    """
    return run.remember(CHOSEN, dict)


def open_settings(config: TrainConfig) -> list[str]:
    """Return the names of the settings that `adapt` chooses, because the recipe leaves them out.

    Example:
        >>> config = TrainConfig(data=["shop"], init_from="base", steps=10, max_length=128)
        >>> open_settings(config)
        ['batch_tokens', 'optim.warmup_steps']
    """
    sizes = {"max_length": config.max_length, "batch_tokens": config.batch_tokens}
    values = sizes | {"optim.warmup_steps": config.optim.warmup_steps}
    return [name for name, value in values.items() if value is None]


def choose(config: Config, lengths: RowLengths, *, longest: int, max_context: int) -> Choice[Config]:
    """Choose the open settings for rows of these lengths.

    max_length covers all rows except outliers. batch_tokens starts at 4,096 and is halved until an epoch has 32 steps.
    The warm-up is a tenth of the steps, at most 50.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> choose(config, rows, longest=120, max_context=8192).values
        {'max_length': 128, 'batch_tokens': 512, 'optim.warmup_steps': 0}
    """
    is_open, values, reasons = open_settings(config), dict[str, int](), list[str]()
    bound = min(max_context, config.batch_tokens or max_context)
    context = config.max_length or choose_context(lengths, longest, bound)
    if "max_length" in is_open:
        values["max_length"] = context
        reasons.append(f"max_length = {context:,} ({context_reason(lengths, longest, context)})")
    batch_tokens = config.batch_tokens or _batch_tokens(config, lengths, context)
    batches = lengths.batches_an_epoch(context, batch_tokens)
    if "batch_tokens" in is_open:
        values["batch_tokens"] = batch_tokens
        reasons.append(
            f"batch_tokens = {batch_tokens:,} (an epoch has {batches / config.grad_accumulation:,.0f} steps)"
        )
    if "optim.warmup_steps" in is_open:
        steps = config.steps or math.ceil((config.epochs or 0) * batches / config.grad_accumulation)
        values["optim.warmup_steps"] = min(WARMUP_STEPS, int(WARMUP_SHARE * steps))
        reasons.append(f"optim.warmup_steps = {values['optim.warmup_steps']} (of {steps:,} steps)")
    return Choice(_with_values(config, values), values, tuple(reasons))


def choose_context(lengths: RowLengths, longest: int, bound: int) -> int:
    """Choose max_length: the longest example, rounded up to a multiple of 64, at most `bound` and 8,192.

    Documents that are cut into pieces get pieces of 1,024 tokens.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> choose_context(rows, longest=rows.context, bound=8192)
        128
    """
    if lengths.is_cut:
        return min(PIECE_CONTEXT, bound)
    return max(1, min(MAX_CONTEXT, bound, math.ceil(longest / CONTEXT_STEP) * CONTEXT_STEP or bound))


def context_reason(lengths: RowLengths, longest: int, context: int) -> str:
    """Describe the share of the rows that fit into a context.

    Example:
        >>> rows = RowLengths(num_rows=3, rows=((90,), (120,), (100,)), is_cut=False)
        >>> context_reason(rows, longest=120, context=128)
        'holds 100.0% of the rows'
    """
    if lengths.is_cut:
        return "longer texts are cut"
    share = sum(max(row, default=0) <= context for row in lengths.rows) / max(1, len(lengths.rows))
    return (
        f"holds {share:.1%} of the rows"
        if longest <= context
        else f"the largest possible, holds {share:.1%} of the rows"
    )


def _batch_tokens(config: TrainConfig, lengths: RowLengths, context: int) -> int:
    least = max(LEAST_BATCH_TOKENS, context, 0 if lengths.is_cut else lengths.together)
    batch_tokens = max(BATCH_TOKENS, least)
    enough = LEAST_STEPS_AN_EPOCH * config.grad_accumulation
    while batch_tokens // 2 >= least and lengths.batches_an_epoch(context, batch_tokens) < enough:
        batch_tokens //= 2
    return batch_tokens


def _with_values(config: Config, values: dict[str, int]) -> Config:
    sizes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    if "optim.warmup_steps" in values:
        warmup = {"warmup_steps": values["optim.warmup_steps"]}
        sizes["optim"] = config.optim.model_copy(update=warmup)
    return config.model_copy(update=sizes)
