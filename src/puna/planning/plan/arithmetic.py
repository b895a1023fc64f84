"""Network sizes, a device and a service -> bytes, FLOPs, seconds and dollars of serving.

Weights and caches are divided evenly between devices; the assumed share of peak FLOP/s covers communication.
training.py computes training.

In the formulas: D dim, F hidden_dim, E head_dim, L layers, H query heads, K key/value heads, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from puna.model.config import LlamaConfig, layer_shapes, matrix_shapes
from puna.model.quantization.scheme import FP8, INT8, ROW_SCALE_BYTES, Scheme, common_group_size, describe_schemes

GIB = 2**30
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "fp8": 1}
WEIGHT_DTYPES = ("float32", "bfloat16", "int8", "fp8", "int4")
CACHE_BLOCK = 16  # tokens in a page of the engine's KV cache

PRICES_AS_OF = "May 2026"


@dataclass(frozen=True)
class Device:
    """A GPU or CPU machine: usable memory, peak rates and an assumed price.

    Example: see DEVICES.
    """

    kind: str
    memory_bytes: int
    bandwidth_bytes_per_second: float | None
    bfloat16_flops_per_second: float | None
    price_usd_per_hour: float | None
    is_cpu: bool = False
    reserve_share: float = 0.1
    is_measured: bool = False  # whether FLOP/s are measured on this machine


def _gpu(kind: str, memory_gib: int, bandwidth_tb: float, dense_tflops: float, price: float) -> Device:
    return Device(kind, memory_gib * GIB, bandwidth_tb * 1e12, dense_tflops * 1e12, price)


# Memory in GiB, bandwidth in TB/s and dense BF16 TFLOP/s of the makers' data sheets, dollars an hour on demand.
DEVICES = {
    device.kind: device
    for device in (
        _gpu("h100", 79, 3.35, 989, 3.00),
        _gpu("h200", 139, 4.8, 989, 4.00),
        _gpu("b200", 178, 8.0, 2250, 5.50),
        _gpu("a100-80gb", 79, 2.04, 312, 1.50),
        _gpu("mi300x", 191, 5.3, 1307, 3.00),
        _gpu("l40s", 44, 0.864, 362, 1.00),
        _gpu("l4", 22, 0.3, 121, 0.70),
        _gpu("rtx4090", 23, 1.008, 165, 0.40),
    )
}


@dataclass(frozen=True)
class Machine:
    """Several devices of a kind and the assumed shares of peak rates.

    Args:
        num_devices: Number of devices, or None for as many as the model needs.
        flops_share: Share of the peak FLOP/s in matrix products (MFU).
        bandwidth_share: Share of the peak memory bandwidth while decoding.

    Example:
        >>> round(Machine(DEVICES["h100"], num_devices=8).usable_bytes / GIB, 1)
        71.1
    """

    device: Device
    num_devices: int | None = None
    flops_share: float = 0.4
    bandwidth_share: float = 0.7

    @property
    def usable_bytes(self) -> float:
        """Memory of one device without the reserve for the runtime, temporary tensors and fragmentation."""
        return self.device.memory_bytes * (1 - self.device.reserve_share)

    def seconds(self, flops: float, num_devices: int) -> float | None:
        """Return the seconds for `flops`, or None without known peak FLOP/s."""
        peak = self.device.bfloat16_flops_per_second
        return flops / (peak * self.flops_share * num_devices) if peak else None

    def usd(self, seconds: float | None, num_devices: int) -> float | None:
        """Return the price of `seconds`, or None without a known time or price."""
        price = self.device.price_usd_per_hour
        return None if seconds is None or price is None else price * num_devices * seconds / 3600


@dataclass(frozen=True)
class Service:
    """Concurrent requests with a full context of `context` tokens.

    Example:
        >>> Service(context=8192, batch=16, kv_dtype="int8").batch
        16
    """

    context: int
    batch: int = 1
    kv_dtype: str = "bfloat16"


@dataclass(frozen=True)
class Stored:
    """Stored weights of a checkpoint: quantization schemes by module, and the dtype of all other weights.

    Example:
        >>> Stored("bfloat16", {}).name
        'bfloat16'
    """

    dtype: str
    schemes: Mapping[str, Scheme]

    @property
    def name(self) -> str:
        return describe_schemes(self.schemes) or self.dtype


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part of a model; `head` is 0 for tied embeddings.

    Example: see `count_parameters`.
    """

    embeddings: int
    attention: int
    mlp: int
    norms: int
    head: int
    total: int


@dataclass(frozen=True)
class ServicePlan:
    """Memory, speed and cost of serving with weights of one dtype.

    `fits` refers to the given number of devices, or to one device without a number.

    Example: see `plan_service`.
    """

    dtype: str
    weights_bytes: int
    kv_cache_bytes: int
    total_bytes: int
    num_devices_needed: int
    num_devices: int
    fits: bool
    max_context: int
    prefill_tokens_per_second: float | None
    prefill_usd_per_million_tokens: float | None
    decode_tokens_per_second: float | None
    decode_usd_per_million_tokens: float | None


def count_parameters(widths: LlamaConfig) -> Parameters:
    """Count parameters by part of the network.

    Example:
        >>> count_parameters(SIZES["1b"]).total
        1235814400
    """
    dim, layers = widths.dim, widths.num_layers
    embeddings = widths.vocab_size * dim
    attention = layers * 2 * dim * widths.head_dim * (widths.num_heads + widths.num_kv_heads)
    mlp = layers * 3 * dim * widths.hidden_dim
    norms = (2 * layers + 1) * dim
    head = 0 if widths.tie_embeddings else embeddings
    return Parameters(embeddings, attention, mlp, norms, head, embeddings + attention + mlp + norms + head)


def weight_bytes(widths: LlamaConfig, dtype: str | Stored) -> int:
    """Return the bytes of the weights; weights outside a quantized dtype are bfloat16.

    int8 and int4 cover the matrices in the layers; fp8 covers the MLPs except for the first and the last layer, as in
    the Llama 3 paper (section 6.2).
    """
    total = count_parameters(widths).total
    if isinstance(dtype, Stored):
        shapes = matrix_shapes(widths)
        sizes = [(scheme.num_bytes(*shapes[path]), shapes[path]) for path, scheme in dtype.schemes.items()]
        rest = total - sum(out_dim * in_dim for _, (out_dim, in_dim) in sizes)
        return sum(num_bytes for num_bytes, _ in sizes) + FLOAT_BYTES[dtype.dtype] * rest
    if dtype in FLOAT_BYTES and dtype != "fp8":
        return total * FLOAT_BYTES[dtype]
    scheme, shapes, layers = INT8, layer_shapes(widths), widths.num_layers
    if dtype == "int4":
        scheme = Scheme("int", 4, common_group_size([in_dim for _, in_dim in shapes.values()]))
    elif dtype == "fp8":
        scheme, layers = FP8, max(0, layers - 2)
        shapes = {path: shape for path, shape in shapes.items() if path.startswith("mlp.")}
    inside = sum(scheme.num_bytes(*shape) for shape in shapes.values())
    rest = total - layers * sum(out_dim * in_dim for out_dim, in_dim in shapes.values())
    return layers * inside + 2 * rest


def kv_bytes_per_token(widths: LlamaConfig, dtype: str = "bfloat16") -> int:
    """Return the bytes of a token in the KV cache: 2 L K E values, and 2 L K scales in int8."""
    if dtype == "int8":
        return widths.kv_bytes_per_token(1, scale_bytes=ROW_SCALE_BYTES)
    return widths.kv_bytes_per_token(FLOAT_BYTES[dtype])


def cache_bytes(widths: LlamaConfig, service: Service) -> int:
    """Return the bytes of the KV cache for a full batch, in whole pages."""
    positions = -(-service.context // CACHE_BLOCK) * CACHE_BLOCK
    return service.batch * positions * kv_bytes_per_token(widths, service.kv_dtype)


def forward_flops(widths: LlamaConfig, keys: float, *, has_head: bool = True) -> float:
    """Return the FLOPs of a token that attends to `keys` tokens: 2 per matrix parameter, plus 4 L H E per key."""
    counted = count_parameters(widths)
    head = widths.vocab_size * widths.dim if has_head else 0
    attention = 4 * widths.num_layers * widths.num_heads * widths.head_dim * keys
    return 2 * (counted.attention + counted.mlp + head) + attention


def plan_service(widths: LlamaConfig, dtype: str | Stored, service: Service, machine: Machine) -> ServicePlan:
    """Compute memory, speed and cost of serving: prefill is bound by FLOP/s, decoding by memory bandwidth."""
    weights, cache = weight_bytes(widths, dtype), cache_bytes(widths, service)
    needed = devices_for(weights + cache, machine)
    count, fits = machine.num_devices or needed, fits_on(weights + cache, machine)
    prefill = machine.seconds(forward_flops(widths, (service.context + 1) / 2, has_head=False), count)
    decode = _decode_seconds(widths, dtype, service, machine, count)
    if machine.num_devices and not fits:
        prefill = decode = None
    room = (machine.num_devices or 1) * machine.usable_bytes - weights
    positions = int(room / service.batch / kv_bytes_per_token(widths, service.kv_dtype))
    return ServicePlan(
        dtype.name if isinstance(dtype, Stored) else dtype,
        weights_bytes=weights,
        kv_cache_bytes=cache,
        total_bytes=weights + cache,
        num_devices_needed=needed,
        num_devices=count,
        fits=fits,
        max_context=max(0, min(positions // CACHE_BLOCK * CACHE_BLOCK, widths.max_context)),
        prefill_tokens_per_second=_per_second(prefill),
        prefill_usd_per_million_tokens=_times_million(machine.usd(prefill, count)),
        decode_tokens_per_second=_per_second(decode),
        decode_usd_per_million_tokens=_times_million(machine.usd(decode, count)),
    )


def _decode_seconds(
    widths: LlamaConfig, dtype: str | Stored, service: Service, machine: Machine, count: int
) -> float | None:
    """Return the decoding seconds per token: a step reads all weights except the embedding table, and all caches."""
    bandwidth = machine.device.bandwidth_bytes_per_second
    if bandwidth is None:
        return None
    read = weight_bytes(widths, dtype) - _table_bytes(widths, dtype) + cache_bytes(widths, service)
    reading = read / (bandwidth * machine.bandwidth_share * count) / service.batch
    return max(reading, machine.seconds(forward_flops(widths, service.context), count) or 0.0)


def _table_bytes(widths: LlamaConfig, dtype: str | Stored) -> int:
    """Return the bytes of an embedding table outside the matrix products; 0 for tied embeddings."""
    if widths.tie_embeddings:
        return 0
    scheme = dtype.schemes.get("embed_tokens") if isinstance(dtype, Stored) else None
    if scheme:
        return scheme.num_bytes(widths.vocab_size, widths.dim)
    table_dtype = dtype.dtype if isinstance(dtype, Stored) else dtype
    return widths.vocab_size * widths.dim * {"float32": 4}.get(table_dtype, 2)


def fits_on(num_bytes: float, machine: Machine) -> bool:
    """Return whether `num_bytes` fit on the machine's devices; on one device without a number of devices."""
    return num_bytes <= (machine.num_devices or 1) * machine.usable_bytes


def devices_for(num_bytes: float, machine: Machine) -> int:
    """Return the number of devices for `num_bytes`: 1, 2, 4 or a multiple of 8, as machines are built.

    Example:
        >>> devices_for(3 * 79 * GIB, Machine(DEVICES["h100"]))
        4
    """
    least = -int(-num_bytes // machine.usable_bytes)
    return next((count for count in (1, 2, 4) if least <= count), -(-least // 8) * 8)


def _per_second(seconds: float | None) -> float | None:
    return 1 / seconds if seconds else None


def _times_million(usd: float | None) -> float | None:
    return None if usd is None else usd * 1e6


def show_devices(count: int, machine: Machine) -> str:
    kind = "this machine" if machine.device.is_cpu else machine.device.kind
    if count > 1:
        return f"{count:,} x {kind}"
    return kind if machine.device.is_cpu else f"one {kind}"
