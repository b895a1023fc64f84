"""Settings and a number of processes -> how many ways each kind of parallelism divides the work; or why it can't.

The order is that of the Llama 3 paper (2024, arXiv 2407.21783, section 3.3.2): tensor innermost, then context,
pipeline, data, since the innermost has the most to say to its neighbours and the outermost the least.
"""

from dataclasses import dataclass

from puna.model.config import LlamaConfig
from puna.pipeline.errors import ConfigError
from puna.training.settings import Parallel, TrainConfig

# Outermost first, as a DeviceMesh counts: neighbours in rank differ in `tensor`.
DIMENSIONS = ("data", "pipeline", "context", "tensor")


@dataclass(frozen=True)
class Layout:
    """How many ways the batches (data), layers (pipeline), tokens (context) and matrices (tensor) are divided."""

    data: int = 1
    pipeline: int = 1
    context: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, parallel: Parallel, num_ranks: int) -> "Layout":
        """Let `data` take the processes that the others leave, unless it is given; ConfigError if none fits."""
        inner = parallel.pipeline * parallel.context * parallel.tensor
        given = f"{num_ranks} processes for parallel.pipeline x context x tensor = {inner}"
        start = "torchrun --nproc-per-node {} --no-python puna ..."
        if num_ranks % inner:
            needed = -(-num_ranks // inner) * inner
            raise ConfigError(
                given, expected=f"a multiple of {inner}", hint=f"Start {needed}: {start.format(needed)}, or divide less"
            )
        data = parallel.data or num_ranks // inner
        if data * inner != num_ranks:
            raise ConfigError(
                f"{given} and parallel.data = {data}",
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
        """Raise ConfigError unless the network and the batches can be divided so."""
        for name, count in (("num_heads", widths.num_heads), ("num_kv_heads", widths.num_kv_heads)):
            _require_multiple(name, count, "parallel.tensor", self.tensor, "a tensor rank computes whole heads")
        _require_multiple("hidden_dim", widths.hidden_dim, "parallel.tensor", self.tensor, "its shares are equal")
        if widths.num_layers < self.pipeline:
            raise ConfigError(
                f"parallel.pipeline = {self.pipeline} for {widths.num_layers} layers",
                expected=f"at most {widths.num_layers}: a stage computes whole layers",
            )
        if config.accumulate % self.data:
            needed = -(-config.accumulate // self.data) * self.data
            raise ConfigError(
                f"accumulate = {config.accumulate} with {self.data} data ranks",
                expected="as many batches a step for each data rank",
                hint=f"Give --accumulate {needed}, and batch_tokens that keep a step as large as it shall be",
            )


def _require_multiple(name: str, count: int, setting: str, divisor: int, reason: str) -> None:
    if count % divisor:
        fitting = [str(each) for each in range(1, count + 1) if count % each == 0]
        raise ConfigError(
            f"{setting} = {divisor} with {name} = {count}", expected=f"one of {', '.join(fitting)}: {reason}"
        )
