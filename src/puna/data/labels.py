"""LabelStore: a teacher's top-k log-probabilities of every trained token, for distillation from stored logits.

A shard is one memory-mapped safetensors file of many rows. A row holds token ids and the loss mask. A label holds, for
one trained token, the ids of the `top_k` most likely tokens (bit-packed: 17 bits per id for Llama's vocabulary), their
log-probabilities, the log of the remaining mass, and the log-probability of the token itself, in float16. At k = 64 a
label takes 273 bytes. labels.json describes teacher, tokenizer and settings. `puna label` computes the labels.

Shapes: T tokens of a row, N labels of a row, K entries of a label, P packed bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import DataError
from puna.pipeline.storage.records import read_record

HEADER = "labels.json"
FORMAT = 1
# `unpack_ids` reads four bytes per id: up to 7 bits of the previous id, and the id.
MAX_BITS = 25


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """The tokens of one row, and a label for every token after the first with a true mask, in order.

    Attributes:
        top_NK: Log-probabilities in descending order; -inf pads labels with fewer than K entries, beside a repeated id.
        tail_N: Log of the total probability of all tokens outside the top k.
        chosen_N: Log-probability of the token itself.
    """

    ids_T: np.ndarray
    mask_T: np.ndarray
    top_ids_NK: np.ndarray
    top_NK: np.ndarray
    tail_N: np.ndarray
    chosen_N: np.ndarray

    def columns(self) -> dict[str, torch.Tensor]:
        """Return the labels as columns of an `Example`: one row per token, zeros for tokens without a label."""
        labelled_N = np.flatnonzero(self.mask_T[1:]) + 1
        labels = {"top_ids": self.top_ids_NK, "top": self.top_NK, "tail": self.tail_N, "chosen": self.chosen_N}
        columns: dict[str, torch.Tensor] = {}
        for name, values in labels.items():
            rows = np.zeros((len(self.ids_T), *values.shape[1:]), values.dtype)
            rows[labelled_N] = values
            columns[name] = torch.from_numpy(rows)
        return columns


@dataclass(frozen=True)
class LabelHeader:
    """The contents of labels.json: teacher, tokenizer, settings and counts.

    Attributes:
        every_token: Whether all tokens are labelled, not the assistant's alone.
        measured: Means over all labels, by name.
    """

    teacher: str
    tokenizer: str
    vocab_size: int
    top_k: int
    temperature: float
    every_token: bool
    num_rows: int
    num_tokens: int
    num_labels: int
    measured: Mapping[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, directory: Path) -> None:
        artifact.write_text(directory / HEADER, json.dumps(asdict(self), indent=2) + "\n")


def read_header(directory: Path) -> LabelHeader:
    """Read labels.json; DataError for a missing file or an unknown format version."""
    path = directory / HEADER
    try:
        header = read_record(path, LabelHeader, expected="a header written by `puna label`", error=DataError)
    except FileNotFoundError:
        raise DataError(
            f"{directory} has no {HEADER}", expected="a directory of labels", hint="`puna label` writes labels"
        ) from None
    if header.format != FORMAT:
        raise DataError(f"{path} has format {header.format}", expected=f"format {FORMAT}")
    return header


def find_labels(path: Path) -> list[Path]:
    """List the label shards of a directory, or `path` itself for a single label shard."""
    if path.is_dir():
        return sorted(path.glob("labels-*.safetensors"))
    return [path] if path.name.startswith("labels-") and path.suffix == ".safetensors" else []


def write_shard(path: Path, rows: Sequence[LabelledRow], *, vocab_size: int) -> None:
    """Write a shard of at least one row atomically."""
    lengths = [len(row.ids_T) for row in rows]
    counts = [len(row.tail_N) for row in rows]
    arrays = {
        "ids": np.concatenate([row.ids_T for row in rows]).astype(np.int32),
        "mask": np.concatenate([row.mask_T for row in rows]).astype(np.uint8),
        "token_starts": np.cumsum([0, *lengths], dtype=np.int64),
        "label_starts": np.cumsum([0, *counts], dtype=np.int64),
        "top_ids": pack_ids(np.concatenate([row.top_ids_NK for row in rows]), num_bits(vocab_size)),
    }
    for name in ("top", "tail", "chosen"):
        parts = [getattr(row, f"{name}_NK" if name == "top" else f"{name}_N") for row in rows]
        arrays[name] = np.concatenate(parts).astype(np.float16)
    contents = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(save(contents, {"bits": str(num_bits(vocab_size))}))
    artifact.fsync(temporary)
    temporary.replace(path)


class LabelRows(Sequence[LabelledRow]):
    """The labelled rows of one memory-mapped shard."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
            shapes = {name: self._file.get_slice(name).get_shape() for name in self._file.keys()}  # noqa: SIM118
            self._bits = int((self._file.metadata() or {})["bits"])
            self._token_starts, self._label_starts = (
                self._file.get_tensor(name).tolist() for name in ("token_starts", "label_starts")
            )
            self.top_k = int(shapes["top"][1])
        except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
            raise DataError(f"{path} cannot be read ({error})", expected="labels written by `puna label`") from None
        self._check(shapes)

    def _check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        tokens, labels = self._token_starts, self._label_starts
        width = -(-self.top_k * self._bits // 8)
        sizes = {
            "ids": tokens[-1:],
            "mask": tokens[-1:],
            "top_ids": [labels[-1], width],
            "top": [labels[-1], self.top_k],
        }
        sizes |= dict.fromkeys(("tail", "chosen"), labels[-1:])
        fits = (
            all(list(shapes.get(name, ())) == size for name, size in sizes.items())
            and len(tokens) == len(labels)
            and tokens[0] == labels[0] == 0
            and all(np.diff(tokens) > 0)
            and all(np.diff(labels) >= 0)
            and 0 < self._bits <= MAX_BITS
        )
        if not fits:
            raise DataError(f"{self.path} holds labels of inconsistent sizes", hint="Run `puna label` again")

    def __len__(self) -> int:
        return len(self._token_starts) - 1

    @overload
    def __getitem__(self, index: int) -> LabelledRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[LabelledRow]: ...
    def __getitem__(self, index: int | slice) -> LabelledRow | list[LabelledRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        tokens = slice(self._token_starts[row], self._token_starts[row + 1])
        labels = slice(self._label_starts[row], self._label_starts[row + 1])
        packed_NP = self._read("top_ids", labels)
        return LabelledRow(
            self._read("ids", tokens),
            self._read("mask", tokens).astype(bool),
            unpack_ids(packed_NP, self._bits, self.top_k),
            self._read("top", labels),
            self._read("tail", labels),
            self._read("chosen", labels),
        )

    def _read(self, name: str, part: slice) -> Any:
        return self._file.get_slice(name)[part]


def num_bits(vocab_size: int) -> int:
    """Return the number of bits of a packed token id."""
    return max(1, (vocab_size - 1).bit_length())


def pack_ids(ids_NK: np.ndarray, bits: int) -> np.ndarray:
    """Pack ids of `bits` bits, most significant bit first; every label starts at a byte boundary."""
    assert bits <= MAX_BITS, "an id lies in four bytes"
    bits_NK32 = np.unpackbits(
        np.ascontiguousarray(ids_NK).astype(">u4").view(np.uint8).reshape(*ids_NK.shape, 4), axis=-1
    )
    return np.packbits(bits_NK32[..., 32 - bits :].reshape(len(ids_NK), -1), axis=-1)


def unpack_ids(packed_NP: np.ndarray, bits: int, top_k: int) -> np.ndarray:
    """Invert `pack_ids`: read four bytes from the first byte of every id, then shift and mask."""
    places_K = np.arange(top_k) * bits
    first_K, before_K = places_K // 8, places_K % 8
    padded_NP = np.pad(packed_NP, ((0, 0), (0, 3)))
    words_NK = np.zeros((len(packed_NP), top_k), np.uint32)
    for byte in range(4):
        words_NK = (words_NK << np.uint32(8)) | padded_NP[:, first_K + byte]
    shifts_K = (32 - bits - before_K).astype(np.uint32)
    return ((words_NK >> shifts_K) & np.uint32((1 << bits) - 1)).astype(np.int32)
