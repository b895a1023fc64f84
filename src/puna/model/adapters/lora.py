"""The tensors of a LoRA adapter, and the product added to a linear layer.

checkpoint/adapters reads files; the network itself is not changed.

Shapes: R rank, I inputs, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """The low-rank update of one linear layer: x W^T + scale * (x down^T) up^T.

    Example:
        >>> y_TO = layer(x_TI) + update.product(x_TI)
    """

    down_RI: torch.Tensor
    up_OR: torch.Tensor
    scale: float

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return scale * (x down^T) up^T in the dtype of x."""
        return (x @ self.down_RI.to(x.dtype).T * self.scale) @ self.up_OR.to(x.dtype).T


# Low-rank updates by module path: "layers.0.self_attn.q_proj".
Lora = Mapping[str, LowRank]
