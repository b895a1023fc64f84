"""A function -> the same, compiled by torch; one of a tensor of integers -> the same, recorded as CUDA graphs.

What can't be compiled or recorded is called as it is, more slowly, and the log says why. Knows no networks.

Shapes: B rows, X integers of each, D width of the result.
"""

import logging
from collections.abc import Callable
from typing import Any, ParamSpec

import torch

log = logging.getLogger(__name__)

# Calls before one is recorded, in which torch compiles and libraries take their memory.
WARM_UPS = 2
# Layers may be quantized differently: two programs for each kind of layer.
MAX_PROGRAMS = 64

Compute = Callable[[torch.Tensor], torch.Tensor]
Arguments = ParamSpec("Arguments")


def compiled(function: Callable[Arguments, torch.Tensor], backend: str) -> Callable[Arguments, torch.Tensor]:
    """Return the function compiled as a whole by one of torch.compile's backends."""
    # Imported here: it takes longer than all of torch.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    # NOTE: isolated, or all networks of a process would share the limit.
    limits: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": MAX_PROGRAMS}
    chosen = torch.compile(function, fullgraph=True, backend=backend, **limits)

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> torch.Tensor:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            log.warning("torch can't compile the network: %s", error)
            chosen = function
            return function(*args, **kwargs)

    return run


def vary(tensor: torch.Tensor, *dims: int) -> None:
    """Tell torch before it compiles that these sizes differ from call to call: one program serves all above 1."""
    from torch._dynamo import maybe_mark_dynamic

    maybe_mark_dynamic(tensor, dims)


class Recorded:
    """The function on a CUDA device, recorded once for each shape of its inputs, which come from the CPU."""

    def __init__(self, compute: Compute, device: torch.device):
        self._compute, self._device = compute, device
        self._graphs: dict[tuple[int, ...], _Graph] | None = {}
        # All share their memory: none runs beside another, and each result is copied at once.
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_graphs(self) -> int:
        return len(self._graphs or ())

    def __call__(self, inputs_BX: torch.Tensor) -> torch.Tensor:
        """Return result_BD."""
        if self._graphs is None:
            return self._compute(inputs_BX.to(self._device))
        shape = tuple(inputs_BX.shape)
        try:
            if shape not in self._graphs:
                self._graphs[shape] = _Graph(self._compute, inputs_BX.to(self._device), self._pool)
            return self._graphs[shape].replay(inputs_BX)
        except RuntimeError as error:
            log.warning("the device can't record the network's step: %s", error)
            self._graphs = None
            return self._compute(inputs_BX.to(self._device))


class _Graph:
    """One shape's kernels, and the memory that they read and write."""

    def __init__(self, compute: Compute, inputs_BX: torch.Tensor, pool: torch.cuda._POOL_HANDLE):
        self._inputs_BX, self._graph = inputs_BX, torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs_BX.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    compute(inputs_BX)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._result_BD = compute(inputs_BX)

    def replay(self, inputs_BX: torch.Tensor) -> torch.Tensor:
        self._inputs_BX.copy_(inputs_BX)
        self._graph.replay()
        return self._result_BD.clone()
