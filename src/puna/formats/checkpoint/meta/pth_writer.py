"""Names and shapes, then tensors in sequence -> a .pth file in the layout of torch.save, which torch.load can map.

Writes the opcodes of a plain state dict directly, without a pickler.
"""

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

ALIGNMENT = 64
STORAGES = {torch.float32: "FloatStorage", torch.float16: "HalfStorage", torch.bfloat16: "BFloat16Storage"}
LOCAL_HEADER_BYTES = 30
ZIP64_BYTES = 20  # zipfile's ZIP64 part of an entry's extra field.
PADDING_ID = 0x4246  # "FB", PyTorch's mark of padding.
EARLIEST = (1980, 1, 1, 0, 0, 0)  # A fixed time: equal weights give equal files.

PROTOCOL = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
MARK, TUPLE, PERSISTENT, FALSE, REDUCE, SET_ITEMS, STOP = b"(", b"t", b"Q", b"\x89", b"R", b"u", b"."


class Stored(NamedTuple):
    """A contiguous tensor in the storage `key`; several names may share a storage."""

    key: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class PthWriter:
    """An open .pth file; call `write` with the storages in the order of their keys."""

    def __init__(self, path: Path, tensors: Mapping[str, Stored]):
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._folder = path.stem
        self._storages = dict(sorted((stored.key, stored) for stored in tensors.values()))
        self._next = iter(self._storages.values())
        self._write_entry("data.pkl", state_dict_opcodes(tensors))
        self._write_entry("byteorder", b"little")

    def write(self, tensor: torch.Tensor) -> None:
        """Write the next storage; non-contiguous tensors are copied."""
        stored = next(self._next)
        assert tensor.dtype == stored.dtype and tuple(tensor.shape) == stored.shape, stored
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        self._write_entry(f"data/{stored.key}", content)

    def _write_entry(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self._folder}/{name}", EARLIEST)
        start = self._archive.start_dir + LOCAL_HEADER_BYTES + len(info.filename) + ZIP64_BYTES
        info.extra = struct.pack("<HH", PADDING_ID, -(start + 4) % ALIGNMENT) + bytes(-(start + 4) % ALIGNMENT)
        with self._archive.open(info, "w", force_zip64=True) as entry:
            entry.write(content)

    def __enter__(self) -> "PthWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            assert next(self._next, None) is None, "a storage was not written"
            self._write_entry("version", b"3\n")
        self._archive.close()


def state_dict_opcodes(tensors: Mapping[str, Stored]) -> bytes:
    """Return data.pkl in pickle protocol 2, with opcodes allowed by torch.load(weights_only=True)."""
    items = b"".join(_text(name) + _tensor(stored) for name, stored in tensors.items())
    return PROTOCOL + ORDERED_DICT + MARK + items + SET_ITEMS + STOP


def _tensor(stored: Stored) -> bytes:
    storage = f"ctorch\n{STORAGES[stored.dtype]}\n".encode()
    persistent_id = (_text("storage"), storage, _text(str(stored.key)), _text("cpu"), _integer(math.prod(stored.shape)))
    stride = [math.prod(stored.shape[axis + 1 :]) for axis in range(len(stored.shape))]
    sizes = (_integer(0), _counts(stored.shape), _counts(stride))
    return b"".join(
        (REBUILD, MARK, MARK, *persistent_id, TUPLE, PERSISTENT, *sizes, FALSE, ORDERED_DICT, TUPLE, REDUCE)
    )


def _counts(values: tuple[int, ...] | list[int]) -> bytes:
    return MARK + b"".join(map(_integer, values)) + TUPLE


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded
