"""TorchRunner: forward passes of model/llama.py on any device; native_runner.py is faster on a CPU.

Shapes: T tokens, N requested hidden states, B sequences, S positions, K key/value heads, E head width, D model width, V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners.decode_step import DecodeStep
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_pages import TorchPages
from puna.model.adapters.lora import Lora, LowRank
from puna.model.attend import attend_behind_prefix, attend_causally, attend_singly
from puna.model.llama import Llama


class TorchRunner:
    """The model in `dtype`, on the device of the weights.

    On CUDA, decode steps without adapters go through DecodeStep, which saves the launch time of single kernels.

    Example:
        >>> runner = TorchRunner(model, num_pages=64, dtype=torch.float32)
    """

    def __init__(self, model: Llama, *, num_pages: int, dtype: torch.dtype, is_int8_cache: bool = False):
        self.config, self._model, self.dtype = model.config, model, dtype
        self._device = model.device
        # One spare page for the padding of DecodeStep.
        self._keys, self._values = (
            [
                TorchPages(self.config, num_pages + 1, dtype=dtype, device=self._device, is_int8=is_int8_cache)
                for _ in range(self.config.num_layers)
            ]
            for _ in range(2)
        )
        self.decode_step: DecodeStep | None = None
        if self._device.type == "cuda":
            self.decode_step = DecodeStep(model, self._keys, self._values, dtype=dtype, backend="inductor")

    def prepare(self, lora: Lora) -> Lora:
        """Move an adapter to the device and dtype of the model."""

        def moved(matrix: torch.Tensor) -> torch.Tensor:
            return matrix.to(self._device, self.dtype)

        return {path: LowRank(moved(part.down_RI), moved(part.up_OR), part.scale) for path, part in lora.items()}

    def forward(self, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]) -> torch.Tensor:
        """See `Runner.forward`."""
        if self.decode_step and all(span.num_tokens == 1 and span.adapter is None for span in spans):
            hidden_TD = self.decode_step(tokens, spans)
        else:
            hidden_TD = self._run(tokens, spans)
        if len(rows) == len(tokens):
            return hidden_TD
        return hidden_TD[torch.tensor(rows, dtype=torch.long, device=self._device)]

    def _run(self, tokens: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Return hidden_TD of all tokens."""
        ranges = [range(span.start, span.start + span.num_tokens) for span in spans]
        positions = [position for each in ranges for position in each]
        slots = [_at(span.block_table, position) for span, each in zip(spans, ranges, strict=True) for position in each]
        with _adapting(self._model, spans):
            return self._model(
                torch.tensor(tokens, device=self._device),
                torch.tensor(positions, device=self._device),
                _PagedAttention(self._keys, self._values, spans, slots),
                dtype=self.dtype,
            )

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        return self._model.logits(hidden_ND)

    def clear(self, page: int) -> None:
        """Zero a page."""
        for pages in (*self._keys, *self._values):
            pages.clear(page)


@contextmanager
def _adapting(model: Llama, spans: Sequence[Span]) -> Iterator[None]:
    """Add the LoRA products of the spans' adapters to the outputs of linear layers."""
    ends = accumulate(span.num_tokens for span in spans)
    adapted = [
        (slice(end - span.num_tokens, end), span.adapter)
        for end, span in zip(ends, spans, strict=True)
        if isinstance(span.adapter, dict)
    ]

    def add(path: str, _module: nn.Module, x: tuple[torch.Tensor], out_TO: torch.Tensor) -> None:
        for rows, lora in adapted:
            if path in lora:
                out_TO[rows] += lora[path].product(x[0][rows])

    paths = {path for _, lora in adapted for path in lora}
    hooks = [model.get_submodule(path).register_forward_hook(partial(add, path)) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _PagedAttention:
    """Paged attention: single-token spans in one padded batch, longer spans one by one."""

    def __init__(self, keys: list[TorchPages], values: list[TorchPages], spans: Sequence[Span], slots: Sequence[int]):
        self._keys, self._values = keys, values
        device = keys[0].device
        self._slots_T = torch.tensor(slots, device=device)
        starts = [0, *accumulate(span.num_tokens for span in spans)]
        singles = [index for index, span in enumerate(spans) if span.num_tokens == 1]
        self._longer = [
            (starts[index], span, _slots(span, device)) for index, span in enumerate(spans) if span.num_tokens > 1
        ]
        self._single_rows_B = torch.tensor([starts[index] for index in singles], device=device)
        if singles:
            lengths_B = torch.tensor([spans[index].start + 1 for index in singles], device=device)
            longest = int(lengths_B.max())
            # Padding repeats the first page of a block table; the mask hides padded positions.
            num_pages = -(-longest // PAGE_LEN)
            tables = [list(spans[index].block_table[:num_pages]) for index in singles]
            pages_BP = torch.tensor([pages + pages[:1] * (num_pages - len(pages)) for pages in tables], device=device)
            slots_BPS = pages_BP[:, :, None] * PAGE_LEN + torch.arange(PAGE_LEN, device=device)
            self._single_slots_BS = slots_BPS.flatten(1)[:, :longest]
            hidden_BS = torch.arange(longest, device=device) >= lengths_B[:, None]
            mask_BS = torch.zeros(hidden_BS.shape, dtype=keys[0].dtype, device=device)
            self._mask_BS = mask_BS.masked_fill(hidden_BS, float("-inf"))

    def __call__(self, layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
        keys, values = self._keys[layer], self._values[layer]
        k_TKE, v_TKE = keys.write(self._slots_T, k_TKE), values.write(self._slots_T, v_TKE)
        out_THE = torch.empty_like(q_THE)
        for row, span, slots in self._longer:
            rows = slice(row, row + span.num_tokens)
            if span.start == 0:
                out_THE[rows] = attend_causally(q_THE[rows], k_TKE[rows], v_TKE[rows])
            else:
                k_KSE, v_KSE = keys.read(slots).transpose(0, 1), values.read(slots).transpose(0, 1)
                out_THE[rows] = attend_behind_prefix(q_THE[rows], k_KSE, v_KSE)
        if len(self._single_rows_B):
            k_BSKE, v_BSKE = (pages.read(self._single_slots_BS) for pages in (keys, values))
            q_BHE = q_THE[self._single_rows_B]
            out_THE[self._single_rows_B] = attend_singly(q_BHE, k_BSKE, v_BSKE, self._mask_BS)
        return out_THE


def _at(table: Sequence[int], position: int) -> int:
    return table[position // PAGE_LEN] * PAGE_LEN + position % PAGE_LEN


def _slots(span: Span, device: torch.device) -> torch.Tensor | slice:
    """Return the slots of a sequence's positions: a slice without copies where pages are contiguous, else a tensor."""
    end = span.start + span.num_tokens
    pages = span.block_table[: -(-end // PAGE_LEN)]
    if all(page == pages[0] + index for index, page in enumerate(pages)):
        return slice(pages[0] * PAGE_LEN, pages[0] * PAGE_LEN + end)
    return torch.tensor([_at(pages, position) for position in range(end)], device=device)
