"""Positions -> rotary embeddings of query and key heads, in Hugging Face's layout (halves, not adjacent pairs).

Shapes: T tokens, H heads, E head width.
"""

import math

import torch

from puna.model.config import LlamaConfig


def rope_frequencies(config: LlamaConfig) -> torch.Tensor:
    """Return the angle per position of every rotated pair: float32 [E/2], on the CPU.

    NOTE: every step stays in float32 tensors as in Meta's reference; at position 100,000 the last bit of a frequency
    changes the angle by 0.01.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    old_context = scaling.original_max_context
    wavelengths = 2 * math.pi / frequencies
    slowed = frequencies / scaling.factor
    share = (old_context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - share) * slowed + share * frequencies
    is_long = wavelengths > old_context / scaling.low_freq_factor
    is_short = wavelengths < old_context / scaling.high_freq_factor
    return torch.where(is_long, slowed, torch.where(is_short, frequencies, blended))


def rope_tables(
    positions_T: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin [T, 1, E] for `apply_rope`, shared by all layers; the first half of sin is negated."""
    angles = positions_T.to(torch.float32)[:, None, None] * frequencies.to(positions_T.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def apply_rope(x_THE: torch.Tensor, cos_T1E: torch.Tensor, sin_T1E: torch.Tensor) -> torch.Tensor:
    """Rotate every pair (e, e + E/2) of all heads by the angle of the position; tables are from `rope_tables`."""
    return torch.addcmul(x_THE * cos_T1E, x_THE.roll(x_THE.shape[-1] // 2, -1), sin_T1E)
