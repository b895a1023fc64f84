"""A checkpoint in this process -> labels, from one forward pass per row in large batches.

Logits exist for a chunk of tokens at a time.

Shapes: T tokens of a batch, N labelled tokens, C labelled tokens of a chunk, K entries of a label, D model width, V
vocabulary.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from puna.data.labels import LabelledRow
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.cache.paged_cache import num_pages_for
from puna.inference.engine.runners.native_runner import NativeRunner, native_kernels
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.sampling.sampler import most_likely_first, trim_padded_vocabulary
from puna.model.attend import packed_attend
from puna.model.kernels.native import Kernels
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.training.teacher.teacher import Item, Labelled, Piece, cut

# Largest number of logits in memory.
CHUNK_VALUES = 2**25


@dataclass(frozen=True)
class TokenLabels:
    """Labels of consecutive labelled tokens.

    Example: `LocalTeacher.label`.
    """

    top_ids_NK: np.ndarray
    top_NK: np.ndarray
    tail_N: np.ndarray
    chosen_N: np.ndarray


class LocalTeacher:
    """A network in memory, computed in `dtype`; rows longer than `context` are cut into pieces.

    Padding rows of the embeddings beyond the vocabulary of `tokenizer` get no probability. Without a tokenizer, every
    row is a token.

    Example:
        >>> teacher = LocalTeacher(
        ...     model, tokenizer, dtype=torch.float32, top_k=8, temperature=1.0, context=256, batch_tokens=4096
        ... )
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer | None,
        *,
        dtype: torch.dtype,
        top_k: int,
        temperature: float,
        context: int,
        batch_tokens: int,
    ):
        self._tokenizer, self._temperature = tokenizer, temperature
        num_tokens = tokenizer.vocab_size - len(tokenizer.unused_ids) if tokenizer else model.config.vocab_size
        self._top_k = min(top_k, num_tokens)
        self._context, self._batch_tokens = context, max(batch_tokens, context)
        kernels = native_kernels(model, dtype)
        self._network = _Torch(model, dtype) if kernels is None else _Native(model, kernels, self._batch_tokens)

    @torch.inference_mode()
    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        parts: dict[int, list[TokenLabels]] = {index: [] for index in range(len(items))}
        num_done = 0
        for batch in self._batches(items):
            for piece, labels in zip(batch, self._run(batch), strict=True):
                parts[piece.item].append(labels)
            advance(batch[-1].item - num_done)
            num_done = batch[-1].item
        advance(len(items) - num_done)
        return [
            Labelled(item.row, _join(item, labels)) if labels else Labelled(item.row, None, "nothing in it is trained")
            for item, labels in zip(items, parts.values(), strict=True)
        ]

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Piece]]:
        batch: list[Piece] = []
        for piece in (piece for index, item in enumerate(items) for piece in cut(index, item, self._context)):
            if batch and sum(len(each.ids) - 1 for each in batch) + len(piece.ids) - 1 > self._batch_tokens:
                yield batch
                batch = []
            batch.append(piece)
        if batch:
            yield batch

    def _run(self, batch: Sequence[Piece]) -> list[TokenLabels]:
        starts = np.cumsum([0, *(len(piece.ids) - 1 for piece in batch)])
        rows = [int(start) + at - 1 for start, piece in zip(starts, batch, strict=False) for at in piece.wanted]
        hidden_ND = self._network.hidden([piece.ids[:-1] for piece in batch], rows)
        targets_N = torch.tensor([piece.ids[at] for piece in batch for at in piece.wanted], device=hidden_ND.device)
        size = max(1, CHUNK_VALUES // self._network.vocab_size)
        chunks = [
            self._label(self._logits(hidden_CD), targets_C)
            for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True)
        ]
        whole = _concatenated(chunks)
        ends = np.cumsum([len(piece.wanted) for piece in batch])
        return [_part(whole, slice(end - len(piece.wanted), end)) for piece, end in zip(batch, ends, strict=True)]

    def _logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        logits_CV = self._network.logits(hidden_CD)
        return trim_padded_vocabulary(logits_CV, self._tokenizer) if self._tokenizer else logits_CV

    def _label(self, logits_CV: torch.Tensor, targets_C: torch.Tensor) -> TokenLabels:
        softened_CV = logits_CV.div_(self._temperature) if self._temperature != 1 else logits_CV
        most_C1 = softened_CV.amax(-1, keepdim=True)
        if not most_C1.isfinite().all():
            raise CheckpointError("a teacher with infinite or NaN logits", expected="finite numbers in all logits")
        top_CK, ids_CK = most_likely_first(softened_CV, self._top_k)
        chosen_C1 = softened_CV.gather(-1, targets_C[:, None])
        mass_CV = softened_CV.sub_(most_C1).exp_()
        total_C1 = mass_CV.sum(-1, keepdim=True)
        log_total_C1 = most_C1 + total_C1.log()
        tail_C1 = mass_CV.scatter_(-1, ids_CK, 0.0).sum(-1, keepdim=True) / total_C1
        halves = ((top_CK - log_total_C1), tail_C1.log()[:, 0], (chosen_C1 - log_total_C1)[:, 0])
        return TokenLabels(ids_CK.int().cpu().numpy(), *(values.half().cpu().numpy() for values in halves))


class _Torch:
    """The network in torch, in float32 or on an accelerator."""

    def __init__(self, model: Llama, dtype: torch.dtype):
        self._model, self._dtype, self.vocab_size = model, dtype, model.config.vocab_size
        self.logits: Callable[[torch.Tensor], torch.Tensor] = model.logits

    def hidden(self, texts: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor:
        device, lengths = self._model.device, [len(ids) for ids in texts]
        tokens_T = torch.tensor([each for ids in texts for each in ids], device=device)
        positions_T = torch.cat([torch.arange(length, device=device) for length in lengths])
        hidden_TD = self._model(tokens_T, positions_T, packed_attend(lengths), dtype=self._dtype)
        return hidden_TD[torch.tensor(rows, dtype=torch.long, device=device)]


class _Native:
    """The network in the compiled kernels: 2 to 6 times the speed of torch on a CPU, also for quantized weights."""

    def __init__(self, model: Llama, kernels: Kernels, batch_tokens: int):
        # Every text starts a new page, so short texts need more pages than tokens alone would.
        self._num_pages, self.vocab_size = 2 * num_pages_for(batch_tokens), model.config.vocab_size
        self._runner = NativeRunner(model, kernels, num_pages=self._num_pages)
        self.logits: Callable[[torch.Tensor], torch.Tensor] = self._runner.logits

    def hidden(self, texts: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor:
        labelled_rows, parts = np.asarray(rows), []
        for first, group in self._groups(texts):
            tokens = [each for ids in group for each in ids]
            here = labelled_rows[(labelled_rows >= first) & (labelled_rows < first + len(tokens))] - first
            parts.append(self._runner.forward(tokens, _spans(group), here.tolist()))
        return torch.cat(parts)

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Sequence[int]]]]:
        """Split a batch that needs more pages than the cache has, with the first token of every part."""
        first, group, num_pages = 0, list[Sequence[int]](), 0
        for ids in texts:
            if group and num_pages + num_pages_for(len(ids)) > self._num_pages:
                yield first, group
                first, group, num_pages = first + sum(map(len, group)), [], 0
            group.append(ids)
            num_pages += num_pages_for(len(ids))
        yield first, group


def _spans(texts: Sequence[Sequence[int]]) -> list[Span]:
    spans: list[Span] = []
    first = 0
    for ids in texts:
        num_pages = num_pages_for(len(ids))
        spans.append(Span(array("i", range(first, first + num_pages)), 0, len(ids)))
        first += num_pages
    return spans


def _join(item: Item, parts: Sequence[TokenLabels]) -> LabelledRow:
    whole = _concatenated(parts)
    ids_T, mask_T = np.asarray(item.ids, np.int32), np.asarray(item.mask, bool)
    return LabelledRow(ids_T, mask_T, whole.top_ids_NK, whole.top_NK, whole.tail_N, whole.chosen_N)


def _concatenated(parts: Sequence[TokenLabels]) -> TokenLabels:
    names = ("top_ids_NK", "top_NK", "tail_N", "chosen_N")
    return TokenLabels(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _part(labels: TokenLabels, part: slice) -> TokenLabels:
    return TokenLabels(labels.top_ids_NK[part], labels.top_NK[part], labels.tail_N[part], labels.chosen_N[part])
