"""Runner: the interface of forward passes over a paged KV cache.

Shapes: N requested hidden states, D model width, V vocabulary.
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
    """Consecutive tokens of one sequence in a forward pass.

    `block_table` holds the sequence's pages as C integers; `adapter` is a result of `Runner.prepare`, or None.

    Example:
        >>> Span(array("i", [7, 3]), start=16, num_tokens=4).adapter is None
        True
    """

    block_table: "array[int]"
    start: int
    num_tokens: int
    adapter: object = None


class Runner(Protocol):
    """A model with a paged KV cache, computing many sequences at once.

    Example:
        >>> runner = open_runner(model, num_pages=64, dtype=torch.float32)
        >>> runner.logits(runner.forward([1, 271], [Span(array("i", [0]), 0, 2)], rows=[1])).shape
        torch.Size([1, 530])
    """

    config: LlamaConfig
    dtype: torch.dtype  # of prepared adapters

    def prepare(self, lora: Lora) -> object:
        """Return an adapter in the runner's own format, for spans."""
        ...

    def forward(self, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]) -> torch.Tensor:
        """Compute the concatenated tokens of all spans; return hidden_ND of the tokens `rows`, after the final norm."""
        ...

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        ...

    def clear(self, page: int) -> None:
        """Zero a page: a NaN would spread to the page's next request, even behind a mask."""
        ...
