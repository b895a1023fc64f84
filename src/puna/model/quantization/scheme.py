"""Quantization schemes as data: number format, group size, and bytes of a weight.

Needs no torch. quantized.py and float8.py compute with quantized weights; conversion/compression searches the values.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

WORD_BITS = 32
GROUP_SIZES = (128, 64, 32, 16)  # kernels of vLLM support the first three
GROUP_SCALE_BYTES, ROW_SCALE_BYTES = 2, 4


@dataclass(frozen=True)
class Scheme:
    """Integers of 4 or 8 bits with a scale per group of a row (None: per row), or float8 with a scale per row.

    Example:
        >>> Scheme("int", 4, 64).name
        'int4 g64'
    """

    kind: Literal["int", "float"]
    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        assert (self.kind, self.bits) in (("int", 4), ("int", 8), ("float", 8)), self
        assert self.group_size is None or (self.kind == "int" and self.group_size > 0), self

    @property
    def least(self) -> int:
        """The smallest value of an integer scheme; the largest value is -least - 1."""
        return -(2 ** (self.bits - 1))

    @property
    def name(self) -> str:
        """The usual name: int8, fp8, or "int4 g64" with groups of 64."""
        groups = f" g{self.group_size}" if self.group_size else ""
        return f"{'int' if self.kind == 'int' else 'fp'}{self.bits}{groups}"

    def fits(self, in_dim: int) -> bool:
        """Return whether whole groups fill a row of `length`."""
        return in_dim % (self.group_size or 1) == 0

    def num_groups(self, in_dim: int) -> int:
        """Return the number of scales of a row."""
        return in_dim // self.group_size if self.group_size else 1

    def num_words(self, in_dim: int) -> int:
        """Return the number of 32-bit words of a packed row."""
        return -(-in_dim * self.bits // WORD_BITS)

    def num_bytes(self, out_dim: int, in_dim: int) -> int:
        """Return the bytes of a stored weight, scales included."""
        row = in_dim if self.kind == "float" else 4 * self.num_words(in_dim)
        scale_bytes = GROUP_SCALE_BYTES if self.group_size else ROW_SCALE_BYTES
        return out_dim * (row + scale_bytes * self.num_groups(in_dim))


def describe_schemes(schemes: Mapping[str, Scheme]) -> str:
    """Return the names of the schemes of a model, the most frequent first: "int4 g64, int8"."""
    return ", ".join(scheme.name for scheme, _ in Counter(schemes.values()).most_common())


def common_group_size(widths: Collection[int]) -> int | None:
    """Return the largest usual group size that divides all rows, if any."""
    return next((size for size in GROUP_SIZES if not any(width % size for width in widths)), None)


INT8 = Scheme("int", 8)
FP8 = Scheme("float", 8)
