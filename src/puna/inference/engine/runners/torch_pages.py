"""TorchPages: the keys or the values of one layer in pages, as torch tensors. Attends to nothing.

Shapes: T positions, K key/value heads, E head width.
"""

import torch

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.model.config import LlamaConfig
from puna.model.kernels.memory import lazy_memory
from puna.model.kernels.reference import round_activations


class TorchPages:
    """In `dtype` as they come, or as int8 with a float32 scale for each position and head, as the kernels have them."""

    def __init__(
        self, config: LlamaConfig, num_pages: int, *, dtype: torch.dtype, device: torch.device, is_int8: bool = False
    ):
        shape = (num_pages * PAGE_LEN, config.num_kv_heads, config.head_dim)
        self.num_pages, self.dtype, self.device = num_pages, dtype, device
        self._memory = _zeros(shape, torch.int8 if is_int8 else dtype, device)
        self._scales = _zeros((*shape[:2], 1), torch.float32, device) if is_int8 else None

    @property
    def num_bytes(self) -> int:
        return self._memory.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def write(self, places_T: torch.Tensor, x_TKE: torch.Tensor) -> torch.Tensor:
        """Keep what stands at these places; return it as it will be read."""
        if self._scales is None:
            self._memory[places_T] = x_TKE
            return x_TKE
        rounded_TKE, scales_TK1 = round_activations(x_TKE.flatten(1), x_TKE.shape[-1])
        self._memory[places_T], self._scales[places_T] = rounded_TKE.to(torch.int8), scales_TK1
        return (rounded_TKE * scales_TK1).to(self.dtype)

    def read(self, places: torch.Tensor | slice) -> torch.Tensor:
        """Return what stands at these places, in `dtype`: [..., K, E]."""
        if self._scales is None:
            return self._memory[places]
        return (self._memory[places] * self._scales[places]).to(self.dtype)

    def clear(self, page: int) -> None:
        """Fill a page with zeros."""
        positions = slice(page * PAGE_LEN, (page + 1) * PAGE_LEN)
        self._memory[positions] = 0
        if self._scales is not None:
            self._scales[positions] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_values = torch.Size(shape).numel()
    return lazy_memory(num_values * dtype.itemsize).view(dtype).view(shape)
