"""A network -> the frozen network with trainable low-rank matrices beside the linear layers.

Supports LoRA (arXiv 2106.09685), rsLoRA, DoRA, and quantized weights below (QLoRA). Files and merges are the task of
checkpoint/adapters.

Shapes: T tokens, R rank, I inputs, O outputs.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from puna.model.adapters.lora import LowRank
from puna.model.config import ADAPTED
from puna.model.llama import Linear, Llama
from puna.model.quantization.quantized import QuantizedLinear
from puna.pipeline.errors import ConfigError

# Number of weight values to dequantize at once while measuring row lengths.
BLOCK_VALUES = 2**24
ALL, HEAD = "all", "lm_head"


@dataclass(frozen=True)
class AdapterShape:
    """The shape of a new adapter; `targets` are names of matrices, or "all" for the matrices inside the layers.

    Example:
        >>> AdapterShape(targets="all", rank=16, alpha=32).scale
        2.0
    """

    targets: Collection[str]
    rank: int
    alpha: float
    is_rank_stabilized: bool = False
    has_magnitudes: bool = False

    @property
    def scale(self) -> float:
        """Factor of the low-rank product: alpha / R, or alpha / sqrt(R) for rsLoRA (arXiv 2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.is_rank_stabilized else self.rank)


class AdaptedLinear(nn.Module):
    """x W^T + scale * (x down^T) up^T with a frozen W; DoRA then scales every output to a learned row length.

    The row length counts as a constant in the backward pass, as in the DoRA paper (arXiv 2402.09353, section 4.3).
    Dropout applies to the input of `down` only, never to the input of W.
    """

    def __init__(
        self,
        frozen: Linear | QuantizedLinear,
        low_rank: LowRank,
        magnitude_O: torch.Tensor | None = None,
        *,
        is_rank_stabilized: bool = False,
    ):
        super().__init__()
        self.frozen, self.scale = frozen, low_rank.scale
        self.is_rank_stabilized, self.dropout, self.is_off = is_rank_stabilized, 0.0, False
        self.down_RI = nn.Parameter(low_rank.down_RI)
        self.up_OR = nn.Parameter(low_rank.up_OR)
        self.magnitude_O = None if magnitude_O is None else nn.Parameter(magnitude_O)

    @property
    def alpha(self) -> float:
        """The alpha of the settings, computed back from scale and rank."""
        rank = self.down_RI.shape[0]
        return self.scale * (rank**0.5 if self.is_rank_stabilized else rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self.frozen(x)
        if self.is_off:
            return product
        read = F.dropout(x, self.dropout, self.training)
        added = LowRank(self.down_RI, self.up_OR, self.scale).product(read)
        if self.magnitude_O is None:
            return product + added
        # NOTE: ratio - 1 is rounded to the dtype of x, not the ratio, which differs from 1 by thousandths at first.
        surplus_O = (self.magnitude_O / self.row_lengths() - 1).to(x.dtype)
        whole = product + added
        return torch.addcmul(whole, whole, surplus_O)

    @torch.no_grad()
    def row_lengths(self) -> torch.Tensor:
        """Return the length of every row of W + scale * up down, in float32."""
        lengths, start = [], 0
        for weight_OI in _float_rows(self.frozen):
            up_OR = self.up_OR[start : start + len(weight_OI)].float()
            lengths.append(torch.addmm(weight_OI, up_OR, self.down_RI.float(), alpha=self.scale).norm(dim=1))
            start += len(weight_OI)
        return torch.cat(lengths)


def _float_rows(frozen: Linear | QuantizedLinear) -> Iterator[torch.Tensor]:
    if isinstance(frozen, QuantizedLinear):
        yield from frozen.dequantized_rows()
        return
    for weight_OI in frozen.weight.split(max(1, BLOCK_VALUES // frozen.weight.shape[1])):
        yield weight_OI.float()


def add_adapter(model: Llama, shape: AdapterShape, *, seed: int) -> None:
    """Freeze a network and add a new adapter; the output is unchanged until the adapter is trained."""
    generator = torch.Generator().manual_seed(seed)
    linears = {path: _linear(model, path) for path in target_paths(model, shape.targets)}
    for path, frozen in linears.items():
        out_dim, in_dim = _shape(frozen)
        bound = in_dim**-0.5  # initialization of PEFT
        down_RI = torch.empty(shape.rank, in_dim).uniform_(-bound, bound, generator=generator)
        low_rank = LowRank(down_RI.to(model.device), torch.zeros(out_dim, shape.rank, device=model.device), shape.scale)
        magnitude_O = AdaptedLinear(frozen, low_rank).row_lengths() if shape.has_magnitudes else None
        adapted = AdaptedLinear(frozen, low_rank, magnitude_O, is_rank_stabilized=shape.is_rank_stabilized)
        model.set_submodule(path, adapted)
    _freeze(model)


def attach(
    model: Llama,
    lora: Mapping[str, LowRank],
    magnitudes: Mapping[str, torch.Tensor],
    *,
    is_rank_stabilized: bool = False,
) -> None:
    """Freeze a network and add an existing adapter by module path; tensors are copied as float32."""
    linears = {path: _linear(model, path) for path in lora}
    for path, update in lora.items():
        low_rank = LowRank(update.down_RI.float().clone(), update.up_OR.float().clone(), update.scale)
        magnitude_O = magnitudes[path].float().flatten().clone() if path in magnitudes else None
        model.set_submodule(
            path, AdaptedLinear(linears[path], low_rank, magnitude_O, is_rank_stabilized=is_rank_stabilized)
        )
    _freeze(model)


def _freeze(model: Llama) -> None:
    model.requires_grad_(False)
    for module in adapted_modules(model).values():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)


def adapted_modules(model: Llama) -> dict[str, AdaptedLinear]:
    """Return the modules with an adapter, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def set_dropout(model: Llama, share: float) -> None:
    """Set the dropout rate of all adapters in training mode."""
    for module in adapted_modules(model).values():
        module.dropout = share


@contextlib.contextmanager
def adapters_off(model: Llama) -> Iterator[None]:
    """Disable all adapters of a network during the block."""
    modules = adapted_modules(model).values()
    for module in modules:
        module.is_off = True
    try:
        yield
    finally:
        for module in modules:
            module.is_off = False


def target_paths(model: Llama, targets: Collection[str]) -> list[str]:
    """Return the paths of the named matrices; ConfigError for a head that is tied to the embeddings."""
    if HEAD in targets and model.lm_head is None:
        raise ConfigError(
            "an adapter for lm_head of a model whose head and embeddings are one table",
            expected="matrices inside the layers",
            hint="A head that learns apart from the embeddings needs a table of its own",
        )
    parts = [part for part in ADAPTED if ALL in targets or part.split(".")[1] in targets]
    paths = [f"layers.{layer}.{part}" for layer in range(model.config.num_layers) for part in parts]
    return [*paths, HEAD] if HEAD in targets else paths


def _linear(model: Llama, path: str) -> Linear | QuantizedLinear:
    module = model.get_submodule(path)
    if not isinstance(module, Linear | QuantizedLinear):
        raise ConfigError(
            f"an adapter for {path}, which is stored as float8",
            expected="floats, or integers of 4 or 8 bits",
            hint="float8 layers round what they read, too: train over the float weights, or over int8",
        )
    return module


def _shape(linear: Linear | QuantizedLinear) -> tuple[int, int]:
    if isinstance(linear, Linear):
        return linear.weight.shape[0], linear.weight.shape[1]
    return linear.out_dim, linear.in_dim
