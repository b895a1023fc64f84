"""Tensors in safetensors files -> a Llama: fitted to the config, mapped instead of read. writer.py is the way back.

The names on disk are Hugging Face's; int8 weights are stored as compressed-tensors' pack-quantized.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from puna.checkpoint.layout import StoredTensor
from puna.checkpoint.source import Source, disk_name
from puna.errors import CheckpointError
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.model.quantized import Int8Linear, swap_linears

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = tuple(TORCH_DTYPES)
PREFETCH_BYTES = 2**24


def build_empty(config: LlamaConfig, *, is_quantized: bool) -> Llama:
    """Return the network without memory for its weights."""
    with torch.device("meta"):
        model = Llama(config)
        if is_quantized:
            swap_linears(model, lambda _, linear: Int8Linear.empty_like(linear))
    return model


def require_fit(
    directory: Path, layout: Mapping[str, StoredTensor], config: LlamaConfig, *, is_quantized: bool
) -> None:
    """Raise unless the files hold exactly the tensors of this config, each in a fitting dtype and shape."""
    # NOTE: these two come before the network is built: a config may name a billion layers.
    for layer in range(config.num_layers):
        if f"model.layers.{layer}.input_layernorm.weight" not in layout:
            raise CheckpointError(f"{directory}: tensor model.layers.{layer}.input_layernorm.weight is missing")
    total_bytes = sum(stored.end - stored.start for stored in layout.values())
    if config.num_parameters > total_bytes:
        raise CheckpointError(
            f"{directory}: {total_bytes:,} bytes of weights", expected=f"{config.num_parameters:,} parameters' worth"
        )
    expected = dict(_expected(build_empty(config, is_quantized=is_quantized)))
    for name, (kinds, shape) in expected.items():
        if name not in layout:
            raise CheckpointError(f"{directory}: tensor {name} is missing", expected=f"shape {list(shape)}")
        _require_tensor(layout[name], name, kinds, shape)
    for name in layout.keys() - expected.keys():
        if config.tie_embeddings and name == "lm_head.weight":
            _require_tensor(layout[name], name, FLOATS, (config.vocab_size, config.dim))
        elif not name.endswith(".rotary_emb.inv_freq"):  # old transformers saved this constant
            raise CheckpointError(
                f"{layout[name].file}: unexpected tensor {name!a}", expected="only what config.json describes"
            )


def _require_tensor(stored: StoredTensor, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(f"{stored.file}: tensor {name} has shape {list(stored.shape)}", expected=f"{list(shape)}")
    if stored.dtype not in kinds:
        raise CheckpointError(f"{stored.file}: tensor {name} has dtype {stored.dtype}", expected=" or ".join(kinds))


def _expected(model: Llama) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """Yield the name on disk, dtypes and shape of each stored tensor of a network."""
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.int8:
            out_dim, in_dim = tensor.shape
            yield f"model.{name}_packed", (("I32",), (out_dim, math.ceil(in_dim / 4)))
            yield f"model.{name}_shape", (("I64", "I32"), (2,))
        else:
            yield disk_name(name), (FLOATS, tuple(tensor.shape))


def map_weights(
    layout: Mapping[str, StoredTensor], config: LlamaConfig, *, is_quantized: bool, dtype: torch.dtype | None
) -> Llama:
    """Return the network with its tensors mapped from the files; those that need another dtype are copied.

    `layout` must have passed `require_fit`. Scales stay float32 whatever `dtype`.
    """
    model = build_empty(config, is_quantized=is_quantized)
    tensors = dict(_open_tensors(layout))
    head = tensors.pop("lm_head.weight", None) if config.tie_embeddings else None
    if head is not None and not torch.equal(head, tensors["model.embed_tokens.weight"]):
        file = layout["lm_head.weight"].file
        raise CheckpointError(f"{file}: tensor lm_head.weight differs from the embeddings", expected="tied embeddings")
    state: dict[str, torch.Tensor] = {}
    for name, empty in model.state_dict().items():
        if empty.dtype == torch.int8:
            state[name] = _unpack(layout, tensors, f"model.{name}", tuple(empty.shape))
            continue
        tensor = tensors.pop(disk_name(name))
        state[name] = tensor.to(torch.float32 if name.endswith("weight_scale") else dtype or tensor.dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _open_tensors(layout: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    by_file = sorted(layout.items(), key=lambda item: item[1].file)
    for path, group in itertools.groupby(by_file, key=lambda item: item[1].file):
        name = ""
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name, stored in group:
                    tensor = file.get_tensor(name)
                    if tuple(tensor.shape) != stored.shape:
                        raise RuntimeError("the file changed while it was read")
                    yield name, tensor
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: tensor {name!a}: {error}", expected="a readable safetensors file"
            ) from error


def _unpack(
    layout: Mapping[str, StoredTensor], tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, int]
) -> torch.Tensor:
    """Return int8 [out, in] from pack-quantized: four values + 128 in each int32, the first in the lowest byte."""
    stored_shape = tuple(tensors.pop(f"{name}_shape").tolist())
    if stored_shape != shape:
        file = layout[f"{name}_shape"].file
        raise CheckpointError(f"{file}: tensor {name}_shape says {list(stored_shape)}", expected=f"{list(shape)}")
    return _unpack_bytes(tensors.pop(f"{name}_packed"), shape[1])


def _unpack_bytes(packed: torch.Tensor, in_dim: int) -> torch.Tensor:
    return (packed.view(torch.uint8)[:, :in_dim] ^ 128).view(torch.int8)


def read_through(paths: Sequence[Path]) -> None:
    """Read files into the system's cache; what cannot be read is for those to report who need it."""
    buffer = bytearray(PREFETCH_BYTES)
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def load_source(source: Source, dtype: torch.dtype) -> Llama:
    """Return the network of a model in any format, its weights in `dtype`."""
    model = build_empty(source.config, is_quantized=False)
    state = {name: source.read(disk_name(name)).to(dtype) for name in model.state_dict()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def read_float(layout: Mapping[str, StoredTensor], name: str) -> torch.Tensor:
    """Return one tensor by its name in a checkpoint of floats, mapped; int8 weights as the float32 they stand for."""
    if name in layout:
        return _open_one(layout, name)
    path = name.removesuffix(".weight")
    packed, scale = (_open_one(layout, f"{path}.{part}") for part in ("weight_packed", "weight_scale"))
    in_dim = int(_open_one(layout, f"{path}.weight_shape")[1])
    return _unpack_bytes(packed, in_dim).float() * scale


def _open_one(layout: Mapping[str, StoredTensor], name: str) -> torch.Tensor:
    return dict(_open_tensors({name: layout[name]}))[name]
