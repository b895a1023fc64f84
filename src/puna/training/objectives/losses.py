"""Hidden states -> losses over the vocabulary, chunk by chunk, without the logits of a whole batch in memory.

The float32 logits of 4,096 tokens over Llama's vocabulary take 2.1 GB, and the backward pass takes several times as
much. Chunks bound the memory.

Shapes: M trained tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from puna.model.gradients.padding import TOKENS_STEP, padded_rows
from puna.model.llama import Embedding, Linear, Llama
from puna.training.parallel import vocab_parallel

# Tensors with one row per trained token: targets, teacher logits and so on.
Rows = Mapping[str, torch.Tensor]
# (logits of a chunk of trained tokens, rows with "targets") -> sums over the chunk with "loss".
Terms = Callable[[torch.Tensor, Rows], dict[str, torch.Tensor]]

# Number of logits per chunk, and per tile of a chunk that is converted to float32.
CHUNK_VALUES = 2**25
TILE_VALUES = 2**20


def summed_over_tokens(
    model: Llama,
    hidden_MD: torch.Tensor,
    rows: Rows,
    terms: Terms,
    *,
    beside: Callable[[Rows], Rows] = lambda rows: rows,
) -> dict[str, torch.Tensor]:
    """Return the sums of `terms` over all trained tokens.

    The same pass over the chunks computes the gradient of "loss", so logits are computed only once.

    Args:
        rows: Tensors with a row per trained token.
        terms: Computes the sums of a tile from logits and rows.
        beside: Extends the rows of a chunk, since matrix products are faster on a chunk than on a tile.
    """
    head = _Head.of(model, hidden_MD.dtype)
    inputs = (hidden_MD, *head.parameters)
    is_differentiated = torch.is_grad_enabled()
    gradients = [torch.zeros_like(x) if is_differentiated and x.requires_grad else None for x in inputs]
    sums: dict[str, torch.Tensor] = {}
    for part in _chunks(len(hidden_MD), model.config.vocab_size):
        hidden_CD = hidden_MD[part].detach()
        local_rows = beside({name: row[part][head.share(len(hidden_CD))] for name, row in rows.items()})
        if head.divided is None:
            hidden_CD = padded_rows(hidden_CD)
        logits_CV = head.logits(hidden_CD.requires_grad_(hidden_MD.requires_grad))
        gradient_CV = _summed_over_tiles(logits_CV, local_rows, terms, sums)
        if is_differentiated:
            _add_gradients(logits_CV, gradient_CV, (hidden_CD, *head.leaves), gradients, part)
    sums = head.summed(sums)
    if is_differentiated:
        sums["loss"] = _WithGradients.apply(sums["loss"], gradients, *inputs)  # type: ignore[assignment]
    return sums


def _summed_over_tiles(
    logits_CV: torch.Tensor, rows: Rows, terms: Terms, sums: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Add the terms of a chunk to `sums`; return the gradient of the loss, written over the logits.

    A loss reads the logits ten times and more, so tiles within the size of the CPU's cache are faster.
    """
    values_CV = logits_CV.detach()
    count = len(rows["targets"])
    is_cached = logits_CV.device.type == "cpu"  # a GPU loses more by many small kernels
    size = max(1, TILE_VALUES // values_CV.shape[1]) if is_cached else max(1, count)
    for start in range(0, max(1, count), size):
        tile = slice(start, min(start + size, count))
        tile_CV = values_CV[tile].float().requires_grad_(torch.is_grad_enabled())
        tile_sums = terms(tile_CV, {name: row[tile] for name, row in rows.items()})
        for name, value in tile_sums.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
        if torch.is_grad_enabled():
            (gradient_CV,) = torch.autograd.grad(tile_sums["loss"], tile_CV)
            values_CV[tile] = gradient_CV
    values_CV[count:] = 0.0
    return values_CV


def token_log_probabilities(model: Llama, hidden_MD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """Return the float32 log-probability of every target, for losses beyond sums over tokens, such as DPO.

    The backward pass computes the logits a second time.
    """

    def log_probabilities(hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        weight = _weight(model)
        if weight is None or not vocab_parallel.is_vocab_parallel(weight):
            logits_CV = model.logits(padded_rows(hidden_CD))[: len(hidden_CD)]
            return -F.cross_entropy(logits_CV, targets_C, reduction="none")
        logits_CV = vocab_parallel.local_logits(hidden_CD, weight)
        local = vocab_parallel.local_slice(len(targets_C), weight)
        losses_C = F.cross_entropy(logits_CV, targets_C[local], reduction="none")
        return vocab_parallel.gather_tokens(-losses_C, len(targets_C), weight)

    parts = _chunks(len(hidden_MD), model.config.vocab_size)
    chunks = [checkpoint(log_probabilities, hidden_MD[part], targets_M[part], use_reentrant=False) for part in parts]
    return torch.cat(chunks)  # type: ignore[arg-type]


class _Head(NamedTuple):
    """The output layer: trained parameters, and copies of the parameters in the dtype of the matrix product."""

    parameters: tuple[torch.Tensor, ...]
    leaves: tuple[torch.Tensor, ...]
    logits: Callable[[torch.Tensor], torch.Tensor]
    divided: DTensor | None = None

    @classmethod
    def of(cls, model: Llama, dtype: torch.dtype) -> "_Head":
        module, weight = model.embed_tokens if model.lm_head is None else model.lm_head, _weight(model)
        if weight is not None:
            # Rounded once, not for each chunk.
            weight_VD = weight.detach().to(dtype).requires_grad_(weight.requires_grad)
            if vocab_parallel.is_vocab_parallel(weight_VD):
                logits = partial(vocab_parallel.local_logits, weight_VD=weight_VD)
                return cls((weight,), (weight_VD,), logits, weight_VD)
            return cls((weight,), (weight_VD,), lambda hidden_CD: F.linear(hidden_CD, weight_VD))
        parameters = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
        return cls(parameters, parameters, model.logits)

    def share(self, count: int) -> slice:
        """Return the tokens for the local rank's logits: all tokens, or a shard if the vocabulary is divided."""
        return slice(count) if self.divided is None else vocab_parallel.local_slice(count, self.divided)

    def summed(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the sums over the shards of all ranks."""
        return sums if self.divided is None else vocab_parallel.all_reduce_sums(sums, self.divided)


def _weight(model: Llama) -> torch.Tensor | None:
    """Return the weight of a plain output layer; None for quantized layers and adapters."""
    module = model.embed_tokens if model.lm_head is None else model.lm_head
    return module.weight if isinstance(module, Linear | Embedding) else None


class _WithGradients(torch.autograd.Function):
    """A value with precomputed gradients with respect to the inputs."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor | None], *_: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (output,) = outputs
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient if gradient is None else gradient.mul_(output) for gradient in gradients)


def _add_gradients(
    logits_CV: torch.Tensor,
    gradient_CV: torch.Tensor,
    leaves: tuple[torch.Tensor, ...],
    gradients: list[torch.Tensor | None],
    part: slice,
) -> None:
    """Add the gradients of a chunk: first the hidden states, then the parameters of the output layer."""
    indices = [index for index, gradient in enumerate(gradients) if gradient is not None]
    if not indices:
        return
    computed = torch.autograd.grad(logits_CV, [leaves[index] for index in indices], gradient_CV)
    for index, gradient in zip(indices, computed, strict=True):
        total = gradients[index]
        assert total is not None
        if index == 0:
            total[part] = gradient[: len(total[part])]
        else:
            total.add_(gradient)


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    """Cut trained tokens into chunks; return a single empty chunk without trained tokens."""
    size = max(1, CHUNK_VALUES // vocab_size)
    if size > TOKENS_STEP:
        size -= size % TOKENS_STEP  # a chunk that is full needs no padding
    return [slice(start, start + size) for start in range(0, max(1, num_tokens), size)]
