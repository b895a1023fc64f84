"""Functions of tensors -> torch.compile programs and CUDA graphs.

If compiling or recording fails, the function runs eagerly, with a warning in the log.

Shapes: B rows, X integers of a row, D width of the result.
"""

import logging
from collections.abc import Callable
from typing import Any, ParamSpec

import torch

log = logging.getLogger(__name__)

# Warm-up calls before recording: torch compiles, and libraries allocate workspaces.
WARM_UPS = 2
# Compiled programs per function; layers with different quantization need separate programs.
MAX_PROGRAMS = 64

Compute = Callable[[torch.Tensor], torch.Tensor]
Arguments = ParamSpec("Arguments")


def compiled(function: Callable[Arguments, torch.Tensor], backend: str) -> Callable[Arguments, torch.Tensor]:
    """Compile a function without graph breaks, with a backend of torch.compile."""
    # Lazy import: torch._dynamo takes longer than all of torch.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    # NOTE: without isolation, all networks of a process share the limit.
    limits: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": MAX_PROGRAMS}
    chosen = torch.compile(function, fullgraph=True, backend=backend, **limits)

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> torch.Tensor:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            log.warning("torch cannot compile the network, which runs eagerly: %s", error)
            chosen = function
            return function(*args, **kwargs)

    return run


def mark_dynamic(tensor: torch.Tensor, *dims: int) -> None:
    """Mark dimensions as dynamic, so a single program serves all sizes above 1."""
    from torch._dynamo import maybe_mark_dynamic

    maybe_mark_dynamic(tensor, dims)


class CudaGraphs:
    """A function on a CUDA device, recorded as a CUDA graph per shape of the CPU inputs.

    Example:
        >>> step = CudaGraphs(decode_step._compute, torch.device("cuda"))
        >>> hidden_BD = step(inputs_BX)
    """

    def __init__(self, compute: Compute, device: torch.device):
        self._compute, self._device = compute, device
        self._graphs: dict[tuple[int, ...], _Graph] | None = {}
        # Graphs share one memory pool: they never overlap, and results are cloned at once.
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_graphs(self) -> int:
        return len(self._graphs or ())

    def __call__(self, inputs_BX: torch.Tensor) -> torch.Tensor:
        """Return result_BD; the first call with a shape records the graph, later calls replay the graph."""
        if self._graphs is None:
            return self._compute(inputs_BX.to(self._device))
        shape = tuple(inputs_BX.shape)
        try:
            if shape not in self._graphs:
                self._graphs[shape] = _Graph(self._compute, inputs_BX.to(self._device), self._pool)
            return self._graphs[shape].replay(inputs_BX)
        except RuntimeError as error:
            log.warning("CUDA graphs are off, since recording failed: %s", error)
            self._graphs = None
            return self._compute(inputs_BX.to(self._device))


class _Graph:
    """A CUDA graph for a fixed shape, with static input and output tensors."""

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
