"""A weight -> int8 rows with one float32 scale each, and the linear layer that computes with them.

How good scales are found is compress/quantize.py's business; embeddings, norms and lm_head stay as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from puna.model.llama import Linear, Llama

MAX_PACKED_ROWS = 8


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 [out, in] and float32 scales [out, 1] with weight ~ int8 * scale; scale = max|row| / 127."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    scale = scale.masked_fill(scale == 0, 1.0)
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def _is_packed_faster(x: torch.Tensor) -> bool:
    """Whether torch's own int8 product can be used: 2 to 4 times as fast for a few rows, slower for many.

    NOTE: that product has no backward pass, and reads beyond the weight (a crash) unless its width is a multiple of 16.
    """
    is_narrow = x.dim() == 2 and x.shape[0] <= MAX_PACKED_ROWS and x.shape[1] % 64 == 0
    needs_grad = x.requires_grad and torch.is_grad_enabled()
    return is_narrow and not needs_grad and x.dtype == torch.bfloat16 and x.device.type == "cpu"


class Int8Linear(nn.Module):
    """x W^T in x's dtype, W kept as int8 rows and their scales.

    NOTE: `module.to(dtype)` would round the scales too; `Checkpoint.load(dtype)` leaves them in float32.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, weight_scale: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def from_linear(cls, linear: Linear) -> "Int8Linear":
        return cls(*quantize_weight(linear.weight))

    @classmethod
    def empty_like(cls, linear: Linear) -> "Int8Linear":
        """Return a layer of the same shape and device whose contents are not set."""
        (out_dim, in_dim), device = linear.weight.shape, linear.weight.device
        weight = torch.empty(out_dim, in_dim, dtype=torch.int8, device=device)
        return cls(weight, torch.empty(out_dim, 1, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight_scale.flatten().to(x.dtype)
        if _is_packed_faster(x):
            return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.weight, scale)
        # int8 is exact in every float dtype, so the scale can wait until after the product.
        return F.linear(x, self.weight.to(x.dtype)) * scale

    def dequantize(self) -> torch.Tensor:
        """Return the float32 weight [out, in] that this layer stands for."""
        return self.weight.float() * self.weight_scale.float()


def swap_linears(model: Llama, make: Callable[[str, Linear], nn.Module] | None = None) -> None:
    """Replace each Linear inside the layers by what `make(name, linear)` returns; by default its rounded Int8Linear."""
    for path, module in list(model.layers.named_modules(prefix="layers")):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, make(f"{path}.{name}", child) if make else Int8Linear.from_linear(child))


def is_quantized(model: Llama) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())
