"""A survey of the data, a network and this machine -> the memory and time that a run will take; then what it took.

The first batch is computed forth and back without changing a weight. That tells a batch's time and memory, with the
objective, its teacher and the short-lived tensors of a layer. Arithmetic (plan/) scales the memory to the largest
batch, and adds what the process holds, the moments, and the kernels that oneDNN will compile for later batches.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from puna.data.packing import Batch
from puna.model.adapters.adapted import adapted_modules
from puna.model.config import ADAPTED
from puna.model.llama import Llama
from puna.pipeline.machine import machine_memory
from puna.planning.plan.arithmetic import Device, Machine
from puna.planning.plan.training import Training, TrainingPlan, plan_training
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.objective import Objective
from puna.training.objectives.pairs import Pairs
from puna.training.reports.preview.data_summary import Survey
from puna.training.reports.preview.onednn_kernels import KERNEL_BYTES, compiled_products, compiles_products
from puna.training.reports.preview.process_memory import forget_peak, held_bytes, peak_bytes
from puna.training.settings import Optim, TrainConfig

# Beyond so many FLOPs a batch is computed once: the first, slower one has to do.
FLOPS_OF_TWO_PASSES = 5e12
OPTIMIZER_SAMPLE = 2**22
# float32 values held for each logit beside itself: a teacher's, rounded and not; or log-probabilities and gradients.
FLOATS_WITH_TEACHER, FLOATS_OF_PAIRS = 2, 3


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Gradients, rounded weights, activations and logits do not all stand at once.

    Attributes:
        held_bytes: memory of the process before the first step, weights included.
        batch_bytes: most of gradients, activations, logits and a layer's short-lived tensors that stands at once.
        kernel_bytes: products that oneDNN compiles for batches of other shapes than the first.
        peak_bytes: most memory of the process: held, moments, batch and kernels.
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


def forecast(
    config: TrainConfig,
    model: Llama,
    objective: Objective,
    found: Survey,
    batch: Batch,
    backward: Callable[[Batch], None],
) -> Forecast:
    """Predict a run, given a function that computes a batch forth and back; leaves no gradient behind."""
    training, device = training_of(config, model, objective, found), model.device
    made = _planned(model, training)
    held_bytes(device)  # what is free is handed back, so that what the batch takes is seen
    is_measured = forget_peak(device)
    seconds = _time_batch(model, backward, batch, made.flops_per_token * len(batch.tokens_T))
    most = peak_bytes(device) if is_measured else None
    step = time_optimizer(config.optim, device) * made.trained_parameters
    tokens_a_step = max(1.0, found.tokens / max(1, found.steps))
    step += seconds * tokens_a_step / len(batch.tokens_T)
    held = held_bytes(device)
    first = replace(training, lengths=batch.lengths, batch_tokens=len(batch.tokens_T), trained_tokens=_trained(batch))
    taken = None if most is None or held is None else max(0, most - held)
    batch_bytes = _batch_bytes(model, training, first, taken)
    kernels = KERNEL_BYTES * _num_new_kernels(model, training, batch, found) if compiles_products(device) else 0
    on_top = made.moments_bytes + batch_bytes + kernels
    return Forecast(
        trained_parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
        parameters=model.config.num_parameters,
        weights_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        held_bytes=held,
        moments_bytes=made.moments_bytes,
        gradients_bytes=made.gradients_bytes,
        rounded_weights_bytes=made.rounded_weights_bytes,
        activations_bytes=made.activations_bytes,
        logits_bytes=made.logits_bytes,
        batch_bytes=batch_bytes,
        kernel_bytes=kernels,
        peak_bytes=None if held is None else held + on_top,
        tokens_per_second=tokens_a_step / step,
        seconds=step * found.steps,
    )


def _planned(model: Llama, training: Training) -> TrainingPlan:
    device = Device("here", machine_memory(), None, None, None, is_cpu=model.device.type == "cpu")
    return plan_training(model.config, training, Machine(device, 1))


def _batch_bytes(model: Llama, training: Training, first: Training, taken: int | None) -> int:
    """Return what a step takes beside weights and moments: arithmetic, times what it missed of the `first` batch."""
    largest, one = (_planned(model, each) for each in (training, replace(first, accumulate=1)))
    computed, computed_first = (each.peak_bytes - each.weights_bytes - each.moments_bytes for each in (largest, one))
    return computed if taken is None else round(computed * max(1.0, taken / computed_first))


def _num_new_kernels(model: Llama, training: Training, batch: Batch, found: Survey) -> int:
    """Count the products that the run's batches need and the first one didn't."""
    shapes = [(each.lengths, each.num_trained) for each in found.batches]
    known = compiled_products(model.config, training, [(batch.lengths, _trained(batch))])
    return len(compiled_products(model.config, training, shapes) - known)


def _trained(batch: Batch) -> int:
    return int(batch.trained_T.sum())


def training_of(config: TrainConfig, model: Llama, objective: Objective, found: Survey) -> Training:
    """Say in the plan's words what a run's largest batch is like, and what of the network is trained."""
    adapted = adapted_modules(model)
    parts = {path.split(".", 2)[2] for path in adapted if path.startswith("layers.")}
    rank = max(module.down_RI.shape[0] for module in adapted.values()) if adapted else None
    training = describe_training(config, found, rank, [part for part in ADAPTED if part in parts])
    return replace(training, values_per_logit=_values_per_logit(objective))


def describe_training(config: TrainConfig, found: Survey, rank: int | None, targets: list[str]) -> Training:
    """Describe the largest batch of a run in the terms of `puna plan`.

    Args:
        config: Settings of the run.
        found: Data summary of the run.
        rank: Rank of the adapter; None where all weights are trained.
        targets: Matrices of a layer with an adapter, such as "attention.q_proj".
    """
    return Training(
        tokens=found.tokens,
        context=max(found.batch.lengths, default=config.max_length),
        batch_tokens=found.batch.num_tokens,
        accumulate=config.accumulate,
        precision=config.precision,
        lora_rank=rank,
        targets=targets,
        checkpoint_activations=config.checkpoint_activations,
        lengths=found.batch.lengths,
        trained_tokens=found.batch.num_trained,
    )


def _values_per_logit(objective: Objective) -> int:
    if isinstance(objective, LiveTeacher):
        return FLOATS_WITH_TEACHER
    return FLOATS_OF_PAIRS if isinstance(objective, Pairs) else 0


def _time_batch(model: Llama, backward: Callable[[Batch], None], batch: Batch, flops: float) -> float:
    """Return the seconds of a batch; the first of two passes warms up."""
    seconds = 0.0
    for _ in range(2 if flops < FLOPS_OF_TWO_PASSES else 1):
        start = time.perf_counter()
        backward(batch)
        _wait(model.device)
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
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
    """What a run took, in the forecast's words; None where it was not measured."""

    peak_bytes: int | None
    tokens_per_second: float | None
    seconds: float | None


def outcome(rows: list[dict[str, float]], peak: int | None) -> Outcome:
    """Sum up the rows of metrics: what all steps took together, waiting and saving aside."""
    seconds = tokens = 0.0
    for before, row in zip([{"tokens": 0}, *rows], rows, strict=False):
        count = row["tokens"] - before["tokens"]
        tokens, seconds = tokens + count, seconds + count / max(1, row["tokens_per_s"])
    return Outcome(peak, tokens / seconds if seconds else None, seconds or None)
