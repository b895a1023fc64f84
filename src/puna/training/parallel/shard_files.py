"""Shards of tensors <-> one safetensors file per process; other layouts of processes can read all shards.

The name of a stored shard is the tensor's name with the shard's position, "norm.weight[0:8]"; whole tensors have no
position. torch.distributed.checkpoint is not used, since its index is a pickle.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from puna.formats.checkpoint.safetensors.writer import Entry, write_file
from puna.pipeline.errors import ArtifactError
from puna.training.parallel.shards import Box, TensorShard

LABEL = re.compile(r"(?P<name>[^\[]+)(\[(?P<box>[\d:,]+)\])?")


def file_name(kind: str, rank: int, num_ranks: int) -> str:
    """Return the file name for the shards of a rank.

    Example:
        >>> file_name("model", 0, 2)
        'model-00000-of-00002.safetensors'
    """
    return f"{kind}.safetensors" if num_ranks == 1 else f"{kind}-{rank:05d}-of-{num_ranks:05d}.safetensors"


def write_shards(path: Path, pieces: Mapping[str, TensorShard]) -> None:
    """Write shards, named with positions; empty shards are left out."""
    entries = [
        Entry(_label(name, box, shape), tensor.dtype, tuple(tensor.shape), tensor.detach)
        for name, (tensor, box, shape) in pieces.items()
        if tensor.numel()
    ]
    write_file(path, entries)


class ShardFiles:
    """Whole tensors from the shard files of a kind, such as all "model-*.safetensors".

    Example:
        >>> ShardFiles(Path("states/step-10"), "model").read("norm.weight", ((0, 8),)).shape
        torch.Size([8])
    """

    def __init__(self, directory: Path, kind: str):
        self.directory = directory
        self._shards: dict[str, list[tuple[Box, Path, str]]] = {}
        for path in sorted(directory.glob(f"{kind}*.safetensors")):
            for name, box, label in _labels(path):
                self._shards.setdefault(name, []).append((box, path, label))

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def read_all(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        ends = [[end for _, end in box] for box, _, _ in self._shards.get(name, [])]
        return self.read(name, tuple((0, max(axis_ends)) for axis_ends in zip(*ends, strict=True)))

    def read(self, name: str, wanted: Box) -> torch.Tensor:
        """Return the values in the box `wanted`; only needed parts of files are read."""
        if not _size(wanted):
            return torch.empty([end - start for start, end in wanted])
        parts, count = [], 0
        for box, path, label in self._shards.get(name, []):
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, wanted, strict=True))
            if all(start < end for start, end in common):
                parts.append((common, _read(path, label, box, common)))
                count += _size(common)
            if count == _size(wanted):
                return _joined(parts, wanted)
        raise ArtifactError(f"{self.directory}: {name} is not whole", expected=f"shards that cover {list(wanted)}")


def _joined(parts: list[tuple[Box, torch.Tensor]], wanted: Box) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0][1]
    whole = parts[0][1].new_empty([end - start for start, end in wanted])
    for box, part in parts:
        slices = tuple(slice(start - first, end - first) for (start, end), (first, _) in zip(box, wanted, strict=True))
        whole[slices] = part
    return whole


def _read(path: Path, label: str, box: Box, wanted: Box) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        if not box:
            return file.get_tensor(label)
        slices = tuple(slice(start - first, end - first) for (start, end), (first, _) in zip(wanted, box, strict=True))
        return file.get_slice(label)[slices]


def _labels(path: Path) -> Iterator[tuple[str, Box, str]]:
    with safe_open(path, framework="pt") as file:
        for label in file.keys():  # noqa: SIM118
            match = LABEL.fullmatch(label)
            if not match:
                raise ArtifactError(f"{path}: tensor {label!a}", expected="NAME, or NAME[START:END,...] for a shard")
            if match["box"]:
                box = tuple((int(start), int(end)) for start, end in (x.split(":") for x in match["box"].split(",")))
            else:
                box = tuple((0, size) for size in file.get_slice(label).get_shape())
            yield match["name"], box, label


def _label(name: str, box: Box, shape: tuple[int, ...]) -> str:
    if all(span == (0, size) for span, size in zip(box, shape, strict=True)):
        return name
    return f"{name}[{','.join(f'{start}:{end}' for start, end in box)}]"


def _size(box: Box) -> int:
    return math.prod(end - start for start, end in box)
