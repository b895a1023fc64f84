"""EngineOptions: limits and number formats of an engine, equal for all requests."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of an engine; None takes the model's own value.

    Args:
        max_batch: Number of running requests.
        max_context: Maximum length of prompt and answer in tokens.
        cache_tokens: Positions of the KV cache, shared by all requests.
        dtype: Number format of weights and activations.
        is_int8_cache: Whether the cache rounds keys and values to int8.
        adapters: Folder with LoRA adapters, one per subdirectory.
        adapter_bytes: Memory limit of loaded adapters.

    Example:
        >>> EngineOptions(max_batch=8, max_context=4096).is_int8_cache
        False
    """

    max_batch: int = 32
    max_context: int | None = None
    cache_tokens: int | None = None
    dtype: "torch.dtype | None" = None
    is_int8_cache: bool = False
    adapters: Path | None = None
    adapter_bytes: int = 4 << 30


DEFAULTS = EngineOptions()
