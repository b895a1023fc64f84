"""The processes that torchrun started -> a Team: who this one is, what they sum, what they agree on.

A process alone is a team of one, for which nothing is divided and nothing sent.
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
from puna.training.parallel.layout import DIMENSIONS, Layout
from puna.training.settings import Parallel

# How long the others are waited for: rank 0 may write a large checkpoint meanwhile.
PATIENCE = timedelta(minutes=60)
NAMES_BYTES = 1024


@dataclass(frozen=True)
class Team:
    """This process among those that train one network. `mesh` has a dimension for each way to divide the work."""

    layout: Layout = field(default=Layout())
    rank: int = 0
    device: torch.device = field(default=torch.device("cpu"))
    mesh: DeviceMesh | None = None
    # Of the stages of one pipeline, for gradients: one group for both directions could wait for itself.
    backward_group: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, parallel: Parallel, rank: int, num_ranks: int, num_restarts: int = 0) -> "Team":
        """Meet the others; ConfigError if so many cannot be divided as told."""
        layout = Layout.of(parallel, num_ranks)
        kind = choose_device(parallel.device).type
        if num_ranks == 1:
            return cls(device=torch.device(kind))
        device = torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
            # NOTE: torchrun keeps its store over restarts, and in it the addresses of those that are gone.
            store = PrefixStore(f"attempt {num_restarts}", store)
            backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)
        mesh = init_device_mesh(kind, layout.shape, mesh_dim_names=DIMENSIONS)
        group = None
        if layout.pipeline > 1:
            pipelines = mesh.mesh.transpose(1, 3).reshape(-1, layout.pipeline)
            group, _ = dist.new_subgroups_by_enumeration(pipelines.tolist())
            assert isinstance(group, dist.ProcessGroup)
        return cls(layout, rank, device, mesh, group)

    @property
    def size(self) -> int:
        return math.prod(self.layout.shape)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def place(self, dimension: str) -> int:
        """Return which share along `dimension` is this process's, from 0."""
        return self.mesh.get_local_rank(dimension) if self.mesh else 0

    @property
    def is_last_stage(self) -> bool:
        return self.place("pipeline") == self.layout.pipeline - 1

    @property
    def own_seed(self) -> tuple[int, ...]:
        """What makes the random numbers of ranks differ that see other tokens; the first have those of one process."""
        place = self.place("data") * self.layout.context + self.place("context")
        return (place,) if place else ()

    def group(self, dimension: str) -> dist.ProcessGroup:
        assert self.mesh is not None
        return self.mesh.get_group(dimension)

    def wait(self) -> None:
        """Return once all have come here."""
        if self.size > 1:
            self.sum(0.0)

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up what each process found about its own batches and tokens; only last stages have found anything."""
        if self.size == 1:
            return sums
        names = list(sums)
        if self.layout.pipeline > 1:
            names = _from_last(names)
        # What tensor ranks found is about the same tokens.
        is_counted = self.is_last_stage and self.place("tensor") == 0
        return dict(zip(names, self.sum(*(sums[name] if is_counted else 0.0 for name in names)), strict=True))


def _from_last(names: list[str]) -> list[str]:
    """Let all know the names that the last rank has, which stands on a last stage."""
    text = json.dumps(names).encode().ljust(NAMES_BYTES)
    assert len(text) == NAMES_BYTES
    sent = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(sent, src=dist.get_world_size() - 1)
    return json.loads(bytes(sent.tolist()))
