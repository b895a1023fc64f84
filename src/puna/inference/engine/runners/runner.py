"""Runner: what computes a step's hidden states and logits and keeps the pages.

Shapes: N chosen rows, D model width, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from puna.model.adapters.lora import Lora
from puna.model.config import LlamaConfig


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a step; `block_table` (C integers) names the sequence's pages.

    `adapter` is the sequence's adapter as `Runner.prepare` returned it, or None.
    """

    block_table: "array[int]"
    start: int
    num_tokens: int
    adapter: object = None


class Runner(Protocol):
    """Computes tokens of many sequences at once; the spans' tables name the pages where keys and values stand."""

    config: LlamaConfig
    dtype: torch.dtype  # in which adapters are kept

    def prepare(self, lora: Lora) -> object:
        """Return an adapter as `forward` wants it in a span."""
        ...

    def forward(self, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]) -> torch.Tensor:
        """Run the spans' tokens, one behind the other; return hidden_ND of `rows` after the final norm."""
        ...

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        ...

    def clear(self, page: int) -> None:
        """Fill a page with zeros: a NaN in it would reach whoever gets it next, even masked."""
        ...
