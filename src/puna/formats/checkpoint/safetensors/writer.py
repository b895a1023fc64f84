"""A model or a Source -> safetensors files and an index, tensor by tensor."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.formats.checkpoint.safe_files import write_json
from puna.formats.checkpoint.safetensors.header import INDEX_NAME, SINGLE_NAME
from puna.formats.checkpoint.source import Source, disk_name, tensor_shapes
from puna.model.llama import Llama
from puna.model.quantization.quantized import PackedWeight, Quantized
from puna.pipeline.artifacts.artifact import fsync
from puna.pipeline.errors import CheckpointError

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
}


class Entry(NamedTuple):
    """A tensor to write; the writer calls `read` for a tensor at a time. Example: see `model_entries`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def model_entries(model: Llama, dtype: torch.dtype | None) -> Iterator[Entry]:
    """Yield the tensors of a model's checkpoint; None as `dtype` keeps every tensor's dtype.

    Quantized weights and scales always keep the dtype.
    """
    quantized = {path: module for path, module in model.named_modules() if isinstance(module, Quantized)}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        stored_dtype = tensor.dtype if name.rpartition(".")[0] in quantized else dtype or tensor.dtype
        yield Entry(disk_name(name), stored_dtype, tuple(tensor.shape), partial(tensor.to, stored_dtype))
    for path, module in quantized.items():
        if isinstance(module, PackedWeight):
            shape = partial(torch.tensor, (module.out_dim, module.in_dim))
            yield Entry(disk_name(f"{path}.weight_shape"), torch.int64, (2,), shape)


def source_entries(source: Source, dtype: torch.dtype) -> Iterator[Entry]:
    """Yield the tensors of a source in `dtype`."""
    for name, shape in tensor_shapes(source.config).items():
        yield Entry(name, dtype, shape, partial(_read_as, source, name, dtype))


def _read_as(source: Source, name: str, dtype: torch.dtype) -> torch.Tensor:
    return source.read(name).to(dtype)


def write_weights(directory: Path, entries: Iterable[Entry], *, shard_bytes: int) -> None:
    """Write model.safetensors, or an index and shards of at most `shard_bytes`; larger tensors get a shard alone."""
    shards = _split(entries, shard_bytes)
    if len(shards) == 1:
        write_file(directory / SINGLE_NAME, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / file_name, shard)
        weight_map |= dict.fromkeys([entry.name for entry in shard], file_name)
    total_size = sum(entry.num_bytes for shard in shards for entry in shard)
    write_json(directory / INDEX_NAME, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _split(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def write_file(path: Path, entries: Iterable[Entry]) -> None:
    """Write a safetensors file tensor by tensor; the library's writer needs all tensors in memory.

    Raises:
        CheckpointError: The disk is full or fails.
    """
    # NOTE: wide dtypes first, as in the library, so that every tensor is aligned for mapping.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.num_bytes
        header[entry.name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in entries:
                tensor = entry.read()
                assert tensor.dtype == entry.dtype and tuple(tensor.shape) == entry.shape, entry.name
                file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}", expected="a disk with room for it") from error


def sync_files(directory: Path) -> None:
    """Fsync the directory and all files inside."""
    for path in [*(path for path in directory.iterdir() if path.is_file()), directory]:
        fsync(path)
