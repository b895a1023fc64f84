"""Decode steps on a GPU: one token of every sequence -> hidden states, with one CUDA graph per padded shape.

Batches and block tables are padded to powers of two; padding rows write to a spare page. Longer spans run in
torch_runner.py; cuda_graphs.py compiles and records.

Shapes: B sequences, X input columns (token, position, pages), P pages, S positions, H query heads, K key/value heads, E
head width, D model width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners.cuda_graphs import CudaGraphs, compiled, mark_dynamic
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_pages import TorchPages
from puna.model.attend import attend_singly
from puna.model.llama import Block, Llama
from puna.model.quantization.float8 import multiplies_float8
from puna.model.rope import rope_tables

# Input columns before the pages: token and position.
NUM_FIXED = 2
# Smallest padded block table: 128 positions.
MIN_PAGES = 8
# Largest number of padded positions of a step: every layer gathers the keys and values of all positions.
MAX_POSITIONS = 1 << 19


class DecodeStep:
    """Forward passes with one token per span; the last page of `keys` and `values` is the spare page.

    `backend` is a backend of torch.compile, or None for no compilation. On CUDA every shape becomes a graph.

    Example: `TorchRunner.decode_step`.
    """

    def __init__(
        self,
        model: Llama,
        keys: list[TorchPages],
        values: list[TorchPages],
        *,
        dtype: torch.dtype,
        backend: str | None = None,
    ):
        self._model, self._keys, self._values, self._dtype = model, keys, values, dtype
        self._device, self._spare_page = model.device, keys[0].num_pages - 1
        if backend:
            # NOTE: no decorator, since the import of torch._dynamo takes a third of every verb's start-up time.
            torch.compiler.assume_constant_result(multiplies_float8)
        # One layer is compiled for all: thirty layers would take minutes.
        self._advance, self._is_compiled = compiled(_advance, backend) if backend else _advance, bool(backend)
        self.run = CudaGraphs(self._compute, self._device) if self._device.type == "cuda" else self._compute

    def __call__(self, tokens: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Return hidden_BD after the token of every sequence."""
        inputs_BX = self._pad(tokens, spans)
        num_rows, num_columns = inputs_BX.shape
        if len(spans) == 1 or num_rows * (num_columns - NUM_FIXED) * PAGE_LEN <= MAX_POSITIONS:
            return self.run(inputs_BX)[: len(tokens)]
        # Split by length, so that short sequences are not padded to long ones.
        order = sorted(range(len(spans)), key=lambda row: spans[row].start)
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        parts = [self([tokens[row] for row in half], [spans[row] for row in half]) for half in halves]
        hidden_BD = torch.cat(parts)
        return hidden_BD[torch.tensor(order, device=self._device).argsort()]

    def _pad(self, tokens: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Return int32 inputs_BX on the CPU, with token, position and pages in every row."""
        num_pages = [span.start // PAGE_LEN + 1 for span in spans]
        shape = (_power_of_two(len(spans)), NUM_FIXED + _power_of_two(max(*num_pages, MIN_PAGES)))
        inputs_BX = np.zeros(shape, np.int32)
        inputs_BX[len(spans) :, NUM_FIXED:] = self._spare_page
        for row, token, span, count in zip(inputs_BX, tokens, spans, num_pages, strict=False):
            pages = np.frombuffer(span.block_table, np.int32, count)
            # NOTE: never pad with the spare page, which may hold NaN: a NaN passes masked attention.
            row[0], row[1] = token, span.start
            row[NUM_FIXED : NUM_FIXED + count], row[NUM_FIXED + count :] = pages, pages[0]
        return torch.from_numpy(inputs_BX)

    def _compute(self, inputs_BX: torch.Tensor) -> torch.Tensor:
        """Compute as Llama.forward, without reading values of the inputs on the CPU; return hidden_BD."""
        model, batch = self._model, self._batch(inputs_BX[:, 1].long(), inputs_BX[:, NUM_FIXED:].long())
        x_BD = model.embed_tokens(inputs_BX[:, 0]).to(self._dtype)
        if self._is_compiled:
            batch.mark_dynamic()
            mark_dynamic(x_BD, 0)
        for block, keys, values in zip(model.layers, self._keys, self._values, strict=True):
            x_BD = self._advance(block, x_BD, batch, keys, values)  # type: ignore[arg-type]
        return model.norm(x_BD)

    def _batch(self, positions_B: torch.Tensor, pages_BP: torch.Tensor) -> "_Batch":
        page_B = pages_BP.gather(1, positions_B[:, None] // PAGE_LEN)[:, 0]
        offsets = torch.arange(PAGE_LEN, device=self._device)
        slots_BS = (pages_BP[:, :, None] * PAGE_LEN + offsets).flatten(1)
        is_hidden_BS = torch.arange(slots_BS.shape[1], device=self._device) > positions_B[:, None]
        mask_BS = torch.zeros(is_hidden_BS.shape, dtype=self._dtype, device=self._device)
        return _Batch(
            rope_tables(positions_B, self._model.frequencies, self._dtype),
            page_B * PAGE_LEN + positions_B % PAGE_LEN,
            slots_BS,
            mask_BS.masked_fill(is_hidden_BS, -torch.inf),
        )


class _Batch(NamedTuple):
    """Inputs of every layer: rotary tables, slots to write, slots to read, and the attention mask."""

    rope: tuple[torch.Tensor, torch.Tensor]
    slots_B: torch.Tensor
    slots_BS: torch.Tensor
    mask_BS: torch.Tensor

    def mark_dynamic(self) -> None:
        for tensor in (*self.rope, self.slots_B):
            mark_dynamic(tensor, 0)
        for tensor in (self.slots_BS, self.mask_BS):
            mark_dynamic(tensor, 0, 1)


def _advance(block: Block, x_BD: torch.Tensor, batch: _Batch, keys: TorchPages, values: TorchPages) -> torch.Tensor:
    """Compute one layer with the layer's own keys and values."""

    def attend(_layer: int, q_BHE: torch.Tensor, k_BKE: torch.Tensor, v_BKE: torch.Tensor) -> torch.Tensor:
        keys.write(batch.slots_B, k_BKE)
        values.write(batch.slots_B, v_BKE)
        return attend_singly(q_BHE, keys.read(batch.slots_BS), values.read(batch.slots_BS), batch.mask_BS)

    return block(x_BD, batch.rope, 0, attend)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
