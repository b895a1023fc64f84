"""Rows of floats <-> bytes of GGUF tensors: plain floats, or quantized blocks with a scale per block.

Quantized blocks equal those of llama.cpp's reference quantizers byte for byte. writer.py chooses the kind of a tensor.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK_VALUES = 2**20  # Values per step, which bounds temporary memory.


class Kind(NamedTuple):
    """A tensor type of GGUF (ggml_type).

    Attributes:
        number: Number of the type in files.
        block_len: Values per block.
        block_bytes: Bytes per block.
        largest: Largest absolute value that the type can represent.
    """

    number: int
    block_len: int
    block_bytes: int
    largest: float


_F32_MAX, _F16_MAX = torch.finfo(torch.float32).max, torch.finfo(torch.float16).max
KINDS = {
    "F32": Kind(0, 1, 4, _F32_MAX),
    "F16": Kind(1, 1, 2, _F16_MAX),
    "BF16": Kind(30, 1, 2, torch.finfo(torch.bfloat16).max),
    "Q8_0": Kind(8, 32, 34, 127 * _F16_MAX),
    "Q4_0": Kind(2, 32, 18, 8 * _F16_MAX),
    "Q6_K": Kind(14, 256, 210, 0.0),  # Read only: type of the output matrix in llama.cpp's Q4_0 files.
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Unsupported types, with sizes for the validation of files and names for errors.
OTHER_KINDS = {
    name: Kind(number, block_len, block_bytes, 0.0)
    for name, number, block_len, block_bytes in (
        ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_1", 9, 32, 40), ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176), ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50),
        ("IQ4_NL", 20, 32, 18), ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82), ("IQ4_XS", 23, 256, 136),
        ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, 56), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
        ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18),
    )
}  # fmt: skip

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def encode(rows: torch.Tensor, kind: str) -> Bytes:
    """Return the bytes [R, bytes per row] of finite floats [R, C]; C must be a multiple of the block length."""
    if kind in DTYPES:
        return rows.to(DTYPES[kind]).contiguous().view(torch.uint8).numpy()
    blocks = rows.float().contiguous().numpy().reshape(-1, KINDS[kind].block_len)
    encoded = _encode_q8(blocks) if kind == "Q8_0" else _encode_q4(blocks)
    return encoded.reshape(len(rows), -1)


def decode(data: Bytes, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor in `data`: plain floats as a view, quantized blocks as new float32."""
    if kind in DTYPES:
        return torch.from_numpy(data).view(DTYPES[kind]).reshape(shape)
    blocks = data.reshape(-1, KINDS[kind].block_bytes)
    decoded = np.empty((len(blocks), KINDS[kind].block_len), np.float32)
    step = CHUNK_VALUES // KINDS[kind].block_len
    with np.errstate(invalid="ignore"):  # NaN scales stay NaN.
        for start in range(0, len(blocks), step):
            decoded[start : start + step] = _DECODERS[kind](blocks[start : start + step])
    return torch.from_numpy(decoded).reshape(shape)


def _inverse(scales: Floats) -> Floats:
    """Return 1 / scale, and 0 for an infinite result: such small scales are stored as 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _encode_q8(blocks: Floats) -> Bytes:
    """Return Q8_0 blocks: a float16 scale, then 32 int8 values; the largest value becomes 127."""
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scales)
    # NOTE: half away from zero, as C's roundf; numpy rounds ties to even.
    sizes = np.abs(scaled)
    whole = np.floor(sizes)
    rounded = np.copysign(whole + (sizes - whole >= 0.5), scaled).astype(np.int8)
    return np.concatenate((scales.astype(np.float16).view(np.uint8), rounded.view(np.uint8)), axis=1)


def _decode_q8(blocks: Bytes) -> Floats:
    return _float16(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _encode_q4(blocks: Floats) -> Bytes:
    """Return Q4_0 blocks: a float16 scale, then 32 4-bit values with offset 8; values i and i + 16 share byte i."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = largest / np.float32(-8)
    steps = np.trunc(blocks * _inverse(scales) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    packed = steps[:, :16] | steps[:, 16:] << np.uint8(4)
    return np.concatenate((scales.astype(np.float16).view(np.uint8), packed), axis=1)


def _decode_q4(blocks: Bytes) -> Floats:
    steps = np.concatenate((blocks[:, 2:] & 15, blocks[:, 2:] >> 4), axis=1)
    return _float16(blocks[:, :2]) * (steps.astype(np.float32) - 8)


def _decode_q6(blocks: Bytes) -> Floats:
    """Decode Q6_K blocks: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, a float16 scale."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & np.uint8(15)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    steps = (low.reshape(-1, 2, 4, 32) | high << 4).astype(np.float32) - 32
    scales = _float16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * steps.reshape(-1, 16, 16)).reshape(-1, 256)


def _float16(data: Bytes) -> Floats:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


_DECODERS = {"Q8_0": _decode_q8, "Q4_0": _decode_q4, "Q6_K": _decode_q6}
