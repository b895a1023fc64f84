"""Tensors in safetensors files -> a Llama with memory-mapped weights. safetensors/writer.py is the inverse.

Names are Hugging Face's; quantized weights have the names of compressed-tensors and stay packed and mapped.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch

from puna.formats.checkpoint.compressed.config import Quantization
from puna.formats.checkpoint.safetensors.header import StoredTensor
from puna.formats.checkpoint.source import Source, disk_name
from puna.model.config import LlamaConfig, matrix_shapes
from puna.model.llama import Llama
from puna.model.quantization.quantized import PackedWeight, Quantized, empty_quantized
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = tuple(TORCH_DTYPES)
STORED_DTYPES = TORCH_DTYPES | {
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "BOOL": torch.bool,
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
}
PREFETCH_BYTES = 2**24
SENT_BYTES = 2**30
# Unsupported tensors of quantized weights, with the reason.
UNREAD = {
    "weight_g_idx": "groups of columns in another order (actorder) are not supported",
    "weight_zero_point": "weights with zero points are not supported",
}


def build_empty(config: LlamaConfig, schemes: Mapping[str, Scheme] | None = None) -> Llama:
    """Return the model on the meta device, with quantized modules for `schemes`."""
    with torch.device("meta"):
        model = Llama(config)
    shapes = matrix_shapes(config) if schemes else {}
    for path, scheme in (schemes or {}).items():
        model.set_submodule(path, _empty_module(path, shapes[path], scheme))
    return model


def _empty_module(path: str, shape: tuple[int, int], scheme: Scheme) -> Quantized:
    return empty_quantized(shape, scheme, is_embedding=path == "embed_tokens", device="meta")


def require_fit(
    directory: Path, layout: Mapping[str, StoredTensor], config: LlamaConfig, quantization: Quantization | None = None
) -> dict[str, Scheme]:
    """Return the scheme of every quantized module, after comparing names, dtypes and shapes with the config.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or has a wrong dtype or shape.
    """
    # NOTE: the next two checks come before the network is built: a config may claim a billion layers.
    for layer in range(config.num_layers):
        if f"model.layers.{layer}.input_layernorm.weight" not in layout:
            raise CheckpointError(f"{directory}: tensor model.layers.{layer}.input_layernorm.weight is missing")
    total_bytes = sum(stored.end - stored.start for stored in layout.values())
    least_bits = min((group.scheme.bits for group in quantization.groups), default=8) if quantization else 8
    if config.num_parameters * least_bits // 8 > total_bytes:
        raise CheckpointError(
            f"{directory}: {total_bytes:,} bytes of weights", expected=f"bytes for {config.num_parameters:,} parameters"
        )
    schemes = quantization.schemes(config) if quantization else {}
    expected = dict(_expected(build_empty(config, schemes)))
    for name in layout:
        reason = next((why for ending, why in UNREAD.items() if name.endswith(f".{ending}")), None)
        if reason:
            raise CheckpointError(
                f"{layout[name].file}: tensor {name!a}: {reason}",
                expected="symmetric quantization with groups in order",
            )
    for name, (kinds, shape) in expected.items():
        if name not in layout:
            raise CheckpointError(f"{directory}: tensor {name} is missing", expected=f"shape {list(shape)}")
        _require_tensor(layout[name], name, kinds, shape)
    has_float_head = config.tie_embeddings and "embed_tokens" not in schemes
    for name in layout.keys() - expected.keys():
        if has_float_head and name == "lm_head.weight":
            _require_tensor(layout[name], name, FLOATS, (config.vocab_size, config.dim))
        elif not name.endswith(".rotary_emb.inv_freq"):  # a constant in files of old transformers
            raise CheckpointError(
                f"{layout[name].file}: unexpected tensor {name!a}", expected="only tensors described by config.json"
            )
    return schemes


def _require_tensor(stored: StoredTensor, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(f"{stored.file}: tensor {name} has shape {list(stored.shape)}", expected=f"{list(shape)}")
    if stored.dtype not in kinds:
        raise CheckpointError(f"{stored.file}: tensor {name} has dtype {stored.dtype}", expected=" or ".join(kinds))


def _expected(model: Llama) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """Yield (name on disk, (allowed dtypes, shape)) of every stored tensor of a model."""
    integers = {torch.int32: ("I32",), torch.float8_e4m3fn: ("F8_E4M3",)}
    for name, tensor in model.state_dict().items():
        yield disk_name(name), (integers.get(tensor.dtype, FLOATS), tuple(tensor.shape))
    for path in _packed(model):
        yield disk_name(f"{path}.weight_shape"), (("I64", "I32"), (2,))


def _packed(model: Llama) -> dict[str, PackedWeight]:
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedWeight)}


def map_weights(
    layout: Mapping[str, StoredTensor],
    config: LlamaConfig,
    schemes: Mapping[str, Scheme],
    *,
    dtype: torch.dtype | None,
) -> Llama:
    """Return the model with tensors mapped from the files; a different `dtype` copies floating-point tensors.

    Quantized weights and their scales keep their dtypes.

    Args:
        layout: Tensors that `require_fit` has accepted.
    """
    model = build_empty(config, schemes)
    tensors = dict(_open_tensors(layout))
    require_one_table(layout, config)
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    for path, module in _packed(model).items():
        name = disk_name(f"{path}.weight_shape")
        stated, shape = tuple(tensors.pop(name).tolist()), (module.out_dim, module.in_dim)
        if stated != shape:
            raise CheckpointError(f"{layout[name].file}: tensor {name} says {list(stated)}", expected=f"{list(shape)}")
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        tensor = tensors.pop(disk_name(name))
        is_kept = name.rpartition(".")[0] in schemes
        state[name] = tensor if is_kept else tensor.to(dtype or tensor.dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def require_one_table(layout: Mapping[str, StoredTensor], config: LlamaConfig) -> None:
    """Raise CheckpointError if the config ties the embeddings, but the files hold a different head."""
    if not (config.tie_embeddings and "lm_head.weight" in layout):
        return
    names = ("lm_head.weight", "model.embed_tokens.weight")
    head, embeddings = (read_float(layout, name) for name in names)
    if head.dtype != embeddings.dtype or not torch.equal(head, embeddings):
        raise CheckpointError(
            f"{layout[names[0]].file}: tensor lm_head.weight differs from the embeddings",
            expected="tied embeddings, as config.json says",
            hint="Write tie_word_embeddings: false into config.json to keep this head, as transformers 5 does; or "
            "remove lm_head.weight, which transformers 4 leaves out",
        )


def _open_tensors(layout: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    by_file = sorted(layout.items(), key=lambda item: item[1].file)
    for path, group in itertools.groupby(by_file, key=lambda item: item[1].file):
        try:
            data = _map_data(path)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}", expected="a readable safetensors file") from error
        for name, stored in group:
            if stored.end > len(data):
                raise CheckpointError(
                    f"{path}: tensor {name!a}: the file changed",
                    expected="files that do not change while the model lives",
                )
            yield name, _view(data[stored.start : stored.end], stored)


def _map_data(path: Path) -> torch.Tensor:
    """Map a safetensors file and return the bytes after the header.

    The safetensors library touches a byte of every tensor, and each page fault reads megabytes around the byte.
    """
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)[start:]


def _view(data: torch.Tensor, stored: StoredTensor) -> torch.Tensor:
    dtype = STORED_DTYPES[stored.dtype]
    # Files of other programs may have unaligned tensors.
    aligned = data if data.storage_offset() % dtype.itemsize == 0 else data.clone()
    return aligned.view(dtype).view(stored.shape)


def read_through(paths: Sequence[Path]) -> None:
    """Read files into the page cache; errors are left to the later readers of the files."""
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            try:
                _send_nowhere(file)
            except OSError:  # Some systems support sendfile for sockets only.
                buffer = bytearray(PREFETCH_BYTES)
                while file.readinto(buffer):
                    pass


def _send_nowhere(file: FileIO) -> None:
    """Send a file to /dev/null in few calls: no copies in user space, and little contention for Python's lock (GIL)."""
    position = 0
    with open(os.devnull, "wb", buffering=0) as nowhere:
        while count := os.sendfile(nowhere.fileno(), file.fileno(), position, SENT_BYTES):
            position += count


def load_source(source: Source, dtype: torch.dtype) -> Llama:
    """Return the model of a Source with weights in `dtype`."""
    model = build_empty(source.config)
    state = {name: source.read(disk_name(name)).to(dtype) for name in model.state_dict()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def read_floats(layout: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """Return all tensors of an unquantized checkpoint, mapped."""
    return dict(_open_tensors(layout))


def read_float(layout: Mapping[str, StoredTensor], name: str) -> torch.Tensor:
    """Return a tensor of an unquantized checkpoint by name, mapped."""
    return dict(_open_tensors({name: layout[name]}))[name]


def read_dequantized(
    layout: Mapping[str, StoredTensor], config: LlamaConfig, schemes: Mapping[str, Scheme], name: str
) -> torch.Tensor:
    """Return a tensor of a checkpoint by name; quantized weights are dequantized to float32."""
    module = name.removesuffix(".weight")
    path = module.removeprefix("model.")
    if path not in schemes:
        return read_float(layout, name)
    layer = _empty_module(path, matrix_shapes(config)[path], schemes[path])
    state = {part: read_float(layout, f"{module}.{part}") for part in layer.state_dict()}
    layer.load_state_dict(state, strict=True, assign=True)
    return layer.dequantize()
