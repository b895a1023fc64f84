"""Settings and a number of processes -> degrees of parallelism, checked against the sizes of the network.

Order of dimensions as in the Llama 3 paper (2024, arXiv 2407.21783, section 3.3.2): tensor innermost, then context,
pipeline, data, from most to least communication.
"""

from dataclasses import dataclass

from puna.model.config import LlamaConfig
from puna.pipeline.errors import ConfigError
from puna.training.settings import Parallel, TrainConfig

# Outermost first, as in a DeviceMesh: neighbouring ranks differ in `tensor`.
DIMENSIONS = ("data", "pipeline", "context", "tensor")


@dataclass(frozen=True)
class ParallelDims:
    """Degrees of parallelism over batches (data), layers (pipeline), tokens (context) and matrices (tensor).

    Example:
        >>> str(ParallelDims(data=4, tensor=2))
        'data 4 x pipeline 1 x context 1 x tensor 2'
    """

    data: int = 1
    pipeline: int = 1
    context: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, parallel: Parallel, num_ranks: int) -> "ParallelDims":
        """Return the degrees for `num_ranks` processes; without a setting, `data` takes all remaining processes.

        Raises:
            ConfigError: The degrees do not multiply to `num_ranks`.
        """
        inner = parallel.pipeline * parallel.context * parallel.tensor
        total = f"{num_ranks} processes for parallel.pipeline x context x tensor = {inner}"
        start = "torchrun --nproc-per-node {} --no-python puna ..."
        if num_ranks % inner:
            needed = -(-num_ranks // inner) * inner
            raise ConfigError(
                total,
                expected=f"a multiple of {inner}",
                hint=f"Start {needed}: {start.format(needed)}, or divide less",
            )
        data = parallel.data or num_ranks // inner
        if data * inner != num_ranks:
            raise ConfigError(
                f"{total} and parallel.data = {data}",
                expected=f"{data * inner} processes",
                hint=f"Leave parallel.data out, or start {start.format(data * inner)}",
            )
        return cls(data, parallel.pipeline, parallel.context, parallel.tensor)

    def __str__(self) -> str:
        return " x ".join(f"{name} {count}" for name, count in zip(DIMENSIONS, self.shape, strict=True))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.data, self.pipeline, self.context, self.tensor

    def require_fit(self, widths: LlamaConfig, config: TrainConfig) -> None:
        """Raise ConfigError unless the degrees divide heads, hidden channels, layers and batches."""
        for name, count in (("num_heads", widths.num_heads), ("num_kv_heads", widths.num_kv_heads)):
            _require_multiple(name, count, "parallel.tensor", self.tensor, "a tensor rank computes whole heads")
        _require_multiple("hidden_dim", widths.hidden_dim, "parallel.tensor", self.tensor, "all shards are equal")
        if widths.num_layers < self.pipeline:
            raise ConfigError(
                f"parallel.pipeline = {self.pipeline} for {widths.num_layers} layers",
                expected=f"at most {widths.num_layers}: a stage computes whole layers",
            )
        if config.grad_accumulation % self.data:
            needed = -(-config.grad_accumulation // self.data) * self.data
            raise ConfigError(
                f"grad_accumulation = {config.grad_accumulation} with {self.data} data ranks",
                expected=f"a multiple of {self.data}, so that data ranks have equally many batches",
                hint=f"Give --grad-accumulation {needed}, and batch_tokens for the same number of tokens per step",
            )


def _require_multiple(name: str, count: int, setting: str, divisor: int, reason: str) -> None:
    if count % divisor:
        fitting = [str(number) for number in range(1, count + 1) if count % number == 0]
        raise ConfigError(
            f"{setting} = {divisor} with {name} = {count}", expected=f"one of {', '.join(fitting)}: {reason}"
        )
