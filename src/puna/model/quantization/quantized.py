"""Packed integers with scales -> linear layers and embeddings, and rounding of float weights to packed integers.

The words have the layout of compressed-tensors (pack-quantized), so weights stay mapped from the file.
conversion/compression searches for good scales; float8.py has the layer for float8.

Shapes: T tokens, O outputs, I inputs, W words of a row, G groups of a row.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from puna.model.llama import Embedding, Linear, Llama
from puna.model.quantization.float8 import Float8Linear
from puna.model.quantization.scheme import INT8, Scheme

# Number of values to unpack at once; a head of 128,256 rows would take gigabytes as floats.
BLOCK_VALUES = 2**24
MAX_PACKED_ROWS = 8


def pack(values_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Return words_OW: every int8 value plus 2^(bits - 1), the first in the lowest bits; unused bits are zero."""
    bytes_OI = (values_OI.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    bytes_OI = F.pad(bytes_OI, (0, -values_OI.shape[1] % (32 // bits)))
    if bits == 4:
        bytes_OI = bytes_OI[:, ::2] | bytes_OI[:, 1::2] << 4
    return bytes_OI.contiguous().view(torch.int32)


def unpack(words_OW: torch.Tensor, bits: int, in_dim: int) -> torch.Tensor:
    """Return int8 values_OI from words_OW."""
    # NOTE: torch requires little-endian machines; the lowest bits of a word are the first byte.
    bytes_OI = words_OW.contiguous().view(torch.uint8)
    if bits == 8:
        return (bytes_OI[:, :in_dim] ^ 128).view(torch.int8)
    pairs_OI2 = torch.stack((bytes_OI & 15, bytes_OI >> 4), dim=-1)
    return pairs_OI2.view(torch.int8).flatten(1)[:, :in_dim] - 8


def widest_scale(weight_OI: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return scale_OG that maps the largest weight of a group to the largest value of the scheme."""
    greatest_OG = weight_OI.unflatten(1, (scheme.num_groups(weight_OI.shape[1]), -1)).abs().amax(-1)
    return round_scale(greatest_OG / (-scheme.least - 1))


def round_scale(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to bfloat16 values, as other programs multiply, and zeros to one; the result is float32."""
    return scale.bfloat16().float().masked_fill_(scale == 0, 1.0)


def round_values(weight: torch.Tensor, scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the nearest int8 values with weight ~ values * scale; shapes are equal or broadcast."""
    return (weight / scale).round_().clamp_(scheme.least, -scheme.least - 1).to(torch.int8)


def expand_scale(scale_OG: torch.Tensor, in_dim: int) -> torch.Tensor:
    """Return scale_OI: the scales repeated over the inputs of the groups."""
    return scale_OG.repeat_interleave(in_dim // scale_OG.shape[1], dim=1)


class PackedWeight(nn.Module):
    """A weight as packed integers with scales; the parent of the linear layer and of the embeddings.

    NOTE: `module.to(dtype)` would round the scales; `Checkpoint.load(dtype)` keeps the stored scales.

    Example: see `rounded`.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, weight_packed: torch.Tensor, weight_scale: torch.Tensor, scheme: Scheme, in_dim: int):
        super().__init__()
        self.scheme, self.in_dim, self.out_dim = scheme, in_dim, weight_packed.shape[0]
        self.register_buffer("weight_packed", weight_packed)
        self.register_buffer("weight_scale", weight_scale)

    def dequantize(self) -> torch.Tensor:
        """Return weight_OI as float32."""
        return _dequantize(self.weight_packed, self.weight_scale, self.scheme, self.in_dim)

    def dequantized_rows(self) -> Iterator[torch.Tensor]:
        """Yield the float32 weight in blocks of rows, to hold one block in memory at a time."""
        for words, scale in self._blocks():
            yield _dequantize(words, scale, self.scheme, self.in_dim)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T in the dtype of x."""
        if x.requires_grad and torch.is_grad_enabled():
            return _FrozenProduct.apply(x, self)  # type: ignore[return-value]
        products = [_product(x, words, scale, self.scheme) for words, scale in self._blocks()]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def product_back(self, y: torch.Tensor) -> torch.Tensor:
        """Return y W in the dtype of y, for the backward pass."""
        rows = (words.shape[0] for words, _ in self._blocks())
        parts = zip(y.split(list(rows), dim=-1), self._blocks(), strict=True)
        products = [_product_back(part, words, scale, self.scheme, self.in_dim) for part, (words, scale) in parts]
        return products[0] if len(products) == 1 else torch.stack(products).sum(0)

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = max(1, BLOCK_VALUES // self.in_dim)
        return zip(self.weight_packed.split(rows), self.weight_scale.split(rows), strict=True)


class QuantizedLinear(PackedWeight):
    """x W^T in the dtype of x, with W as packed integers.

    Example: see `rounded`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x)


class QuantizedEmbedding(PackedWeight):
    """An embedding table as packed integers; models with tied embeddings also compute logits with the table.

    Example: see `rounded`.
    """

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return _dequantize(self.weight_packed[tokens_T], self.weight_scale[tokens_T], self.scheme, self.in_dim)


Quantized = QuantizedLinear | QuantizedEmbedding | Float8Linear


class _FrozenProduct(torch.autograd.Function):
    """x W^T with a backward pass that unpacks W again, so that no layer holds a float copy of W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (output,) = outputs
        return ctx.weight.product_back(output), None


def _dequantize(
    words_OW: torch.Tensor, scale_OG: torch.Tensor, scheme: Scheme, in_dim: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    # A product of two numbers of a dtype is rounded once, in the dtype or later; this way takes half the memory.
    exact = dtype if scale_OG.dtype == dtype else torch.float32
    values_OGI = unpack(words_OW, scheme.bits, in_dim).to(exact).unflatten(1, (scale_OG.shape[1], -1))
    return values_OGI.mul_(scale_OG.to(exact)[..., None]).flatten(1).to(dtype)


def _product(x: torch.Tensor, words_OW: torch.Tensor, scale_OG: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    in_dim = x.shape[-1]
    # NOTE: sums of unscaled values overflow float16.
    if scheme.group_size or x.dtype == torch.float16:
        return F.linear(x, _dequantize(words_OW, scale_OG, scheme, in_dim, x.dtype))
    values_OI, scale_O = unpack(words_OW, scheme.bits, in_dim), scale_OG.flatten().to(x.dtype)
    if _is_packed_faster(x):
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), values_OI.contiguous(), scale_O)
    # Small integers are exact in every float dtype, so the scale applies after the product.
    return F.linear(x, values_OI.to(x.dtype)) * scale_O


def _product_back(
    y: torch.Tensor, words_OW: torch.Tensor, scale_OG: torch.Tensor, scheme: Scheme, in_dim: int
) -> torch.Tensor:
    if scheme.group_size or y.dtype == torch.float16:
        return y @ _dequantize(words_OW, scale_OG, scheme, in_dim, y.dtype)
    return (y * scale_OG.flatten().to(y.dtype)) @ unpack(words_OW, scheme.bits, in_dim).to(y.dtype)


def _is_packed_faster(x: torch.Tensor) -> bool:
    """Return whether torch's own int8 product applies; the product is faster for a few rows, and slower for many.

    NOTE: that product has no backward pass, and reads beyond the weight (a crash) unless its width is a multiple of 16.
    """
    # NOTE: test the device first, so that code compiled for other devices does not depend on the number of rows.
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return x.dim() == 2 and x.shape[0] <= MAX_PACKED_ROWS and x.shape[1] % 64 == 0


def pack_weight(values_OI: torch.Tensor, scale_OG: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words_OW and scale_OG as stored: bfloat16 scales per group, float32 scales per row."""
    return pack(values_OI, scheme.bits), scale_OG.bfloat16() if scheme.group_size else scale_OG.float()


def round_weight(weight_OI: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words_OW and scale_OG of the nearest values with the widest scale, in blocks of rows."""
    parts = []
    for part_OI in weight_OI.detach().split(max(1, BLOCK_VALUES // weight_OI.shape[1])):
        scale_OG = widest_scale(part_OI.float(), scheme)
        values_OI = round_values(part_OI.float(), expand_scale(scale_OG, part_OI.shape[1]), scheme)
        parts.append(pack_weight(values_OI, scale_OG, scheme))
    words, scales = zip(*parts, strict=True)
    return torch.cat(words), torch.cat(scales)


def rounded(module: Linear | Embedding, scheme: Scheme) -> Quantized:
    """Return a quantized layer or embedding with the nearest values of a scheme.

    Example:
        >>> layer = rounded(Linear(64, 48), Scheme("int", 8))
        >>> layer(torch.ones(2, 64)).shape
        torch.Size([2, 48])
    """
    if scheme.kind == "float":
        return Float8Linear.rounded(module.weight)
    kind = QuantizedEmbedding if isinstance(module, Embedding) else QuantizedLinear
    return kind(*round_weight(module.weight, scheme), scheme, module.weight.shape[1])


def empty_quantized(shape: tuple[int, int], scheme: Scheme, *, is_embedding: bool, device: str = "cpu") -> Quantized:
    """Return an uninitialized quantized module for (outputs, inputs)."""
    out_dim, in_dim = shape
    if scheme.kind == "float":
        weight = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
        return Float8Linear(weight, torch.empty(out_dim, 1, device=device))
    words = torch.empty(out_dim, scheme.num_words(in_dim), dtype=torch.int32, device=device)
    scale_dtype = torch.bfloat16 if scheme.group_size else torch.float32
    scale = torch.empty(out_dim, scheme.num_groups(in_dim), dtype=scale_dtype, device=device)
    return (QuantizedEmbedding if is_embedding else QuantizedLinear)(words, scale, scheme, in_dim)


def layer_linears(model: Llama) -> Iterator[tuple[str, Linear]]:
    """Yield path and module of every float matrix inside the layers."""
    for path, module in list(model.layers.named_modules(prefix="layers")):
        if isinstance(module, Linear):
            yield path, module


def round_linears(model: Llama, scheme: Scheme = INT8) -> None:
    """Replace every matrix inside the layers by the nearest values of a scheme."""
    for path, linear in layer_linears(model):
        model.set_submodule(path, rounded(linear, scheme))


def schemes_of(model: Llama) -> dict[str, Scheme]:
    """Return the schemes of quantized modules by path."""
    return {path: module.scheme for path, module in model.named_modules() if isinstance(module, Quantized)}
