"""A size's name or a checkpoint's config.json -> what serving and training it take: the verb `puna plan`.

Reads no weights: arithmetic.py computes, and what it has to assume is listed below the numbers. Of this machine the
speed of one product is measured.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.config import suggestion
from puna.pipeline.errors import ConfigError
from puna.planning.plan import measure
from puna.planning.plan.advice import make_plan
from puna.planning.plan.arithmetic import DEVICES, Device, Machine, Service, Stored
from puna.planning.plan.tables import print_plan
from puna.planning.plan.training import Training

HERE = "here"
# A CPU process keeps much of what it frees: up to 31 % more than its tensors was measured (docs/guides/plan.md).
HERE_RESERVE = 0.25
MOST = 1e18
# Tokens of a request unless told otherwise: many conversations, few whole books.
CONTEXT = 8192


@dataclass(frozen=True)
class Hardware:
    """What to compute with: a known device, or this machine, and what to put in the place of its data.

    Parameters
    ----------
    hardware
        h100, h200, b200, a100-80gb, mi300x, l40s, l4, rtx4090, or here: this machine's memory, or its container's.
    devices
        How many of them, instead of as many as are needed.
    tflops
        Dense BF16 TFLOP/s of a device, instead of the data sheet's.
    bandwidth
        GB/s of a device's memory, instead of the data sheet's.
    price
        Dollars an hour of a device.
    mfu
        The share of the FLOP/s that is reached.
    """

    hardware: str = "h100"
    devices: int | None = None
    tflops: float | None = None
    bandwidth: float | None = None
    price: float | None = None
    mfu: float = 0.4


def plan(
    model: str,
    /,
    *,
    hardware: Annotated[Hardware, Parameter(name="*")] = Hardware(),
    context: int | None = None,
    batch: int = 1,
    kv_dtype: Literal["float32", "bfloat16", "fp8", "int8"] = "bfloat16",
    tokens: float = 1e9,
    batch_tokens: int = 4096,
    accumulate: int = 1,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    lora_rank: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Compute memory, speed and cost of serving and training a model.

    Parameters
    ----------
    model
        A size (1b, 3b, 8b, 70b, 405b), a directory of Hugging Face's or Meta's, or a GGUF file.
    context
        Tokens of a request and, at most, of a training example; by default 8,192, or what the model can read.
    batch
        Requests served side by side.
    kv_dtype
        The type of cached keys and values.
    tokens
        How many tokens to train on.
    batch_tokens
        Tokens that go through the network together in training.
    accumulate
        Batches whose gradients make one step.
    precision
        The type of activations in training.
    lora_rank
        Train adapters of this rank instead of all weights.
    as_json
        Print JSON instead of tables.
    """
    numbers = {"context": context, "batch": batch, "tokens": tokens, "batch-tokens": batch_tokens}
    _require_positive(numbers | {"accumulate": accumulate, "lora-rank": lora_rank})
    config, stored = read_model(model)
    service = Service(context or min(CONTEXT, config.max_context), batch, kv_dtype)
    if service.context > config.max_context:
        raise ConfigError(f"--context {context}", expected=f"at most {config.max_context}, which the model can read")
    training = Training(
        math.ceil(tokens), min(service.context, batch_tokens), batch_tokens, accumulate, precision, lora_rank
    )
    made = make_plan(model, config, stored, find_machine(hardware), service, training)
    if as_json:
        print(json.dumps(asdict(made), indent=2))
    else:
        print_plan(made, Console())


def read_model(model: str) -> tuple[LlamaConfig, Stored | None]:
    """Return the config of a size or of a checkpoint's directory, and how a directory is stored."""
    if model.lower() in SIZES:
        return SIZES[model.lower()], None
    directory = Path(model)
    if not directory.exists():
        raise ConfigError(
            f"'{model}' is neither a size nor a directory",
            expected=f"{', '.join(SIZES)}, or the path of a model",
            hint=suggestion(model.lower(), list(SIZES)),
        )
    from puna.formats.checkpoint.compressed.config import parse_quantization
    from puna.formats.checkpoint.detect import find_format, open_source
    from puna.formats.checkpoint.hf.config import parse_config
    from puna.formats.checkpoint.safe_files import find_file, read_json

    found = find_format(directory)
    if found == "adapter":
        raise ConfigError(f"{model} is an adapter", expected="the model that it belongs to")
    if found != "Hugging Face":
        source = open_source(directory).source
        return source.config, Stored("float32" if str(source.dtype) == "torch.float32" else "bfloat16", {})
    path = find_file(directory, "config.json")
    assert path is not None, "what makes it Hugging Face's"
    raw = read_json(path)
    config = parse_config(raw, path)
    dtypes = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}  # the last two are of one size
    dtype = dtypes.get(str(raw.get("torch_dtype", raw.get("dtype"))))
    quantization = parse_quantization(raw, path)
    schemes = quantization.schemes(config) if quantization else {}
    return config, Stored(dtype or "bfloat16", schemes) if dtype or schemes else None


def find_machine(hardware: Hardware) -> Machine:
    """Look up a kind of device and put the given numbers in the place of its data."""
    rates = {"tflops": hardware.tflops, "bandwidth": hardware.bandwidth, "price": hardware.price}
    _require_positive({"devices": hardware.devices, "mfu": hardware.mfu, **rates})
    if hardware.mfu > 1:
        raise ConfigError(f"--mfu {hardware.mfu:g}", expected="a share of at most 1")
    kind = hardware.hardware.lower()
    if kind != HERE and kind not in DEVICES:
        known = [*DEVICES, HERE]
        raise ConfigError(
            f"--hardware {hardware.hardware}", expected=f"one of {', '.join(known)}", hint=suggestion(kind, known)
        )
    device = _this_machine(hardware.tflops) if kind == HERE else DEVICES[kind]
    device = replace(
        device,
        bfloat16_flops_per_second=hardware.tflops * 1e12 if hardware.tflops else device.bfloat16_flops_per_second,
        bandwidth_bytes_per_second=hardware.bandwidth * 1e9
        if hardware.bandwidth
        else device.bandwidth_bytes_per_second,
        price_usd_per_hour=hardware.price or device.price_usd_per_hour,
    )
    return Machine(device, hardware.devices or (1 if device.is_cpu else None), hardware.mfu)


def _require_positive(flags: dict[str, float | None]) -> None:
    for flag, value in flags.items():
        if value is not None and not 1 / MOST <= value <= MOST:
            raise ConfigError(f"--{flag} {value}", expected=f"a number above 0, at most {MOST:g}")


def _this_machine(tflops: float | None) -> Device:
    from puna.pipeline.machine import machine_memory

    flops = None if tflops else measure.measured_flops()
    memory = machine_memory()
    return Device(HERE, memory, None, flops, None, is_cpu=True, reserve_share=HERE_RESERVE, is_measured=not tflops)
