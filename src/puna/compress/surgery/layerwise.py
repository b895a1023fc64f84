"""A model and texts -> what flows through it, with one layer's weights at a time, and how well it foresees the texts.

Shapes: T tokens of a text, M tokens of it that count, C of these at once, D model width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from puna.checkpoint.source import Source, disk_name
from puna.compress.calibrate import Batch, text_batches
from puna.compress.surgery.cut import EMBEDDINGS, HEAD
from puna.data.packing import Example
from puna.errors import CheckpointError
from puna.model.llama import Block, Embedding, RMSNorm
from puna.model.rope import rope_frequencies
from puna.progress import Progress

CHUNK = 512
Texts = Sequence[Example]
Module = TypeVar("Module", bound=nn.Module)


def read_block(source: Source, index: int) -> Block:
    """Return a layer, its tensors mapped or cut as the source gives them."""
    with torch.device("meta"):
        block = Block(source.config)
    return _filled(block, source, f"layers.{index}.")


def through(block: Block, batches: Sequence[Batch]) -> list[Batch]:
    """Return the texts as they are behind a layer."""
    return [batch._replace(x_TD=block(batch.x_TD, batch.rope, 0, batch.attend)) for batch in batches]


def first_batches(source: Source, texts: Texts, dtype: torch.dtype) -> list[Batch]:
    """Return the texts as they are before the first layer."""
    with torch.device("meta"):
        embeddings = Embedding(source.config.vocab_size, source.config.dim)
    embeddings = _filled(embeddings, source, "embed_tokens.")
    return list(text_batches(embeddings, rope_frequencies(source.config), [text.ids for text in texts], dtype))


def last_norm(source: Source) -> RMSNorm:
    """Return the norm behind the last layer."""
    with torch.device("meta"):
        norm = RMSNorm(source.config.dim, source.config.norm_eps)
    return _filled(norm, source, "norm.")


@torch.no_grad()
def text_loss(source: Source, texts: Texts, dtype: torch.dtype, bar: Progress) -> float:
    """Return the mean cross entropy of the tokens that count, in nats, with a unit of `bar` a layer.

    Raises CheckpointError if it is no number.
    """
    batches = first_batches(source, texts, dtype)
    for index in range(source.config.num_layers):
        batches = through(read_block(source, index), batches)
        bar.advance()
    return mean_loss(source, texts, batches)


def mean_loss(source: Source, texts: Texts, batches: Sequence[Batch]) -> float:
    """Return the same for texts that went through all layers."""
    norm, dtype = last_norm(source), batches[0].x_TD.dtype
    head_VD = source.read(EMBEDDINGS if source.config.tie_embeddings else HEAD).to(dtype)
    hidden = [x_TD for batch in batches for x_TD in norm(batch.x_TD).split([len(ids) for ids in batch.texts])]
    total, count = 0.0, 0
    for text, hidden_TD in zip(texts, hidden, strict=True):
        counted_M = torch.tensor(text.mask[1:], dtype=torch.bool).nonzero().flatten()
        targets_M = torch.tensor(text.ids[1:])[counted_M]
        for hidden_CD, targets_C in zip(hidden_TD[counted_M].split(CHUNK), targets_M.split(CHUNK), strict=True):
            total += F.cross_entropy(F.linear(hidden_CD, head_VD).float(), targets_C, reduction="sum").item()
        count += len(targets_M)
    loss = total / max(1, count)
    if not math.isfinite(loss):
        raise CheckpointError("the model gives logits that are not finite", expected="numbers")
    return loss


def _filled(module: Module, source: Source, prefix: str) -> Module:
    state = {name: source.read(disk_name(prefix + name)) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()
