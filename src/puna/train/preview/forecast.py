"""A survey of the data, a network and this machine -> the memory and time that a run will take; then what it took.

Memory is arithmetic (plan/) on top of what the process holds before the first step. Time is measured on the first
batch, computed forth and back without changing a weight, so it knows the objective, its teacher and this machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from puna.checkpoint.memory import machine_memory
from puna.data.packing import Batch
from puna.model.adapted import adapted_modules
from puna.model.config import ADAPTED
from puna.model.llama import Llama
from puna.plan.arithmetic import Device, Machine
from puna.plan.training import Training, plan_training
from puna.train.loop.settings import Optim, TrainConfig
from puna.train.objectives.imitation.live_teacher import LiveTeacher
from puna.train.objectives.objective import Objective
from puna.train.objectives.pairs import Pairs
from puna.train.preview.process import held_bytes
from puna.train.preview.survey import Survey

# Beyond so many FLOPs a batch is computed once: the first, slower one has to do.
FLOPS_OF_TWO_PASSES = 5e12
OPTIMIZER_SAMPLE = 2**22
# float32 values held for each logit beside itself: a teacher's, rounded and not; or log-probabilities and gradients.
FLOATS_WITH_TEACHER, FLOATS_OF_PAIRS = 2, 3


@dataclass(frozen=True)
class Forecast:
    """What a run will take. `held_bytes`: what the process holds before the first step, weights included.

    The others of memory come on top and do not all stand at once; `peak_bytes` is the most that does, and what is held.
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
    training = training_of(config, model, objective, found)
    machine = Machine(Device("here", machine_memory(), None, None, None, is_cpu=model.device.type == "cpu"), 1)
    made = plan_training(model.config, training, machine)
    seconds = _time_batch(model, backward, batch, made.flops_per_token * len(batch.tokens_T))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    step = time_optimizer(config.optim, model.device) * num_trained
    tokens_a_step = max(1.0, found.tokens / max(1, found.steps))
    step += seconds * tokens_a_step / len(batch.tokens_T)
    held = held_bytes(model.device)
    return Forecast(
        num_trained,
        model.config.num_parameters,
        sum(tensor.nbytes for tensor in model.state_dict().values()),
        held,
        made.moments_bytes,
        made.gradients_bytes,
        made.rounded_weights_bytes,
        made.activations_bytes,
        made.logits_bytes,
        None if held is None else held + made.peak_bytes - made.weights_bytes,
        tokens_a_step / step,
        step * found.steps,
    )


def training_of(config: TrainConfig, model: Llama, objective: Objective, found: Survey) -> Training:
    """Say in the plan's words what a run's largest batch is like, and what of the network is trained."""
    adapted = adapted_modules(model)
    parts = {path.split(".", 2)[2] for path in adapted if path.startswith("layers.")}
    return Training(
        tokens=found.tokens,
        context=max(found.batch.lengths, default=config.max_length),
        batch_tokens=found.batch.num_tokens,
        accumulate=config.accumulate,
        precision=config.precision,
        lora_rank=max(module.down_RI.shape[0] for module in adapted.values()) if adapted else None,
        targets=[part for part in ADAPTED if part in parts],
        checkpoint_activations=config.checkpoint_activations,
        lengths=found.batch.lengths,
        trained_tokens=found.batch.num_trained,
        values_per_logit=_values_per_logit(objective),
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
