"""A model and a machine -> the answer to "does the model fit?": serving, the recipe's adapter run, and alternatives.

Arithmetic alone: plan.py passes in the machine with the measured or published speed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.units import show_bytes, show_duration
from puna.planning.plan.arithmetic import (
    Machine,
    Service,
    ServicePlan,
    count_parameters,
    fits_on,
    plan_service,
    show_devices,
    weight_bytes,
)
from puna.planning.plan.training import Training, TrainingPlan, plan_training

# The run of recipes/own_llama.toml: default settings with the recipe's adapter.
RECIPE, RANK = "recipes/own_llama.toml", 16
ADAPTER = Training(tokens=1000 * 500, context=1024, batch_tokens=4096, lora_rank=RANK, checkpoint_activations=True)
CONVERSATIONS = "1,000 conversations of 500 tokens"
SMALLER = "int8", "int4"
LLAMA3_VOCABULARY = 128_256


@dataclass(frozen=True)
class Answer:
    """Whether a model can be served and adapted on a machine.

    Attributes:
        serving: Plan of the requested weights at the context of the service.
        adapter: Plan of the recipe's adapter run.
        adapter_int4_bytes: Memory of the same run over an int4 base.
        smaller_model: Largest smaller published size with a fitting adapter run; None if the requested model's run fits
            or no run fits.
        lines: The answer in sentences.

    Example:
        >>> answer("1b", SIZES["1b"], serving, service, Machine(DEVICES["h100"], 1)).adapter.fits
        True
    """

    serving: ServicePlan
    adapter: TrainingPlan
    adapter_int4_bytes: int
    smaller_model: str | None
    lines: tuple[str, ...]


def answer(name: str, config: LlamaConfig, serving: ServicePlan, service: Service, machine: Machine) -> Answer:
    """Compute both runs and report the fit in a few lines; `serving` is the plan of the model's stored weights.

    Example:
        >>> machine, service = Machine(DEVICES["h100"], 1), Service(context=8192)
        >>> serving = plan_service(SIZES["1b"], "bfloat16", service, machine)
        >>> answer("1b", SIZES["1b"], serving, service, machine).lines[0]
        '1b fits on one h100 for serving at 8,192 tokens: 2.6 GiB needed in bfloat16, 71.1 GiB usable.'
    """
    adapter = plan_training(config, ADAPTER, machine)
    others = (plan_service(config, dtype, service, machine) for dtype in SMALLER)
    smaller = () if serving.fits else tuple(each for each in others if each.fits)
    over_int4 = adapter.peak_bytes - ADAPTER.value_bytes * count_parameters(config).total + weight_bytes(config, "int4")
    model = None if adapter.fits else _smaller_model(config, machine)
    lines = (
        *_serving_lines(name, config, serving, smaller, service, machine),
        *_adapter_lines(adapter, over_int4, model, machine),
    )
    return Answer(serving, adapter, over_int4, model, lines)


def _smaller_model(config: LlamaConfig, machine: Machine) -> str | None:
    published = {name: size for name, size in SIZES.items() if size.vocab_size == LLAMA3_VOCABULARY}
    most = config.num_parameters
    below = sorted((size.num_parameters, name) for name, size in published.items() if size.num_parameters < most)
    fitting = [name for _, name in below if plan_training(SIZES[name], ADAPTER, machine).fits]
    return fitting[-1] if fitting else None


def _serving_lines(
    name: str,
    config: LlamaConfig,
    serving: ServicePlan,
    smaller: tuple[ServicePlan, ...],
    service: Service,
    machine: Machine,
) -> Iterator[str]:
    where, usable = show_devices(machine.num_devices or 1, machine), (machine.num_devices or 1) * machine.usable_bytes
    sizes = f"{show_bytes(serving.total_bytes)} needed in {serving.dtype}, {show_bytes(usable)} usable"
    verdict = "fits" if serving.fits else "does not fit"
    yield f"{name} {verdict} on {where} for serving at {service.context:,} tokens: {sizes}."
    if serving.fits:
        whole = ", all that the model can read" if serving.max_context == config.max_context else ""
        yield f"The largest context that fits is {serving.max_context:,} tokens{whole}."
        return
    if smaller:
        best = smaller[0]
        names = " or ".join(f"{each.dtype} ({show_bytes(each.total_bytes)})" for each in smaller)
        yield (
            f"It fits with weights in {names}: puna quantize. The largest context in {best.dtype} is "
            f"{best.max_context:,} tokens."
        )
    elif serving.max_context:
        yield f"It fits with a context of at most {serving.max_context:,} tokens."
    else:
        options = {dtype: plan_service(config, dtype, service, machine).max_context for dtype in SMALLER}
        dtype = max(options, key=lambda each: options[each])
        if options[dtype]:
            yield f"It fits with weights in {dtype} and a context of at most {options[dtype]:,} tokens."
        else:
            yield "Take a smaller model, or a machine with more memory."


def _adapter_lines(adapter: TrainingPlan, over_int4: int, model: str | None, machine: Machine) -> Iterator[str]:
    run = f"The adapter run of {RECIPE} (rank {RANK}, activations computed again)"
    if adapter.fits:
        yield f"{run} fits: {show_bytes(adapter.peak_bytes)} needed.{_time(adapter, machine)}"
        return
    yield f"{run} does not fit: {show_bytes(adapter.peak_bytes)} needed."
    ways = []
    if fits_on(over_int4, machine):
        ways.append(f"the same adapter over an int4 base ({show_bytes(over_int4)}: quantize the import first)")
    if model:
        smaller = plan_training(SIZES[model], ADAPTER, machine)
        ways.append(f"{model} in its place ({show_bytes(smaller.peak_bytes)})")
    if not ways:
        ways.append("a machine with more memory")
    yield f"What would do: {', or '.join(ways)}."


def _time(adapter: TrainingPlan, machine: Machine) -> str:
    """Return a sentence with the duration of the recipe's run, or "" without a known speed."""
    rate = machine.device.bfloat16_flops_per_second
    if adapter.seconds is None or rate is None:
        return ""
    speed = f"{machine.flops_share:.0%} of {rate / 1e12:,.3g} TFLOP/s"
    origin = "measured here" if machine.device.is_measured else "of the data sheet"
    return f" {CONVERSATIONS} take {show_duration(adapter.seconds)}, at {speed} {origin}."
