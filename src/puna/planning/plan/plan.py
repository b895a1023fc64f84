"""`puna plan`: a model size or a checkpoint's config.json -> memory, speed and cost of serving and training.

Weights are not read. The output lists assumptions below the numbers. `--hardware here` measures the FLOP/s of a matrix
product.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.config import Precision, suggestion
from puna.pipeline.errors import ConfigError
from puna.planning.plan import measure
from puna.planning.plan.advice import make_plan
from puna.planning.plan.arithmetic import DEVICES, Device, Machine, Service, Stored
from puna.planning.plan.tables import print_plan
from puna.planning.plan.training import Training

HERE = "here"
# A CPU process holds freed memory: measured up to 31 % more than the tensors (docs/guides/plan.md).
HERE_RESERVE = 0.25
MOST = 1e18
# Default number of tokens per request: enough for most conversations.
CONTEXT = 8192


@dataclass(frozen=True)
class Hardware:
    """Options of `puna plan` about devices: a known device or this machine, with overrides of data-sheet values.

    Parameters
    ----------
    hardware
        Device: h100, h200, b200, a100-80gb, mi300x, l40s, l4, rtx4090, or here for this machine or container.
    devices
        Number of devices; default: as many as the model needs.
    tflops
        Dense BF16 TFLOP/s of a device; default: from the data sheet.
    bandwidth
        Memory bandwidth of a device in GB/s; default: from the data sheet.
    price
        Price of a device in dollars per hour.
    mfu
        Model FLOP/s utilization: share of the peak FLOP/s that matrix products reach.
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
    precision: Precision = "bfloat16",
    lora_rank: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Compute memory, speed and cost of serving and training a model.

    Parameters
    ----------
    model
        A size (1b, 3b, 8b, 70b, 405b), a checkpoint directory in Hugging Face's or Meta's format, or a GGUF file.
    context
        Number of tokens per request, and maximum length of a training example; default: 8,192 or the model's maximum.
    batch
        Number of concurrent requests.
    kv_dtype
        Dtype of the KV cache.
    tokens
        Number of training tokens.
    batch_tokens
        Number of tokens per packed training batch.
    accumulate
        Number of batches per optimizer step (gradient accumulation).
    precision
        Dtype of activations in training.
    lora_rank
        Rank of LoRA adapters; default: train all weights.
    as_json
        Print JSON instead of tables.
    """
    numbers = {"context": context, "batch": batch, "tokens": tokens, "batch-tokens": batch_tokens}
    _require_positive(numbers | {"accumulate": accumulate, "lora-rank": lora_rank})
    config, stored = read_model(model)
    service = Service(context or min(CONTEXT, config.max_context), batch, kv_dtype)
    if service.context > config.max_context:
        raise ConfigError(f"--context {context}", expected=f"at most the model's {config.max_context:,} tokens")
    training = Training(
        math.ceil(tokens), min(service.context, batch_tokens), batch_tokens, accumulate, precision, lora_rank
    )
    made = make_plan(model, config, stored, find_machine(hardware), service, training)
    if as_json:
        print(json.dumps(asdict(made), indent=2))
    else:
        print_plan(made, Console())


def read_model(model: str) -> tuple[LlamaConfig, Stored | None]:
    """Return the sizes of a published model or a checkpoint, and the stored dtypes of a checkpoint.

    Example:
        >>> read_model("8b")[0].num_layers
        32
    """
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

    model_format = find_format(directory)
    if model_format == "adapter":
        raise ConfigError(f"{model} is an adapter", expected="a size, or the base model of the adapter")
    if model_format != "Hugging Face":
        source = open_source(directory).source
        return source.config, Stored("float32" if str(source.dtype) == "torch.float32" else "bfloat16", {})
    path = find_file(directory, "config.json")
    assert path is not None, "what makes it Hugging Face's"
    raw = read_json(path)
    config = parse_config(raw, path)
    dtypes = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}  # float16 has the size of bfloat16
    dtype = dtypes.get(str(raw.get("torch_dtype", raw.get("dtype"))))
    quantization = parse_quantization(raw, path)
    schemes = quantization.schemes(config) if quantization else {}
    return config, Stored(dtype or "bfloat16", schemes) if dtype or schemes else None


def find_machine(hardware: Hardware) -> Machine:
    """Return the machine for the options: a known device, or this machine, with overrides."""
    rates = {"tflops": hardware.tflops, "bandwidth": hardware.bandwidth, "price": hardware.price}
    _require_positive({"devices": hardware.devices, "mfu": hardware.mfu, **rates})
    if hardware.mfu > 1:
        raise ConfigError(f"--mfu {hardware.mfu:g}", expected="a share of the peak FLOP/s, at most 1")
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
