"""A model, a machine and a task -> Plan: memory, speed and cost, advice and assumptions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from puna.model.config import LlamaConfig
from puna.pipeline.units import show_bytes
from puna.planning.plan.answer import Answer, answer
from puna.planning.plan.arithmetic import (
    DEVICES,
    PRICES_AS_OF,
    WEIGHT_DTYPES,
    Machine,
    Parameters,
    Service,
    ServicePlan,
    Stored,
    count_parameters,
    kv_bytes_per_token,
    plan_service,
    show_devices,
)
from puna.planning.plan.layout import LayoutPlan, propose_layout
from puna.planning.plan.training import Training, TrainingPlan, plan_training

LORA_RANK = 16


@dataclass(frozen=True)
class Plan:
    """Request and results of `puna plan`; `puna plan --json` prints `asdict` of a Plan.

    Example: see `make_plan`.
    """

    model: str
    stored_dtype: str | None
    parameters: Parameters
    kv_bytes_per_token: int
    machine: Machine
    service: Service
    training: Training
    service_plans: tuple[ServicePlan, ...]
    training_plan: TrainingPlan
    layout: LayoutPlan | None
    answer: Answer
    advice: tuple[str, ...]
    assumptions: tuple[str, ...]


def make_plan(
    name: str, config: LlamaConfig, stored: Stored | None, machine: Machine, service: Service, training: Training
) -> Plan:
    """Compute serving plans for all dtypes, the training plan, a parallel layout, advice and assumptions."""
    stored_dtype = stored.name if stored else None
    dtypes: dict[str, str | Stored] = {dtype: dtype for dtype in WEIGHT_DTYPES}
    dtypes |= {stored.name: stored} if stored else {}
    service_plans = tuple(plan_service(config, dtype, service, machine) for dtype in dtypes.values())
    training_plan = plan_training(config, training, machine)
    adapters = plan_training(config, replace(training, lora_rank=LORA_RANK), machine)
    chosen = next(plan for plan in service_plans if plan.dtype == (stored_dtype or "bfloat16"))
    advice = [*_advise_service(chosen, service_plans, machine), *_advise_training(training_plan, adapters, machine)]
    return Plan(
        name,
        stored_dtype,
        count_parameters(config),
        kv_bytes_per_token(config, service.kv_dtype),
        machine,
        service,
        training,
        service_plans,
        training_plan,
        propose_layout(config, training, machine, training_plan.num_devices),
        answer(name, config, chosen, service, machine),
        tuple(advice),
        tuple(_assumptions(machine, training)),
    )


def _advise_service(chosen: ServicePlan, every: tuple[ServicePlan, ...], machine: Machine) -> Iterator[str]:
    if chosen.fits:
        return
    yield _lack(f"Serving in {chosen.dtype}", chosen.total_bytes, machine)
    ways = [] if machine.device.is_cpu else [f"{chosen.num_devices_needed:,} devices"]
    fitting = [plan.dtype for plan in every if plan.fits and plan.weights_bytes < chosen.weights_bytes]
    ways += [f"weights in {' or '.join(fitting)}"] if fitting else []
    candidates = [chosen] if chosen.max_context else [plan for plan in every if not plan.fits]
    shortened = max(candidates, key=lambda plan: plan.max_context, default=chosen)
    if shortened.max_context:
        ways.append(f"{shortened.dtype} with a context of at most {shortened.max_context:,}")
    yield f"What would do: {'; '.join(ways)}." if ways else "Take a smaller model, or a device with more memory."


def _advise_training(training: TrainingPlan, adapters: TrainingPlan, machine: Machine) -> Iterator[str]:
    if training.fits:
        return
    yield _lack("Training", training.peak_bytes, machine)
    ways = [] if machine.device.is_cpu else [f"{training.num_devices_needed:,} devices"]
    if adapters.peak_bytes < training.peak_bytes:
        remark = "which fits" if adapters.fits else f"still too much with {show_bytes(adapters.peak_bytes)}"
        ways.append(f"adapters alone (--lora-rank {LORA_RANK}), {remark}")
    if training.activations_bytes + training.logits_bytes > training.peak_bytes / 4:
        ways.append("smaller batches (--batch-tokens)")
    yield f"What would do or help: {'; '.join(ways)}." if ways else "Take a smaller model."


def _lack(task: str, needed_bytes: float, machine: Machine) -> str:
    count = machine.num_devices or 1
    return (
        f"{task} does not fit on {show_devices(count, machine)}: it needs {show_bytes(needed_bytes)}, "
        f"and {show_bytes(count * machine.usable_bytes)} are usable."
    )


def _assumptions(machine: Machine, training: Training) -> Iterator[str]:
    device = machine.device
    yield f"{device.reserve_share:.0%} of the memory stays free for the runtime and short-lived tensors"
    yield "requests fill their context; what several devices share is divided evenly"
    yield "int8 with a scale a row, fp8 in the MLPs of the inner layers; the rest bfloat16"
    yield "int4 with a 16-bit scale for 128 values, or fewer where 128 does not divide the widths"
    if training.lora_rank is not None:
        yield "adapters beside all seven matrices of a layer; activations as in full training"
    if device.bfloat16_flops_per_second is None:
        yield "no speed, time or cost: FLOP/s are not known here; give --tflops, --bandwidth and --price"
        return
    origin = ", as one product of a layer's size reached here," if device.is_measured else ""
    yield (
        f"{machine.flops_share:.0%} of {device.bfloat16_flops_per_second / 1e12:,.4g} dense BF16 TFLOP/s{origin} is "
        "reached, for weights of any dtype (--mfu)"
    )
    if device.bandwidth_bytes_per_second is None:
        yield "no decoding speed: give --bandwidth"
    else:
        rate = device.bandwidth_bytes_per_second / 1e9
        yield f"{machine.bandwidth_share:.0%} of {rate:,.4g} GB/s of memory bandwidth is reached"
    price = device.price_usd_per_hour
    if price is None:
        yield "no cost: give --price"
    elif device.kind in DEVICES and DEVICES[device.kind].price_usd_per_hour == price:
        yield f"${price:.2f} an hour for each, on demand in {PRICES_AS_OF}; offers differ threefold (--price)"
