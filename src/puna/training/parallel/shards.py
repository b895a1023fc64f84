"""A sharded parameter -> the local shard, the shard's position in the whole tensor, and the owning rank.

The position is a box: a (start, end) range along every dimension.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from puna.model.llama import Llama
from puna.training.parallel.pipeline import TiedHeadTable
from puna.training.parallel.process_groups import ProcessGroups

# (start, end) along every dimension.
Box = tuple[tuple[int, int], ...]


class TensorShard(NamedTuple):
    """A local shard with the position in the whole tensor and the shape of the whole tensor.

    Example:
        >>> TensorShard(torch.zeros(2, 4), box=((2, 4), (0, 4)), shape=(4, 4)).box
        ((2, 4), (0, 4))
    """

    tensor: torch.Tensor
    box: Box
    shape: tuple[int, ...]


def owned_parameters(model: Llama, groups: ProcessGroups) -> dict[str, nn.Parameter]:
    """Return parameters by name without replicas: only the owning rank counts and writes a replicated shard."""
    owned: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        is_divided = isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ())
        is_first_stages = name == "embed_tokens.weight" and isinstance(model.embed_tokens, TiedHeadTable)
        if (is_divided or groups.local_rank("tensor") == 0) and not is_first_stages:
            owned[name] = parameter
    return owned


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the local shard of a tensor; a plain tensor is whole."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def box_of(tensor: torch.Tensor) -> Box:
    """Return the position of the local shard in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple((0, size) for size in tensor.shape)
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    box = [(0, size) for size in tensor.shape]
    # NOTE: from the innermost dimension out: FSDP shards the shard of a tensor rank.
    for dimension in reversed(range(mesh.ndim)):
        placement = tensor.placements[dimension]
        if isinstance(placement, Shard | _StridedShard):
            start, end = box[placement.dim]
            box[placement.dim] = _share(start, end, coordinate[dimension], mesh.size(dimension))
    assert tuple(end - start for start, end in box) == tuple(tensor.to_local().shape)
    return tuple(box)


def shard_like(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return a DTensor with the sharding of `tensor` and the local shard `part`."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _share(start: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Return the range of chunk `index` as in torch.chunk: equal sizes, except for shorter or empty last chunks."""
    size = -(-(end - start) // count)
    return min(end, start + index * size), min(end, start + (index + 1) * size)
