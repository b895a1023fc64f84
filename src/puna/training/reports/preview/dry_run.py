"""Settings of a training stage -> estimated steps, time and memory for `puna raise --dry-run`, and misfit settings.

The inputs may not exist yet: rows may be a sample, and the timed model is a reduced one with constant weights.
`estimate.py` measures the real model just before the first step.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from puna.data.packing import Batch, Packer
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.adapters.adapted import AdapterShape, add_adapter
from puna.model.config import ADAPTED, LlamaConfig
from puna.model.kernels.device import choose_device
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision
from puna.pipeline.errors import DataError
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.pipeline.machine import machine_memory
from puna.pipeline.units import show_bytes
from puna.planning.plan.arithmetic import Device, Machine
from puna.planning.plan.steps.facts import dataset_of, network_of, tokenizer_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import (
    Lengths,
    flops_of,
    probe_network,
    reduced,
    time_passes,
    weight_seconds,
)
from puna.planning.plan.training import Training, plan_training
from puna.training.loop.defaults import Choice, RowLengths, choose
from puna.training.loop.start import recompute_blocks, size_of
from puna.training.objectives.losses import Rows, summed_over_tokens
from puna.training.objectives.objective import Objective
from puna.training.reports.preview.data_summary import DataSummary, summarize
from puna.training.reports.preview.estimate import describe_training, time_optimizer
from puna.training.settings import TrainConfig

# Thresholds of warnings: share of warm-up steps, share of rows longer than max_length, steps, epochs.
MOST_WARMUP, MOST_TOO_LONG, FEWEST_STEPS, MOST_EPOCHS = 0.1, 0.02, 20, 10
# Batches beside the steps: two of the preview, two losses on the initial model's data; batches of validation.
EXTRA_BATCHES, VALIDATION_BATCHES = 4, 27
# Kernels of oneDNN for the batch shapes of a run: 80 to 250 MiB in three runs on a CPU.
COMPILED_BYTES = 120 << 20


def estimate_training(
    config: TrainConfig,
    known: Known,
    objective: Objective,
    tokenizer: Tokenizer,
    *,
    sources: list[Path] | None = None,
    extra_seconds: Callable[[Lengths], float] = lambda _: 0.0,
    extra_bytes: int = 0,
) -> Estimate:
    """Estimate a training stage.

    Args:
        objective: Objective with the encoding of the run; the timed loss is always the next-token loss.
        sources: Datasets in place of `config.data`.
        extra_seconds: Additional seconds of a batch with given lengths, such as the forward pass of a teacher.
        extra_bytes: Additional memory of the run, such as the weights of a teacher.
    """
    start = config.init_from
    widths = network_of(known, start) if start else size_of(config, tokenizer.vocab_size)
    dataset = dataset_of(known, sources or config.data, objective.kinds)
    lengths = RowLengths.read(dataset, objective, seed=config.seed)
    choice = choose(config, lengths, longest=lengths.context, max_context=widths.max_context)
    chosen = choice.config
    sizes = {"batch_tokens": chosen.max_batch_tokens, "context": chosen.max_example_tokens}
    packer = Packer(dataset, objective.encode, seed=config.seed, is_cut=objective.is_cut, **sizes)
    summary = summarize(
        packer, tokenizer, steps=config.steps, epochs=config.epochs, accumulate=config.grad_accumulation
    )
    if not summary.num_trained or not summary.batch.lengths:
        expected = f"rows of at most {chosen.max_example_tokens:,} tokens in which the assistant speaks"
        raise DataError(f"nothing of {len(dataset):,} rows would be trained", expected=expected)
    training = _training(chosen, summary)
    machine = Machine(Device("here", machine_memory(), None, None, None, is_cpu=True), 1)
    plan = plan_training(widths, training, machine)
    peak = PROCESS_BYTES + COMPILED_BYTES + plan.peak_bytes + extra_bytes
    misfits = [*_misfits(chosen, summary, lengths, widths), *_memory_misfit(peak)]
    seconds = _seconds(chosen, summary, widths, plan.trained_parameters, extra_seconds)
    where = start or config.tokenizer
    assert where is not None, "a config has one of the two"
    where = tokenizer_path(known, where)
    return Estimate(seconds, peak, Sketch(widths, where), tuple(misfits), _note(choice, summary))


def starting_tokenizer(config: TrainConfig, known: Known) -> Tokenizer:
    """Return the tokenizer of the initial checkpoint, or of a new model."""
    path = config.init_from or config.tokenizer
    assert path is not None, "a config has one of the two"
    return tokenizer_of(known, path)


def _training(config: TrainConfig, summary: DataSummary) -> Training:
    """Describe the largest batch in the terms of `puna plan`."""
    adapter = config.adapter
    chosen = set(adapter.targets) if adapter else set[str]()
    targets = [part for part in ADAPTED if "all" in chosen or part.split(".")[1] in chosen]
    return describe_training(config, summary, adapter.rank if adapter else None, targets)


def _seconds(
    config: TrainConfig,
    summary: DataSummary,
    widths: LlamaConfig,
    num_trained: int,
    extra_seconds: Callable[[Lengths], float],
) -> float:
    """Return the seconds of the whole stage: batches, optimizer, preview, validation and writing the weights."""
    lengths = summary.batch.lengths
    share = round(summary.batch.num_trained / summary.batch.num_tokens, 1)
    rank = config.adapter.rank if config.adapter else 0
    batch = _batch_seconds(widths, lengths, share, config.precision, rank, config.checkpoint_activations)
    batch += extra_seconds(lengths)
    num_batches = summary.tokens / summary.batch.num_tokens + EXTRA_BATCHES
    num_batches += VALIDATION_BATCHES if config.validation else 0
    optimizer = summary.steps * num_trained * time_optimizer(config.optim, choose_device(config.parallel.device))
    return STAGE_SECONDS + num_batches * batch + optimizer + weight_seconds(widths, 2)


@cache
def _batch_seconds(
    widths: LlamaConfig, lengths: Lengths, trained_share: float, precision: Precision, rank: int, is_recomputed: bool
) -> float:
    """Return the seconds of a forward and backward pass with next-token loss on a fraction of the tokens."""
    small, few = reduced(widths, lengths)
    dtype, num_tokens = torch_dtype(precision), sum(few)
    model = probe_network(small, dtype if rank else torch.float32)
    if rank:
        add_adapter(model, AdapterShape(["all"], rank, 1.0), seed=0)
    if is_recomputed:
        recompute_blocks(model)
    tokens_T = torch.arange(num_tokens, device=model.device) % small.vocab_size
    trained_T = torch.arange(num_tokens, device=model.device) < max(1, trained_share * num_tokens)
    batch = Batch(tokens_T, tokens_T, trained_T, few)

    def compute() -> None:
        hidden_TD = batch.hidden_states(model, dtype)
        rows = {"targets": batch.targets_T[trained_T]}
        summed_over_tokens(model, hidden_TD[trained_T], rows, _loss)["loss"].backward()
        model.zero_grad(set_to_none=True)

    return time_passes(compute) * flops_of(widths, lengths) / flops_of(small, few)


def _loss(logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
    return {"loss": F.cross_entropy(logits_CV, rows["targets"], reduction="sum")}


def _note(choice: Choice[TrainConfig], summary: DataSummary) -> str:
    chosen = ", ".join(f"{name} = {value:,}" for name, value in choice.values.items())
    return f"{summary.steps:,} steps, {summary.tokens:,} tokens" + (f"; chosen: {chosen}" if chosen else "")


def _misfits(config: TrainConfig, summary: DataSummary, lengths: RowLengths, widths: LlamaConfig) -> Iterator[str]:
    """Describe settings that do not fit the data, and the change to make."""
    warmup, steps = config.optim.num_warmup_steps, summary.steps
    if config.max_example_tokens > widths.max_context:
        yield f"max_length = {config.max_example_tokens:,}: the model reads at most {widths.max_context:,} tokens"
    if warmup > MOST_WARMUP * steps:
        part = "all" if warmup >= steps else f"{warmup / steps:.0%}"
        yield f"optim.warmup_steps = {warmup:,}: {part} of the {steps:,} steps; leave it out for a tenth"
    share = summary.num_too_long / max(1, summary.num_looked_at)
    if share > MOST_TOO_LONG:
        longest = f"99.5 % have at most {lengths.context:,} tokens"
        skipped = f"{share:.0%} of the rows are longer and are skipped"
        yield f"max_length = {config.max_length:,}: {skipped}; {longest}"
    batches = lengths.batches_an_epoch(config.max_example_tokens, config.max_batch_tokens)
    if batches <= 1:
        yield f"batch_tokens = {config.max_batch_tokens:,}: one batch holds all the data; leave it out, or lower it"
    elif steps < FEWEST_STEPS:
        yield f"{steps:,} steps: a model learns little in so few; raise epochs or steps, or lower batch_tokens"
    epochs = config.epochs or steps * config.grad_accumulation / max(1.0, batches)
    if epochs > MOST_EPOCHS:
        name = f"steps = {config.steps:,}" if config.steps else f"epochs = {config.epochs:g}"
        yield f"{name}: the data is read {epochs:,.0f} times, which learns it by heart; {MOST_EPOCHS} epochs are many"
    elif config.steps and batches > 1 and math.floor(10 * epochs) < 1:
        yield f"steps = {config.steps:,}: {epochs:.1%} of the data is read; epochs = 1 reads all of it"


def _memory_misfit(peak: int) -> Iterator[str]:
    if peak > machine_memory():
        yield (
            f"memory: about {show_bytes(peak)} of this machine's {show_bytes(machine_memory())}; "
            "an adapter, checkpoint_activations or a smaller batch_tokens need less (`puna plan`)"
        )
