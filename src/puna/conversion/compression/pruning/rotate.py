"""A network -> an equivalent network with the residual stream rotated to principal directions.

RMSNorm without weights commutes with a rotation. So norm weights move into the following matrices, and one rotation
goes into every matrix (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, with a rotation per layer and additional
matrices). Afterwards few channels hold most of the energy. slicing.py removes channels.

Shapes: D model width, V vocabulary, O outputs, I inputs of a matrix.
"""

from dataclasses import replace
from functools import partial

import torch

from puna.conversion.compression.pruning.slicing import EMBEDDINGS, HEAD, NORM
from puna.formats.checkpoint.source import Source

NORMS = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}


def principal_directions(moments_DD: torch.Tensor) -> torch.Tensor:
    """Return the rotation with the principal directions of the stream as columns, strongest first."""
    return torch.linalg.eigh(moments_DD.double()).eigenvectors.flip(1).float()


def rotate(source: Source, rotation_DD: torch.Tensor) -> Source:
    """Return the rotated network in float32; the head is untied, since the final norm's weights move into the head."""
    config = replace(source.config, tie_embeddings=False)
    return replace(source, config=config, read=partial(_read, source, rotation_DD))


def _read(source: Source, rotation_DD: torch.Tensor, name: str) -> torch.Tensor:
    if name == EMBEDDINGS:
        return source.read(name).float() @ rotation_DD
    if name == HEAD:
        table_VD = source.read(EMBEDDINGS if source.config.tie_embeddings else HEAD).float()
        return table_VD * _direction(source, NORM) @ rotation_DD
    if name.endswith("norm.weight"):
        weight_D = source.read(name).float()
        return torch.full_like(weight_D, _size(weight_D))
    prefix, part = name.removesuffix(".weight").rsplit(".", maxsplit=2)[0], ".".join(name.split(".")[3:5])
    if part in NORMS:
        return source.read(name).float() * _direction(source, f"{prefix}.{NORMS[part]}.weight") @ rotation_DD
    return rotation_DD.T @ source.read(name).float()


def _direction(source: Source, name: str) -> torch.Tensor:
    """Return a norm's weights divided by their root mean square, which stays in the norm."""
    weight_D = source.read(name).float()
    return weight_D / _size(weight_D)


def _size(weight_D: torch.Tensor) -> float:
    return weight_D.square().mean().sqrt().item() or 1.0
