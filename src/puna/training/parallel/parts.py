"""A sharded parameter -> which part of the whole this process holds, and whether it answers for it.

A part is a box: a slice along each dimension.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from puna.model.llama import Llama
from puna.training.parallel.pipeline import ReceivedBeforeHead
from puna.training.parallel.team import Team

# Where each dimension begins and ends.
Box = tuple[tuple[int, int], ...]


class Part(NamedTuple):
    """What a process holds of a tensor, where it lies in the whole, and the shape of the whole."""

    tensor: torch.Tensor
    box: Box
    shape: tuple[int, ...]


def owned_parameters(model: Llama, team: Team) -> dict[str, nn.Parameter]:
    """Return the parameters by name, without those of which another process counts and writes the same part."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        is_divided = isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ())
        is_first_stages = name == "embed_tokens.weight" and isinstance(model.embed_tokens, ReceivedBeforeHead)
        if (is_divided or team.place("tensor") == 0) and not is_first_stages:
            found[name] = parameter
    return found


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def box_of(tensor: torch.Tensor) -> Box:
    """Return where in the whole tensor the part of this process lies."""
    if not isinstance(tensor, DTensor):
        return tuple((0, size) for size in tensor.shape)
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    box = [(0, size) for size in tensor.shape]
    # NOTE: from the inside out: a tensor rank's part is what its weights are sharded of.
    for dimension in reversed(range(mesh.ndim)):
        placement = tensor.placements[dimension]
        if isinstance(placement, Shard | _StridedShard):
            start, end = box[placement.dim]
            box[placement.dim] = _share(start, end, coordinate[dimension], mesh.size(dimension))
    assert tuple(end - start for start, end in box) == tuple(tensor.to_local().shape)
    return tuple(box)


def like(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return a tensor sharded as `tensor` is, of which this process holds `part`."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _share(start: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Return a share as torch.chunk cuts: all equal but for the last ones, which may be empty."""
    size = -(-(end - start) // count)
    return min(end, start + index * size), min(end, start + (index + 1) * size)
