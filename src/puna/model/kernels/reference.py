"""The arithmetic of the kernels in plain torch, a readable function per kernel; tests compare kernels with these.

Shapes: T tokens, D inputs, R rows, G groups, H query heads, K key/value heads, E head width.
"""

import torch
import torch.nn.functional as F


def pack(values: torch.Tensor, scales: torch.Tensor, group: int, bits: int, *, is_unsigned: bool) -> torch.Tensor:
    """Return bytes [panels, G, ...] for signed values [R, D]: per 32 rows and group first the weights, then the scales.

    Four bytes of a row are adjacent: four int8 inputs, or eight int4 inputs with the first four in the low halves.
    """
    rows = -values.shape[0] % 32
    scales = F.pad(scales.repeat_interleave(values.shape[1] // group // scales.shape[1], dim=1), (0, 0, 0, rows))
    values = F.pad(values, (0, 0, 0, rows)).unflatten(1, (-1, group)).unflatten(0, (-1, 32)).transpose(1, 2)
    if bits == 4:
        pairs = values.unflatten(-1, (-1, 2, 4)) + 8
        quads = pairs[..., 0, :] | pairs[..., 1, :] << 4
    else:
        quads = values.unflatten(-1, (-1, 4)) + (128 if is_unsigned else 0)
    bytes_of_scales = scales.unflatten(0, (-1, 32)).transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat((quads.to(torch.uint8).transpose(2, 3).flatten(2), bytes_of_scales.flatten(2)), dim=-1)


def round_activations(x_TD: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole numbers in -127..127 as float32 [T, G, group], and scales [T, G, 1]."""
    x_TGD = x_TD.float().unflatten(1, (-1, group))
    most = x_TGD.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, torch.zeros_like(most))
    return (x_TGD * inverse).round(), most / 127


def linear(x_TD: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Return float32 x W^T for W = signed values [R, D] * scales [R, groups]; x is rounded in groups of `group`."""
    rounded_TGD, x_scales = round_activations(x_TD, group)
    weights_RGD = values.float().unflatten(1, (-1, group))
    w_scales = scales.float().repeat_interleave(weights_RGD.shape[1] // scales.shape[1], dim=1)
    products_TRG = torch.einsum("tgd,rgd->trg", rounded_TGD, weights_RGD)
    return (products_TRG * x_scales[:, None, :, 0] * w_scales).sum(-1)


def attend(q_HE: torch.Tensor, k_SKE: torch.Tensor, v_SKE: torch.Tensor) -> torch.Tensor:
    """Return the attention [H, E] of one token to S positions; queries and keys are rotated already."""
    shared = q_HE.shape[0] // k_SKE.shape[1]
    k_SHE, v_SHE = (x.float().repeat_interleave(shared, dim=1) for x in (k_SKE, v_SKE))
    scores_HS = torch.einsum("he,she->hs", q_HE.float(), k_SHE) * q_HE.shape[-1] ** -0.5
    return torch.einsum("hs,she->he", scores_HS.softmax(-1), v_SHE)


def rotate(x_THE: torch.Tensor, positions_T: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotate every pair (e, e + E/2) by the angle of the position."""
    angles = positions_T.float()[:, None, None] * frequencies
    a, b = x_THE.chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)
