"""The processes of torchrun -> ProcessGroups: rank, device, device mesh, and collectives over all processes.

A single process has a world size of 1 and no communication.
"""

import atexit
import json
import math
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from puna.model.kernels.device import choose_device
from puna.training.parallel.parallel_dims import DIMENSIONS, ParallelDims
from puna.training.settings import Parallel

# Timeout of collectives: rank 0 may write a large checkpoint while other ranks wait.
PATIENCE = timedelta(minutes=60)
NAMES_BYTES = 1024


@dataclass(frozen=True)
class ProcessGroups:
    """Local rank, device and process groups; `mesh` has a dimension per kind of parallelism.

    Example:
        >>> ProcessGroups().world_size
        1
    """

    dims: ParallelDims = field(default=ParallelDims())
    rank: int = 0
    device: torch.device = field(default=torch.device("cpu"))
    mesh: DeviceMesh | None = None
    # Group of the pipeline stages for gradients: a single group for both directions could deadlock.
    backward_group: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, parallel: Parallel, rank: int, num_ranks: int, num_restarts: int = 0) -> "ProcessGroups":
        """Initialize torch.distributed and the device mesh for `num_ranks` processes.

        Raises:
            ConfigError: The degrees in the settings do not fit `num_ranks`.
        """
        dims = ParallelDims.of(parallel, num_ranks)
        kind = choose_device(parallel.device).type
        if num_ranks == 1:
            return cls(device=torch.device(kind))
        device = torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
            # NOTE: torchrun's store survives restarts, with addresses of dead processes: use a prefix per attempt.
            store = PrefixStore(f"attempt {num_restarts}", store)
            backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)
        mesh = init_device_mesh(kind, dims.shape, mesh_dim_names=DIMENSIONS)
        group = None
        if dims.pipeline > 1:
            pipelines = mesh.mesh.transpose(1, 3).reshape(-1, dims.pipeline)
            group, _ = dist.new_subgroups_by_enumeration(pipelines.tolist())
            assert isinstance(group, dist.ProcessGroup)
        return cls(dims, rank, device, mesh, group)

    @property
    def world_size(self) -> int:
        return math.prod(self.dims.shape)

    @property
    def is_main(self) -> bool:
        """Whether the process is rank 0, the writer of shared files."""
        return self.rank == 0

    def local_rank(self, dimension: str) -> int:
        """Return the local rank along a dimension of the mesh, from 0."""
        return self.mesh.get_local_rank(dimension) if self.mesh else 0

    @property
    def is_last_stage(self) -> bool:
        return self.local_rank("pipeline") == self.dims.pipeline - 1

    @property
    def seed_offset(self) -> tuple[int, ...]:
        """Additional seed of ranks with different tokens; empty on the first rank, as in a single process."""
        index = self.local_rank("data") * self.dims.context + self.local_rank("context")
        return (index,) if index else ()

    def group(self, dimension: str) -> dist.ProcessGroup:
        assert self.mesh is not None
        return self.mesh.get_group(dimension)

    def barrier(self) -> None:
        """Wait until all processes reach the barrier."""
        if self.world_size > 1:
            self.all_reduce(0.0)

    def all_reduce(self, *values: float) -> list[float]:
        """Return the sums of the values over all processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def reduce_sums(self, sums: dict[str, float]) -> dict[str, float]:
        """Return the sums over all batches and tokens, by name; only last pipeline stages have values to add."""
        if self.world_size == 1:
            return sums
        names = list(sums)
        if self.dims.pipeline > 1:
            names = _broadcast_from_last(names)
        # Tensor ranks have the same tokens: count one.
        is_counted = self.is_last_stage and self.local_rank("tensor") == 0
        return dict(zip(names, self.all_reduce(*(sums[name] if is_counted else 0.0 for name in names)), strict=True))


def _broadcast_from_last(names: list[str]) -> list[str]:
    """Broadcast the names of the last rank, on a last pipeline stage."""
    text = json.dumps(names).encode().ljust(NAMES_BYTES)
    assert len(text) == NAMES_BYTES
    sent = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(sent, src=dist.get_world_size() - 1)
    return json.loads(bytes(sent.tolist()))
