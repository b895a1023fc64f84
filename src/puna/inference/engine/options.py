"""EngineOptions: how large an engine is and what it computes in. Says nothing of what a request asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is opened with; what is None follows from the model.

    `max_batch` requests run side by side, each with at most `max_context` tokens; `cache_tokens` positions stand in the
    cache together. `dtype` is that of weights and activations; `is_int8_cache` rounds keys and values to int8. Each
    subdirectory of `adapters` is an adapter that requests can name; those in memory take at most `adapter_bytes`.
    """

    max_batch: int = 32
    max_context: int | None = None
    cache_tokens: int | None = None
    dtype: "torch.dtype | None" = None
    is_int8_cache: bool = False
    adapters: Path | None = None
    adapter_bytes: int = 4 << 30


DEFAULTS = EngineOptions()
