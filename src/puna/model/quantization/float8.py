"""A float8 weight with a scale per row -> a linear layer that rounds activations to float8 with a scale per token.

The method is Meta's (The Llama 3 Herd of Models, arXiv 2407.21783, section 6.2, and the reference loader): the largest
activation of a token is clipped to 1200. Products of the rounded numbers are exact: in float8 on GPUs with float8
units (Ada, Hopper and newer) and bfloat16 activations, otherwise in the dtype of the activations.
"""

import torch
import torch.nn.functional as F
from torch import nn

from puna.model.quantization.scheme import FP8

MAX_FLOAT8 = 448.0
MAX_ACTIVATION = 1200.0
# Divisor of the widths that GPU products support.
TILE = 16


class Float8Linear(nn.Module):
    """x W^T in the dtype of x, with W as float8 rows.

    NOTE: `module.to(dtype)` would convert the weight but not apply the scale; use `Checkpoint.load(dtype)`.

    Example:
        >>> Float8Linear.rounded(torch.randn(48, 64))(torch.ones(2, 64)).shape
        torch.Size([2, 48])
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    scheme = FP8

    def __init__(self, weight: torch.Tensor, weight_scale: torch.Tensor):
        super().__init__()
        self.out_dim, self.in_dim = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def rounded(cls, weight_OI: torch.Tensor) -> "Float8Linear":
        """Return a layer with the nearest float8 values; scales are rounded to bfloat16."""
        weight_OI = weight_OI.detach().float()
        scale_O1 = (weight_OI.abs().amax(1, keepdim=True) / MAX_FLOAT8).bfloat16().float()
        scale_O1.masked_fill_(scale_O1 == 0, 1.0)
        return cls(_round(weight_OI / scale_O1), scale_O1)

    def dequantize(self) -> torch.Tensor:
        """Return weight_OI as float32."""
        return self.weight.float() * self.weight_scale.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.detach().abs().amax(-1, keepdim=True).float().clamp(max=MAX_ACTIVATION) / MAX_FLOAT8
        scale = scale.masked_fill(scale == 0, 1.0)
        rounded, weight_scale = _round(x / scale), self.weight_scale.float()
        if x.dtype == torch.bfloat16 and self._has_whole_tiles and multiplies_float8(x.device):
            return torch.ops.aten._scaled_mm(rounded, self.weight.t(), scale, weight_scale.t(), out_dtype=x.dtype)
        # float8 is exact in every wider dtype, so both scales apply after the product.
        # NOTE: sums of unscaled values overflow float16.
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype
        product = F.linear(rounded.to(wide), self.weight.to(wide))
        return (product * scale * weight_scale.flatten()).to(x.dtype)

    @property
    def _has_whole_tiles(self) -> bool:
        return self.in_dim % TILE == 0 and self.out_dim % TILE == 0


def multiplies_float8(device: torch.device) -> bool:
    """Return whether a device has float8 units; a constant for torch.compile (decode_step.py)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _round(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest float8 values; values out of range are clipped, where a cast gives NaN."""
    return x.clamp(-MAX_FLOAT8, MAX_FLOAT8).to(torch.float8_e4m3fn)
