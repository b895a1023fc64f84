"""The compiled kernels as Python objects: packed matrices, a network, the pages of a KV cache, and the calls.

Declares the structures of llama.h for ctypes. native_runner.py decides which networks run on the kernels.

Shapes: T tokens, N chosen rows, D model width, H query heads, K key/value heads, E head width, V vocabulary.
"""

import ctypes
import logging
import os
import threading
from array import array
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from puna.model.kernels.build import library
from puna.model.kernels.memory import huge_memory, let_go
from puna.model.kernels.threads import cpu_limit
from puna.pipeline.errors import KernelError

log = logging.getLogger(__name__)

PANEL = 32  # rows per panel
# Bytes to pack before dropping the source pages, so that no weight is in memory twice.
PACKED_AT_ONCE = 2**25
MAX_GROUP = 128
MAX_HEAD_DIM = 256
# Largest number of query heads per key head, and smallest width of matrices.
MAX_SHARED_HEADS = 64
MIN_ROWS = PANEL
BFLOAT16 = 0
INTEGERS = ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class _Matrix(Structure):
    _fields_ = [("data", c_void_p), *((name, c_int32) for name in ("kind", "rows", "cols", "group", "scale_bytes"))]


class _Layer(Structure):
    _fields_ = [
        *((name, _Matrix) for name in MATRICES),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
    ]


class _Network(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("norm", c_void_p),
        ("frequencies", c_void_p),
        ("norm_eps", c_float),
        *((name, c_int32) for name in INTEGERS),
    ]


class _Pages(Structure):
    _fields_ = [
        ("base", c_void_p),
        *((name, c_int64) for name in ("layer_bytes", "page_bytes", "head_bytes")),
        ("head_dim", c_int32),
        ("is_int8", c_int32),
    ]


class _Lora(Structure):
    _fields_ = [("down", c_void_p), ("up", c_void_p), ("rank", c_int32), ("scale", c_float)]


class _Span(Structure):
    _fields_ = [("table", c_void_p), ("adapter", POINTER(_Lora)), ("start", c_int32), ("num_tokens", c_int32)]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shape of a network, with the names of model/config.py."""

    num_layers: int
    dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float


class Span(Protocol):
    """Consecutive tokens of one sequence, as puna.inference.engine.runners.runner.Span; block tables are C integers."""

    @property
    def block_table(self) -> "array[int]": ...

    @property
    def start(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def adapter(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [rows, cols] in the layout of the kernels; `memory` holds the bytes."""

    memory: torch.Tensor
    kind: int
    rows: int
    cols: int
    group: int = 0
    scale_bytes: int = 0

    @property
    def struct(self) -> _Matrix:
        return _Matrix(self.memory.data_ptr(), self.kind, self.rows, self.cols, self.group, self.scale_bytes)


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices and float32 norms of a layer."""

    q: Packed
    k: Packed
    v: Packed
    o: Packed
    gate: Packed
    up: Packed
    down: Packed
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor


class PackedLora:
    """An adapter in the layout of the kernels.

    Args:
        parts: Per layer and matrix of MATRICES the float matrices down_RI and up_OR and the scale, or None.
    """

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor, float] | None]):
        matrices_by_index = [(index, part) for index, part in enumerate(parts) if part is not None]
        packed = [(index, _halves(down), _pack_up(up), scale) for index, (down, up, scale) in matrices_by_index]
        sizes = [-(-matrix.nbytes // 64) * 64 for _, *matrices, _ in packed for matrix in matrices]
        self._memory = huge_memory(sum(sizes))
        pieces = iter(self._memory.split(sizes))
        self.struct = (_Lora * len(parts))()
        for index, down_RI, up, scale in packed:
            self.struct[index] = _Lora(_put(down_RI, next(pieces)), _put(up, next(pieces)), len(down_RI), scale)


class Pages:
    """Memory of the KV cache: `num_pages` pages of `page_len` positions, which the system allocates at first write."""

    def __init__(self, sizes: Sizes, num_pages: int, *, page_len: int, is_int8: bool = False):
        width, padded = sizes.head_dim, -(-sizes.head_dim // 16) * 16
        self.head_bytes = page_len * (width + padded) * (1 if is_int8 else 2) + (8 * page_len if is_int8 else 0)
        self.page_len, self.num_pages, self.page_bytes = page_len, num_pages, sizes.num_kv_heads * self.head_bytes
        shape = (sizes.num_layers, num_pages, self.page_bytes)
        self.memory = huge_memory(sizes.num_layers * num_pages * self.page_bytes).view(shape)
        layer_bytes = num_pages * self.page_bytes
        self.struct = _Pages(self.memory.data_ptr(), layer_bytes, self.page_bytes, self.head_bytes, width, int(is_int8))

    def clear(self, page: int) -> None:
        """Zero a page: a NaN in the page would reach the next sequence, even in masked positions."""
        self.memory[:, page].zero_()


class Kernels:
    """The library with its threads. One call runs at a time, also with several Python threads.

    Example:
        >>> kernels = shared_kernels()
        >>> y_TO = kernels.linear(kernels.pack(words, scales, bits=8, cols=64), x_TI)
    """

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        self._library = ctypes.CDLL(str(library()))
        self._library.puna_open.restype = c_void_p
        self._library.puna_instructions.restype = c_char_p
        self._library.puna_packed_bytes.restype = c_int64
        self.page_len: int = self._library.puna_page_len()
        self._machine = c_void_p(self._library.puna_open(num_threads))
        self._lock = threading.Lock()

    @property
    def instructions(self) -> str:
        """Return the name of the instruction set in use."""
        return self._library.puna_instructions().decode()

    def close(self) -> None:
        """Stop the threads."""
        self._call("puna_close")

    def pack(self, words: torch.Tensor, scales: torch.Tensor, *, bits: int, cols: int) -> Packed:
        """Pack a weight into the layout of the kernels.

        Args:
            words: int32 [rows, ceil(cols * bits / 32)] with values + 2^(bits - 1), the first in the lowest bits. Pages
                of mapped files are dropped on the way.
            scales: [rows, groups] as float32 or bfloat16.

        Raises:
            KernelError: `cols` has no division into groups of a multiple of 8.
        """
        rows, num_scales = scales.shape
        assert words.dtype == torch.int32 and words.shape == (rows, -(-cols * bits // 32))
        group = packed_group(cols, cols // num_scales)
        if group is None:
            raise KernelError(f"{cols} inputs in {num_scales} groups", expected="groups of a multiple of 8 inputs")
        words, scales, scale_bytes = words.contiguous(), scales.contiguous(), scales.element_size()
        panel_bytes = self._library.puna_packed_bytes(
            ctypes.byref(Packed(words, bits, PANEL, cols, group, scale_bytes).struct)
        )
        memory = huge_memory(-(-rows // PANEL) * panel_bytes)
        step = max(1, PACKED_AT_ONCE // (PANEL * words[:1].nbytes)) * PANEL
        for row in range(0, rows, step):
            some = slice(row, row + step)
            at = memory[row // PANEL * panel_bytes :]
            self._pack_rows(words[some], scales[some], Packed(at, bits, len(words[some]), cols, group, scale_bytes))
            let_go(words[some])
        return Packed(memory, bits, rows, cols, group, scale_bytes)

    def _pack_rows(self, words: torch.Tensor, scales: torch.Tensor, packed: Packed) -> None:
        self._call(
            "puna_pack",
            packed.struct,
            c_void_p(words.data_ptr()),
            c_int64(words[:1].nbytes),
            c_void_p(scales.data_ptr()),
            c_int32(scales.shape[1]),
            c_void_p(packed.memory.data_ptr()),
        )

    def linear(self, weight: Packed, x_TD: torch.Tensor) -> torch.Tensor:
        """Return float32 x W^T, with x rounded to int8 per group (or to bfloat16)."""
        x_TD = x_TD.float().contiguous()
        out = torch.empty(x_TD.shape[0], weight.rows)
        self._call("puna_linear", weight.struct, _data(x_TD), c_int32(x_TD.shape[0]), _data(out))
        return out

    def attend(
        self,
        network: "Network",
        pages: Pages,
        spans: Sequence[Span],
        q_THE: torch.Tensor,
        k_TKE: torch.Tensor,
        v_TKE: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate float32 queries and keys, write keys and values to the pages of layer 0, attend: float32 [T, H, E]."""
        out = torch.empty_like(q_THE)
        tensors = [_data(x) for x in (q_THE, k_TKE, v_TKE, out)]
        self._call("puna_attend", network.struct, pages.struct, _spans(spans), c_int32(len(spans)), *tensors)
        return out

    def forward(
        self, network: "Network", pages: Pages, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]
    ) -> torch.Tensor:
        """Run the concatenated tokens of the spans; return float32 hidden_ND of `rows` after the final norm.

        Writes keys and values; block tables must hold the pages up to the last token of a span.
        """
        assert len(tokens) == sum(span.num_tokens for span in spans)
        assert pages.page_len == self.page_len, "pages of another length than the kernels are compiled for"
        assert all(len(span.block_table) * self.page_len >= span.start + span.num_tokens for span in spans)
        hidden_ND = torch.empty(len(rows), network.sizes.dim)
        self._call(
            "puna_forward",
            network.struct,
            pages.struct,
            (c_int32 * len(tokens))(*tokens),
            _spans(spans),
            c_int32(len(spans)),
            (c_int32 * len(rows))(*rows),
            c_int32(len(rows)),
            _data(hidden_ND),
        )
        return hidden_ND

    def logits(self, network: "Network", hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        return self.linear(network.head, hidden_ND)

    def _call(self, name: str, *arguments: object) -> None:
        passed = (ctypes.byref(each) if isinstance(each, Structure) else each for each in arguments)
        with self._lock:
            getattr(self._library, name)(self._machine, *passed)


class Network:
    """A network's weights in the structures of the kernels; `embedding` and `head` may be the same matrix."""

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[Layer],
        *,
        embedding: Packed,
        head: Packed,
        norm: torch.Tensor,
        frequencies: torch.Tensor,
    ):
        self.sizes, self.head = sizes, head
        self._held = (tuple(layers), embedding, norm, frequencies)
        structs = (_Layer * len(layers))()
        for struct, layer in zip(structs, layers, strict=True):
            for name in MATRICES:
                setattr(struct, name, getattr(layer, name).struct)
            struct.attention_norm, struct.mlp_norm = _address(layer.attention_norm), _address(layer.mlp_norm)
        self.struct = _Network(
            structs,
            embedding.struct,
            head.struct,
            _address(norm),
            _address(frequencies),
            sizes.norm_eps,
            *(getattr(sizes, name) for name in INTEGERS),
        )


def unpacked(weight: torch.Tensor) -> Packed:
    """Return a bfloat16 weight in its own memory, without packing."""
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous()
    return Packed(weight, BFLOAT16, *weight.shape)


def _pack_up(up_OR: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 [panels, pairs, PANEL, 2] of outputs and ranks, padded with zeros."""
    rows, rank = up_OR.shape
    padded = torch.nn.functional.pad(_halves(up_OR), (0, rank % 2, 0, -rows % PANEL))
    return padded.view(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def _put(matrix: torch.Tensor, memory: torch.Tensor) -> int:
    """Copy a matrix to the beginning of a memory block; return the address."""
    memory[: matrix.nbytes].view(matrix.dtype).view(matrix.shape).copy_(matrix)
    return memory.data_ptr()


def _halves(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to(torch.bfloat16).contiguous()


def packed_group(cols: int, scale_group: int) -> int | None:
    """Return the number of inputs rounded together, a multiple of 8 up to MAX_GROUP; None if no number fits."""
    sizes = (size for size in range(min(scale_group, MAX_GROUP), 0, -1) if scale_group % size == 0 and size % 8 == 0)
    return next(sizes, None) if cols % scale_group == 0 else None


def shared_kernels() -> Kernels | None:
    """Return the kernels of the process; None, with one line in the log, where compiling fails."""
    # NOTE: a forked process does not inherit the threads.
    return _open(os.getpid())


@cache
def _open(_process: int) -> Kernels | None:
    try:
        kernels = Kernels(cpu_limit())
    except (KernelError, OSError) as error:
        log.warning("the compiled kernels are missing; torch computes instead, more slowly: %s", error)
        return None
    log.info("kernels: %s, %d threads", kernels.instructions, kernels.num_threads)
    return kernels


def _spans(spans: Sequence[Span]) -> ctypes.Array[_Span]:
    structs = (_Span * len(spans))()
    for struct, span in zip(structs, spans, strict=True):
        struct.table, struct.start, struct.num_tokens = span.block_table.buffer_info()[0], span.start, span.num_tokens
        if span.adapter is not None:
            assert isinstance(span.adapter, PackedLora)
            struct.adapter = span.adapter.struct
    return structs


def _address(vector: torch.Tensor) -> int:
    assert vector.dtype == torch.float32 and vector.is_contiguous()
    return vector.data_ptr()


def _data(tensor: torch.Tensor) -> c_void_p:
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    return c_void_p(tensor.data_ptr())
