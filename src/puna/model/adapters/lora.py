"""A low-rank adapter in memory: what it adds to the products of a network's matrices.

Reads no files (checkpoint/adapters/adapter.py does), and leaves the network as it is.

Shapes: R rank, I inputs, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds scale * (x down^T) up^T to x W^T."""

    down_RI: torch.Tensor
    up_OR: torch.Tensor
    scale: float

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added, in x's dtype."""
        return (x @ self.down_RI.to(x.dtype).T * self.scale) @ self.up_OR.to(x.dtype).T


# By the paths of the modules: "layers.0.self_attn.q_proj".
Lora = Mapping[str, LowRank]
