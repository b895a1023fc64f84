"""A training step's settings and what is known of its inputs -> steps, time, memory, and settings that do not fit.

Nothing of the run exists yet: rows may be a sample, the network is a reduced one with constant weights. `forecast.py`
measures the real ones just before the first step.
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
from puna.training.loop.defaults import BATCH_TOKENS, PIECE_CONTEXT, Choice, RowLengths, choose
from puna.training.loop.start import recompute_blocks, size_of
from puna.training.objectives.losses import Rows, summed_over_tokens
from puna.training.objectives.objective import Objective
from puna.training.reports.preview.data_summary import Survey, survey
from puna.training.reports.preview.estimate import describe_training, time_optimizer
from puna.training.settings import TrainConfig

# A warm-up beyond this share of the steps, rows beyond the context, few steps, many epochs: worth a sentence.
MOST_WARMUP, MOST_TOO_LONG, FEWEST_STEPS, MOST_EPOCHS = 0.1, 0.02, 20, 10
# Batches beside the steps: two that the preview times, and losses on the start's data; a validation's.
EXTRA_BATCHES, VALIDATION_BATCHES = 4, 27
# Products that oneDNN compiles for the shapes of a run: 80 to 250 MiB in three runs on a CPU.
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
    """Foresee a training step.

    Args:
        objective: Any objective that encodes rows as the run will; the loss of the next token is what is timed.
        sources: The data, where it is not `config.data`.
        extra_seconds: Seconds that a batch of these lengths takes beside the student's own: a teacher.
        extra_bytes: Memory that the run holds beside: a teacher.
    """
    start = config.start
    widths = network_of(known, start) if start else size_of(config, tokenizer.vocab_size)
    dataset = dataset_of(known, sources or config.data, objective.kinds)
    kinds = {"seed": config.seed, "is_cut": objective.is_cut}
    lengths = RowLengths.read(
        Packer(dataset, objective.encode, batch_tokens=BATCH_TOKENS, context=PIECE_CONTEXT, **kinds)
    )
    choice = choose(config, lengths, longest=lengths.context, max_context=widths.max_context)
    chosen = choice.config
    sizes = {"batch_tokens": chosen.max_batch_tokens, "context": chosen.max_length}
    packer = Packer(dataset, objective.encode, **sizes, **kinds)
    found = survey(packer, tokenizer, steps=config.steps, epochs=config.epochs, accumulate=config.accumulate)
    if not found.num_trained or not found.batch.lengths:
        expected = f"rows of at most {chosen.max_length:,} tokens in which the assistant speaks"
        raise DataError(f"nothing of {len(dataset):,} rows would be trained", expected=expected)
    training = _training(chosen, found)
    machine = Machine(Device("here", machine_memory(), None, None, None, is_cpu=True), 1)
    plan = plan_training(widths, training, machine)
    peak = PROCESS_BYTES + COMPILED_BYTES + plan.peak_bytes + extra_bytes
    misfits = [*_misfits(chosen, found, lengths, widths), *_memory_misfit(peak)]
    seconds = _seconds(chosen, found, widths, plan.trained_parameters, extra_seconds)
    where = start or config.tokenizer
    assert where is not None, "a config has one of the two"
    where = tokenizer_path(known, where)
    return Estimate(seconds, peak, Sketch(widths, where), tuple(misfits), _note(choice, found))


def starting_tokenizer(config: TrainConfig, known: Known) -> Tokenizer:
    """Return the tokenizer of the checkpoint that training begins with, or the one of a model from scratch."""
    path = config.start or config.tokenizer
    assert path is not None, "a config has one of the two"
    return tokenizer_of(known, path)


def _training(config: TrainConfig, found: Survey) -> Training:
    """Say in the plan's words what the largest batch is like."""
    adapter = config.adapter
    chosen = set(adapter.targets) if adapter else set[str]()
    targets = [part for part in ADAPTED if "all" in chosen or part.split(".")[1] in chosen]
    return describe_training(config, found, adapter.rank if adapter else None, targets)


def _seconds(
    config: TrainConfig,
    found: Survey,
    widths: LlamaConfig,
    num_trained: int,
    extra_seconds: Callable[[Lengths], float],
) -> float:
    """Return the time of the whole step: batches, optimizer, preview, validation, and the weights written."""
    lengths = found.batch.lengths
    share = round(found.batch.num_trained / found.batch.num_tokens, 1)
    rank = config.adapter.rank if config.adapter else 0
    batch = _batch_seconds(widths, lengths, share, config.precision, rank, config.checkpoint_activations)
    batch += extra_seconds(lengths)
    num_batches = found.tokens / found.batch.num_tokens + EXTRA_BATCHES
    num_batches += VALIDATION_BATCHES if config.validation else 0
    optimizer = found.steps * num_trained * time_optimizer(config.optim, choose_device(config.parallel.device))
    return STAGE_SECONDS + num_batches * batch + optimizer + weight_seconds(widths, 2)


@cache
def _batch_seconds(
    widths: LlamaConfig, lengths: Lengths, trained_share: float, precision: Precision, rank: int, is_recomputed: bool
) -> float:
    """Return the seconds of a batch forth and back, of the loss of the next token on a share of its tokens."""
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


def _note(choice: Choice[TrainConfig], found: Survey) -> str:
    chosen = ", ".join(f"{name} = {value:,}" for name, value in choice.values.items())
    return f"{found.steps:,} steps, {found.tokens:,} tokens" + (f"; chosen: {chosen}" if chosen else "")


def _misfits(config: TrainConfig, found: Survey, lengths: RowLengths, widths: LlamaConfig) -> Iterator[str]:
    """Name settings that do not fit the data, with what to change."""
    warmup, steps = config.optim.num_warmup_steps, found.steps
    if config.max_length > widths.max_context:
        yield f"context = {config.max_length:,}: the model reads at most {widths.max_context:,} tokens"
    if warmup > MOST_WARMUP * steps:
        part = "all" if warmup >= steps else f"{warmup / steps:.0%}"
        yield f"optim.warmup_steps = {warmup:,}: {part} of the {steps:,} steps; leave it out for a tenth"
    share = found.num_too_long / max(1, found.num_looked_at)
    if share > MOST_TOO_LONG:
        longest = f"99.5 % have at most {lengths.context:,} tokens"
        yield f"context = {config.max_length:,}: {share:.0%} of the rows are longer and are passed over; {longest}"
    batches = lengths.batches_an_epoch(config.max_length, config.max_batch_tokens)
    if batches <= 1:
        yield f"batch_tokens = {config.max_batch_tokens:,}: one batch holds all the data; leave it out, or lower it"
    elif steps < FEWEST_STEPS:
        yield f"{steps:,} steps: a model learns little in so few; raise epochs or steps, or lower batch_tokens"
    epochs = config.epochs or steps * config.accumulate / max(1.0, batches)
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
