"""A network and texts -> hidden states layer by layer, and loss and KL divergence of the predictions.

Weights of one layer are in memory at a time.

Shapes: T tokens of a text, M target tokens, C target tokens of a chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from puna.conversion.compression.calibrate import Batch, text_batches
from puna.conversion.compression.pruning.slicing import EMBEDDINGS, HEAD
from puna.data.packing import Example
from puna.formats.checkpoint.source import Source, disk_name
from puna.model.llama import Block, Embedding, RMSNorm
from puna.model.rope import rope_frequencies
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress

CHUNK = 512
Texts = Sequence[Example]
Module = TypeVar("Module", bound=nn.Module)


def read_block(source: Source, index: int) -> Block:
    """Return a layer with tensors from the source, memory-mapped or sliced."""
    with torch.device("meta"):
        block = Block(source.config)
    return _load_from(block, source, f"layers.{index}.")


def run_block(block: Block, batches: Sequence[Batch]) -> list[Batch]:
    """Return the hidden states of the texts behind a layer."""
    return [batch._replace(x_TD=block(batch.x_TD, batch.rope, 0, batch.attend)) for batch in batches]


def embed_texts(source: Source, texts: Texts, dtype: torch.dtype) -> list[Batch]:
    """Return the hidden states of the texts before the first layer."""
    with torch.device("meta"):
        embeddings = Embedding(source.config.vocab_size, source.config.dim)
    embeddings = _load_from(embeddings, source, "embed_tokens.")
    return list(text_batches(embeddings, rope_frequencies(source.config), [text.ids for text in texts], dtype))


def final_norm(source: Source) -> RMSNorm:
    """Return the norm behind the last layer, with weights."""
    with torch.device("meta"):
        norm = RMSNorm(source.config.dim, source.config.norm_eps)
    return _load_from(norm, source, "norm.")


@dataclass(frozen=True)
class Scores:
    """Mean cross entropy of a model on the target tokens, and mean KL(parent || model), in nats per token."""

    loss: float
    divergence: float


class Reference:
    """Predictions of a parent network on texts, as the reference of pruned networks."""

    @torch.no_grad()
    def __init__(self, parent: Source, texts: Texts, dtype: torch.dtype, bar: Progress):
        self.parent, self.texts, self.dtype = parent, texts, dtype
        self.targets_M = torch.cat([torch.tensor(text.ids[1:])[_target_positions(text)] for text in texts])
        self.hidden_MD = _last_hidden(parent, texts, _run_all_layers(parent, texts, dtype, bar))

    def score(self, source: Source, bar: Progress) -> Scores:
        """Return loss and KL divergence of a network on the texts; `bar` counts layers."""
        return self.score_batches(source, _run_all_layers(source, self.texts, self.dtype, bar))

    @torch.no_grad()
    def score_batches(self, source: Source, batches: Sequence[Batch]) -> Scores:
        """Return loss and KL divergence from hidden states behind the last layer.

        Raises:
            CheckpointError: The logits hold NaN or infinity.
        """
        hidden_MD = _last_hidden(source, self.texts, batches)
        heads = [_head(network).to(self.dtype) for network in (self.parent, source)]
        loss = divergence = 0.0
        parts = zip(self.hidden_MD.split(CHUNK), hidden_MD.split(CHUNK), self.targets_M.split(CHUNK), strict=True)
        for *hidden, targets_C in parts:
            log_p, log_q = (F.linear(x, head).float().log_softmax(-1) for x, head in zip(hidden, heads, strict=True))
            loss += F.nll_loss(log_q, targets_C, reduction="sum").item()
            divergence += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
        if not math.isfinite(loss) or not math.isfinite(divergence):
            raise CheckpointError("the logits hold NaN or infinity", expected="finite logits for every token")
        return Scores(loss / len(self.targets_M), max(0.0, divergence / len(self.targets_M)))


@torch.no_grad()
def _run_all_layers(source: Source, texts: Texts, dtype: torch.dtype, bar: Progress) -> list[Batch]:
    batches = embed_texts(source, texts, dtype)
    for index in range(source.config.num_layers):
        batches = run_block(read_block(source, index), batches)
        bar.advance()
    return batches


def _last_hidden(source: Source, texts: Texts, batches: Sequence[Batch]) -> torch.Tensor:
    """Return the normed hidden states at the positions before target tokens."""
    norm = final_norm(source)
    hidden = [x_TD for batch in batches for x_TD in norm(batch.x_TD).split([len(ids) for ids in batch.texts])]
    return torch.cat([hidden_TD[_target_positions(text)] for text, hidden_TD in zip(texts, hidden, strict=True)])


def _target_positions(text: Example) -> torch.Tensor:
    """Return the positions before target tokens: tokens of documents and of assistant messages."""
    return torch.tensor(text.mask[1:], dtype=torch.bool).nonzero().flatten()


def _head(source: Source) -> torch.Tensor:
    return source.read(EMBEDDINGS if source.config.tie_embeddings else HEAD)


def _load_from(module: Module, source: Source, prefix: str) -> Module:
    state = {name: source.read(disk_name(prefix + name)) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()
