"""A model -> the same model with the channels of its residual stream turned to their principal directions.

It computes what the model did: a norm without weights does not see a rotation, so the norms' weights go into what reads
them and every matrix is turned once (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, who turn each layer by itself
and need matrices in between). Then few channels hold most of what flows. Cuts nothing.

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
    """Return the rotation whose columns are the directions of the stream, from the strongest to the weakest."""
    return torch.linalg.eigh(moments_DD.double()).eigenvectors.flip(1).float()


def rotate(source: Source, rotation_DD: torch.Tensor) -> Source:
    """Return the turned model, in float32; its head has a table of its own, since the last norm's weights are in it."""
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
    """Return a norm's weights over their size, which stays in the norm."""
    weight_D = source.read(name).float()
    return weight_D / _size(weight_D)


def _size(weight_D: torch.Tensor) -> float:
    return weight_D.square().mean().sqrt().item() or 1.0
