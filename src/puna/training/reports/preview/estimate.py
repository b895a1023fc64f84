"""Data summary, model and this machine -> estimated memory and time of a run, later compared with the measured ones.

A forward and backward pass over the first batch, without an update, measures time and memory with objective, teacher
and temporary tensors. Arithmetic (planning/plan) scales the memory to the largest batch, and adds the resident memory,
the AdamW moments and the kernels that oneDNN will compile for later batches.
"""

import time
from dataclasses import dataclass, replace

import torch

from puna.data.packing import Batch
from puna.model.adapters.adapted import adapted_modules
from puna.model.config import ADAPTED
from puna.model.llama import Llama
from puna.pipeline.machine import machine_memory
from puna.planning.plan.arithmetic import FLOAT_BYTES, Device, Machine
from puna.planning.plan.training import Training as PlannedTraining
from puna.planning.plan.training import TrainingPlan, plan_training
from puna.training.loop.loop import run_batches
from puna.training.loop.training import Training
from puna.training.objectives.objective import Objective
from puna.training.reports.preview.data_summary import DataSummary
from puna.training.reports.preview.onednn_kernels import KERNEL_BYTES, compiled_products, compiles_products
from puna.training.reports.preview.process_memory import forget_peak, held_bytes, peak_bytes
from puna.training.settings import Optim, TrainConfig

# A batch with more FLOPs is timed once, without a warm-up pass.
FLOPS_OF_TWO_PASSES = 5e12
OPTIMIZER_SAMPLE = 2**22


@dataclass(frozen=True)
class RunEstimate:
    """Estimated memory and time of a run.

    Gradients, rounded weights, activations and logits are not all in memory at the same time.

    Attributes:
        held_bytes: Memory of the process before the first step, including the weights.
        batch_bytes: Largest simultaneous sum of gradients, activations, logits and temporary tensors of a layer.
        kernel_bytes: Kernels that oneDNN compiles for batches of other shapes than the first.
        peak_bytes: Peak memory of the process: held_bytes + moments_bytes + batch_bytes + kernel_bytes.

    Example: see `estimate_run`.
    """

    trained_parameters: int
    parameters: int
    weights_bytes: int
    held_bytes: int | None
    moments_bytes: int
    gradients_bytes: int
    rounded_weights_bytes: int
    activations_bytes: int
    logits_bytes: int
    batch_bytes: int
    kernel_bytes: int
    peak_bytes: int | None
    tokens_per_second: float
    seconds: float


def estimate_run(run: Training, summary: DataSummary, batch: Batch) -> RunEstimate:
    """Estimate time and memory of a run from its first batch; leaves no gradient behind.

    Example:
        >>> estimate_run(training, summary, batch).peak_bytes
    """
    config, model = run.config, run.model
    training, device = training_of(config, model, run.objective, summary), model.device
    plan = _planned(model, training)
    held_bytes(device)  # freed memory returns to the system, so that the growth by the batch is visible
    is_measured = forget_peak(device)
    seconds = _time_batch(run, batch, plan.flops_per_token * len(batch.tokens_T))
    most = peak_bytes(device) if is_measured else None
    step = time_optimizer(config.optim, device) * plan.trained_parameters
    tokens_a_step = max(1.0, summary.tokens / max(1, summary.steps))
    step += seconds * tokens_a_step / len(batch.tokens_T)
    held = held_bytes(device)
    first = replace(training, lengths=batch.lengths, batch_tokens=len(batch.tokens_T), trained_tokens=_trained(batch))
    measured = None if most is None or held is None else max(0, most - held)
    batch_bytes = _batch_bytes(model, training, first, measured)
    kernels = KERNEL_BYTES * _num_new_kernels(model, training, batch, summary) if compiles_products(device) else 0
    on_top = plan.moments_bytes + batch_bytes + kernels
    return RunEstimate(
        trained_parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
        parameters=model.config.num_parameters,
        weights_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        held_bytes=held,
        moments_bytes=plan.moments_bytes,
        gradients_bytes=plan.gradients_bytes,
        rounded_weights_bytes=plan.rounded_weights_bytes,
        activations_bytes=plan.activations_bytes,
        logits_bytes=plan.logits_bytes,
        batch_bytes=batch_bytes,
        kernel_bytes=kernels,
        peak_bytes=None if held is None else held + on_top,
        tokens_per_second=tokens_a_step / step,
        seconds=step * summary.steps,
    )


def _planned(model: Llama, training: PlannedTraining) -> TrainingPlan:
    device = Device("here", machine_memory(), None, None, None, is_cpu=model.device.type == "cpu")
    return plan_training(model.config, training, Machine(device, 1))


def _batch_bytes(model: Llama, training: PlannedTraining, first: PlannedTraining, measured: int | None) -> int:
    """Return the memory of a step beside weights and moments: arithmetic, corrected by the measured `first` batch."""
    largest, one = (_planned(model, each) for each in (training, replace(first, accumulate=1)))
    computed, computed_first = (each.peak_bytes - each.weights_bytes - each.moments_bytes for each in (largest, one))
    return computed if measured is None else round(computed * max(1.0, measured / computed_first))


def _num_new_kernels(model: Llama, training: PlannedTraining, batch: Batch, summary: DataSummary) -> int:
    """Count the matrix products of the run's batches that the first batch did not compile."""
    shapes = [(each.lengths, each.num_trained) for each in summary.batches]
    known = compiled_products(model.config, training, [(batch.lengths, _trained(batch))])
    return len(compiled_products(model.config, training, shapes) - known)


def _trained(batch: Batch) -> int:
    return int(batch.trained_T.sum())


def training_of(config: TrainConfig, model: Llama, objective: Objective, summary: DataSummary) -> PlannedTraining:
    """Describe the largest batch of a run and the trained parameters in the terms of `puna plan`."""
    adapted = adapted_modules(model)
    parts = {path.split(".", 2)[2] for path in adapted if path.startswith("layers.")}
    rank = max(module.down_RI.shape[0] for module in adapted.values()) if adapted else None
    training = describe_training(config, summary, rank, [part for part in ADAPTED if part in parts])
    return replace(training, values_per_logit=objective.bytes_per_logit // FLOAT_BYTES["float32"])


def describe_training(
    config: TrainConfig, summary: DataSummary, rank: int | None, targets: list[str]
) -> PlannedTraining:
    """Describe the largest batch of a run in the terms of `puna plan`.

    Args:
        config: Settings of the run.
        summary: Data summary of the run.
        rank: Rank of the adapter; None where all weights are trained.
        targets: Matrices of a layer with an adapter, such as "attention.q_proj".
    """
    return PlannedTraining(
        tokens=summary.tokens,
        context=max(summary.batch.lengths, default=config.max_example_tokens),
        batch_tokens=summary.batch.num_tokens,
        accumulate=config.grad_accumulation,
        precision=config.precision,
        lora_rank=rank,
        targets=targets,
        checkpoint_activations=config.checkpoint_activations,
        lengths=summary.batch.lengths,
        trained_tokens=summary.batch.num_trained,
    )


def _time_batch(run: Training, batch: Batch, flops: float) -> float:
    """Return the seconds of a forward and backward pass; the first of two passes is a warm-up."""
    seconds = 0.0
    for _ in range(2 if flops < FLOPS_OF_TWO_PASSES else 1):
        start = time.perf_counter()
        run_batches(run, [batch], divisor=1)
        _wait(run.model.device)
        seconds = time.perf_counter() - start
        run.model.zero_grad(set_to_none=True)
    return seconds


def time_optimizer(optim: Optim, device: torch.device) -> float:
    """Return the seconds that clipping and AdamW take for one parameter."""
    sample = torch.nn.Parameter(torch.zeros(OPTIMIZER_SAMPLE, device=device))
    optimizer = torch.optim.AdamW([sample], fused=True)
    seconds = 0.0
    for _ in range(2):
        sample.grad = torch.ones_like(sample)
        start = time.perf_counter()
        torch.nn.utils.clip_grad_norm_([sample], optim.clip)
        optimizer.step()
        _wait(device)
        seconds = time.perf_counter() - start
    return seconds / OPTIMIZER_SAMPLE


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Outcome:
    """Measured memory and time of a run; None without a measurement.

    Example: see `measured_outcome`.
    """

    peak_bytes: int | None
    tokens_per_second: float | None
    seconds: float | None


def measured_outcome(rows: list[dict[str, float]], peak: int | None) -> Outcome:
    """Return the total time of all steps from the rows of metrics, without pauses and saving."""
    seconds = tokens = 0.0
    for before, row in zip([{"tokens": 0}, *rows], rows, strict=False):
        count = row["tokens"] - before["tokens"]
        tokens, seconds = tokens + count, seconds + count / max(1, row["tokens_per_s"])
    return Outcome(peak, tokens / seconds if seconds else None, seconds or None)
