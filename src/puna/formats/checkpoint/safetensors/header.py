"""Headers of safetensors files -> name, dtype, shape and byte range of every tensor, without reading weights.

Every number of a header is validated against the file. Puna parses headers itself, so that errors name file and tensor.
Pickled .bin and .pth files are never opened. Source: the format's README in the safetensors repository.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from puna.formats.checkpoint.safe_files import find_file, parse_json, read_json
from puna.pipeline.errors import CheckpointError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)


class StoredTensor(NamedTuple):
    """A tensor's entry in a header; `start` and `end` are byte offsets in the data section."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_layout(directory: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a directory from the headers of its safetensors files."""
    if single := find_file(directory, SINGLE_NAME):
        return read_header(single)
    index_path = find_file(directory, INDEX_NAME)
    if index_path is None:
        raise CheckpointError(
            f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}",
            expected="weights as safetensors",
            hint="Pickled weights (.bin, .pth) are never read; convert them first",
        )
    return _read_shards(directory, index_path)


def _read_shards(directory: Path, index_path: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path} has no weight_map", expected="tensor names with their files")
    layout: dict[str, StoredTensor] = {}
    for file_name in sorted(set(weight_map.values())):
        path = find_file(directory, file_name)
        if path is None:
            raise CheckpointError(f"{directory / file_name} is missing", expected=f"all files that {INDEX_NAME} names")
        for name, stored in read_header(path).items():
            if weight_map.get(name) != file_name:
                raise CheckpointError(
                    f"{path}: tensor {name!a}", expected=f"only tensors that {INDEX_NAME} assigns to the file"
                )
            layout[name] = stored
    for name in weight_map.keys() - layout.keys():
        raise CheckpointError(
            f"{directory / weight_map[name]}: tensor {name!a} is missing",
            expected="every tensor in the file named by the index",
        )
    return layout


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, validated against the size of the file."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} has {file_bytes:,} bytes and claims a header of {header_bytes:,}",
                expected="a whole safetensors file",
                hint="It may be cut short; copy it again",
            )
        header = parse_json(file.read(header_bytes), path)
    header.pop("__metadata__", None)
    data_bytes = file_bytes - 8 - header_bytes
    layout = {name: _parse_entry(path, name, entry, data_bytes) for name, entry in header.items()}
    _require_gapless(path, layout, data_bytes)
    return layout


def _parse_entry(path: Path, name: str, entry: Any, data_bytes: int) -> StoredTensor:
    def fail(given: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!a}: {given}", expected=expected)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("malformed header entry", "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise fail(f"dtype {dtype!a:.100}", f"one of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise fail("malformed shape or data_offsets", "lists of integers")
    start, end = offsets
    if not start <= end <= data_bytes:
        raise fail(f"bytes {start:,} to {end:,} of {data_bytes:,}", "bytes inside the file, which may be cut short")
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise fail(f"{end - start:,} bytes", f"{dtype} of shape {shape} to fill them")
    return StoredTensor(path, dtype, tuple(shape), start, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _require_gapless(path: Path, layout: Mapping[str, StoredTensor], data_bytes: int) -> None:
    """Raise CheckpointError for tensors with shared bytes, and for bytes outside all tensors."""
    position = 0
    for name, stored in sorted(layout.items(), key=lambda item: item[1].start):
        if stored.start != position:
            raise CheckpointError(f"{path}: tensor {name!a} starts at byte {stored.start:,}", expected=f"{position:,}")
        position = stored.end
    if position != data_bytes:
        raise CheckpointError(
            f"{path} holds {data_bytes:,} bytes of data", expected=f"the {position:,} that its header describes"
        )
