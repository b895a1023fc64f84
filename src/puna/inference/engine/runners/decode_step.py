"""The next token of many sequences -> hidden states, in few shapes: a GPU is told each once and then replays it.

Batches and page tables are padded to powers of two; what pads a batch writes to a page that nobody reads. Longer spans
are torch_runner.py's business; how functions are compiled and recorded is cuda_graphs.py's.

Shapes: B sequences, X what is told of each (token, position, pages), P pages, S positions, H query heads, K key/value
heads, E head width, D model width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners.cuda_graphs import Recorded, compiled, vary
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_pages import TorchPages
from puna.model.attend import attend_singly
from puna.model.llama import Block, Llama
from puna.model.quantization.float8 import multiplies_float8
from puna.model.rope import rope_tables

# What a row of inputs has before its pages: a token and its position.
NUM_FIXED = 2
# The shortest table: 128 positions.
MIN_PAGES = 8
# Positions that the sequences of one forward may have, padded: each layer copies the keys and values of all.
MAX_POSITIONS = 1 << 19


class DecodeStep:
    """Computes steps whose spans have one token each; the last page of `keys` and `values` is nobody's.

    `backend` is torch.compile's (None: nothing is compiled); on a CUDA device each shape is recorded as a graph.
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
            # NOTE: not as a decorator, which imports torch._dynamo: a third of the time that every verb takes to start.
            torch.compiler.assume_constant_result(multiplies_float8)
        # One layer, not all: they share the program, and thirty would take minutes to compile.
        self._advance, self._is_compiled = compiled(_advance, backend) if backend else _advance, bool(backend)
        self.run = Recorded(self._compute, self._device) if self._device.type == "cuda" else self._compute

    def __call__(self, tokens: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Return hidden_BD behind each sequence's token."""
        inputs_BX = self._pad(tokens, spans)
        num_rows, num_told = inputs_BX.shape
        if len(spans) == 1 or num_rows * (num_told - NUM_FIXED) * PAGE_LEN <= MAX_POSITIONS:
            return self.run(inputs_BX)[: len(tokens)]
        # Long ones with long ones, so that short ones need not be padded to them.
        order = sorted(range(len(spans)), key=lambda row: spans[row].start)
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        parts = [self([tokens[row] for row in half], [spans[row] for row in half]) for half in halves]
        hidden_BD = torch.cat(parts)
        return hidden_BD[torch.tensor(order, device=self._device).argsort()]

    def _pad(self, tokens: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Return int32 inputs_BX on the CPU: each row's token, position and pages."""
        num_pages = [span.start // PAGE_LEN + 1 for span in spans]
        shape = (_power_of_two(len(spans)), NUM_FIXED + _power_of_two(max(*num_pages, MIN_PAGES)))
        inputs_BX = np.zeros(shape, np.int32)
        inputs_BX[len(spans) :, NUM_FIXED:] = self._spare_page
        for row, token, span, count in zip(inputs_BX, tokens, spans, num_pages, strict=False):
            pages = np.frombuffer(span.block_table, np.int32, count)
            # NOTE: not the spare page: what stands there may be no number, and a NaN reaches even those who mask it.
            row[0], row[1] = token, span.start
            row[NUM_FIXED : NUM_FIXED + count], row[NUM_FIXED + count :] = pages, pages[0]
        return torch.from_numpy(inputs_BX)

    def _compute(self, inputs_BX: torch.Tensor) -> torch.Tensor:
        """Do as Llama.forward: write the tokens' keys and values, return hidden_BD. Reads no value of the inputs."""
        model, batch = self._model, self._batch(inputs_BX[:, 1].long(), inputs_BX[:, NUM_FIXED:].long())
        x_BD = model.embed_tokens(inputs_BX[:, 0]).to(self._dtype)
        if self._is_compiled:
            batch.vary()
            vary(x_BD, 0)
        for block, keys, values in zip(model.layers, self._keys, self._values, strict=True):
            x_BD = self._advance(block, x_BD, batch, keys, values)  # type: ignore[arg-type]
        return model.norm(x_BD)

    def _batch(self, positions_B: torch.Tensor, pages_BP: torch.Tensor) -> "_Batch":
        page_B = pages_BP.gather(1, positions_B[:, None] // PAGE_LEN)[:, 0]
        slots = torch.arange(PAGE_LEN, device=self._device)
        places_BS = (pages_BP[:, :, None] * PAGE_LEN + slots).flatten(1)
        is_hidden_BS = torch.arange(places_BS.shape[1], device=self._device) > positions_B[:, None]
        mask_BS = torch.zeros(is_hidden_BS.shape, dtype=self._dtype, device=self._device)
        return _Batch(
            rope_tables(positions_B, self._model.frequencies, self._dtype),
            page_B * PAGE_LEN + positions_B % PAGE_LEN,
            places_BS,
            mask_BS.masked_fill(is_hidden_BS, -torch.inf),
        )


class _Batch(NamedTuple):
    """What every layer needs to know of the sequences: where each writes, and which places it sees."""

    rope: tuple[torch.Tensor, torch.Tensor]
    places_B: torch.Tensor
    places_BS: torch.Tensor
    mask_BS: torch.Tensor

    def vary(self) -> None:
        for tensor in (*self.rope, self.places_B):
            vary(tensor, 0)
        for tensor in (self.places_BS, self.mask_BS):
            vary(tensor, 0, 1)


def _advance(block: Block, x_BD: torch.Tensor, batch: _Batch, keys: TorchPages, values: TorchPages) -> torch.Tensor:
    """Take one layer's step with its own keys and values."""

    def attend(_layer: int, q_BHE: torch.Tensor, k_BKE: torch.Tensor, v_BKE: torch.Tensor) -> torch.Tensor:
        keys.write(batch.places_B, k_BKE)
        values.write(batch.places_B, v_BKE)
        return attend_singly(q_BHE, keys.read(batch.places_BS), values.read(batch.places_BS), batch.mask_BS)

    return block(x_BD, batch.rope, 0, attend)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
