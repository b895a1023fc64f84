"""A GGUF file <-> metadata and tensor table; tensor data stays in the memory-mapped file.

Supports versions 2 and 3, little-endian. Every count, length and offset is validated against the file before use.
reader.py interprets the metadata. Source: docs/gguf.md in the ggml repository.
"""

import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.formats.checkpoint.gguf.blocks import KINDS, OTHER_KINDS
from puna.formats.checkpoint.safe_files import find_file
from puna.pipeline.errors import CheckpointError

MAGIC = b"GGUF"
ALIGNMENT = 32  # The format's default, used for written files.
MAX_ALIGNMENT = 2**16
MAX_ENTRIES = 65_536  # Limit of keys and of tensors; Llama 3.1 405B has 1,137 tensors.
MAX_STRINGS = 2_000_000  # Total of all arrays; Llama 3.1 has 128,256 tokens and 280,147 merges.
MAX_TEXT_BYTES = 8 * 2**20  # Total of keys, tensor names and single texts.
MAX_DIMS = 4

# struct codes of value types by number.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALL_KINDS = KINDS | OTHER_KINDS
OTHER_KIND_HINT = "Use a file with supported types, or the model's safetensors"


class KindError(CheckpointError):
    """A tensor has a type that Puna cannot read."""


class GgufTensor(NamedTuple):
    """A tensor's table entry: `shape` with rows first, `offset` in bytes of the file."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Strings:
    """A lazy array of strings in the mapped file, each after an 8-byte length; `ends` are their end offsets."""

    where: str
    data: NDArray[np.uint8] = field(repr=False)
    start: int
    ends: array = field(repr=False)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        start = self.start
        view = self.data.data
        for index, end in enumerate(self.ends):
            try:
                yield str(view[start + 8 : end], "utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{self.where}, text {index}: {error.reason}", expected="UTF-8") from None
            start = end


@dataclass(frozen=True)
class GgufFile:
    """An opened file: the header is validated, weights are not read. Numeric arrays are views of the file.

    NOTE: while the object lives, the file may be replaced by renaming, but not modified or truncated.

    Example: see `read_gguf`.
    """

    path: Path
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, GgufTensor] = field(repr=False)
    alignment: int
    data: NDArray[np.uint8] = field(repr=False)

    def content(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, mapped."""
        tensor = self.tensors[name]
        return self.data[tensor.offset : tensor.offset + tensor.num_bytes]


def is_gguf(path: Path) -> bool:
    """Return whether a file is GGUF by suffix or magic number; CheckpointError for an unreadable file."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", expected="a readable file") from error


def read_gguf(path: str | Path) -> GgufFile:
    """Open a file and validate the header.

    Raises:
        CheckpointError: The file is damaged or unsupported; the error names the key or tensor.

    Example:
        read_gguf("model.gguf").metadata["general.architecture"]  # "llama"
    """
    path = Path(path)
    real_path = find_file(path.parent, path.name)
    if real_path is None:
        raise CheckpointError(f"{path} does not exist", expected="a GGUF file")
    try:
        if real_path.stat().st_size < 24:
            raise CheckpointError(f"{path} has {real_path.stat().st_size} bytes", expected="a whole GGUF file")
        data = np.asarray(np.memmap(real_path, np.uint8, "c"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", expected="a readable file") from error
    header = _Header(path, data)
    _require_version(header)
    num_tensors, num_keys = (header.number("Q", "its counts") for _ in range(2))
    if num_tensors > MAX_ENTRIES or num_keys > MAX_ENTRIES:
        raise header.fail(f"{num_tensors:,} tensors and {num_keys:,} keys", f"at most {MAX_ENTRIES:,} of each")
    metadata = dict(header.entries(num_keys))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment not in [2**power for power in range(3, 17)]:
        raise header.fail(f"general.alignment = {alignment!a:.50}", f"a power of two from 8 to {MAX_ALIGNMENT}")
    rows = dict(header.tensors(num_tensors))
    return GgufFile(path, metadata, _with_file_offsets(header, rows, alignment), alignment, data)


class _Header:
    """A cursor in the mapped file; every read is checked against the file size."""

    def __init__(self, path: Path, data: NDArray[np.uint8]):
        self.path, self.data, self.size = path, data, len(data)
        self.view = data.data
        self.position = 0
        self.strings_left, self.text_left = MAX_STRINGS, MAX_TEXT_BYTES

    def fail(self, given: str, expected: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {given}", expected=expected, hint=hint)

    def take(self, length: int, what: str) -> int:
        """Advance by `length` bytes, and return the start offset."""
        start = self.position
        if length > self.size - start:
            raise self.fail(
                f"{what} claims {length:,} bytes where {self.size - start:,} are left",
                "a whole file",
                hint="It may be cut short; copy it again",
            )
        self.position += length
        return start

    def number(self, code: str, what: str) -> int:
        return struct.unpack_from(f"<{code}", self.view, self.take(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str) -> str:
        length = self.number("Q", what)
        start = self.take(length, what)
        self.text_left -= length
        if self.text_left < 0:
            raise self.fail(f"{what} exceeds the limit of texts", f"at most {MAX_TEXT_BYTES:,} bytes outside arrays")
        try:
            return str(self.view[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is no text ({error.reason})", "UTF-8") from None

    def names(self, kind: str, count: int) -> Iterator[tuple[str, str]]:
        """Yield every name with a description for errors; the caller consumes the entry before the next name."""
        seen: set[str] = set()
        for index in range(count):
            name = self.text(f"the name of {kind} {index}")
            what = f"{kind} {name!a:.100}"
            if name in seen:
                raise self.fail(f"{what} is a duplicate", "distinct names")
            seen.add(name)
            yield name, what

    def entries(self, count: int) -> Iterator[tuple[str, Any]]:
        for key, what in self.names("key", count):
            yield key, self.value(self.number("I", what), what)

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            raise self.fail(f"{what} has type {kind}", "a type from 0 to 12")
        if kind == BOOL:
            number = self.number("B", what)
            if number > 1:
                raise self.fail(f"{what} is a boolean of value {number}", "0 or 1")
            return bool(number)
        number = self.number(SCALARS[kind], what)
        # The shortest decimal of the float32: 1e-05 instead of 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind == FLOAT32 else number

    def array(self, what: str) -> Any:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == STRING:
            return self.strings(count, what)
        if kind not in SCALARS:
            raise self.fail(f"{what} is an array of type {kind}", "texts or numbers")
        dtype = np.dtype(f"<{SCALARS[kind]}")
        start = self.take(count * dtype.itemsize, what)
        return np.frombuffer(self.view, dtype, count, start)

    def strings(self, count: int, what: str) -> Strings:
        self.strings_left -= count
        if count * 8 > self.size - self.position or self.strings_left < 0:
            raise self.fail(
                f"{what} claims {count:,} texts", f"texts inside the file, at most {MAX_STRINGS:,} in total"
            )
        start, position, size, view = self.position, self.position, self.size, self.view
        unpack, last = struct.Struct("<Q").unpack_from, size - 8
        ends = array("q")
        for index in range(count):
            position = position + 8 + unpack(view, position)[0] if position <= last else size + 1
            if position > size:
                raise self.fail(f"{what}, text {index}, leads out of the file", "a whole file")
            ends.append(position)
        self.position = position
        return Strings(f"{self.path}: {what}", self.data, start, ends)

    def tensors(self, count: int) -> Iterator[tuple[str, GgufTensor]]:
        for name, what in self.names("tensor", count):
            yield name, self.tensor(what)

    def tensor(self, what: str) -> GgufTensor:
        """Return a table entry with an offset relative to the data section."""
        num_dims = self.number("I", what)
        if not 1 <= num_dims <= MAX_DIMS:
            raise self.fail(f"{what} has {num_dims:,} dimensions", f"1 to {MAX_DIMS}")
        shape = tuple(self.number("Q", what) for _ in range(num_dims))[::-1]
        number, offset = self.number("I", what), self.number("Q", what)
        kind = next((name for name, known in ALL_KINDS.items() if known.number == number), None)
        if kind is None:
            raise KindError(
                f"{self.path}: {what} is stored as kind {number}",
                expected=f"one of {', '.join(KINDS)}",
                hint=OTHER_KIND_HINT,
            )
        _, block_len, block_bytes, _ = ALL_KINDS[kind]
        num_values = math.prod(shape)
        if not num_values or shape[-1] % block_len:
            expected = f"rows of a multiple of {block_len}" if num_values else "no empty dimension"
            raise self.fail(f"{what}, {kind}, has shape {list(shape)}", expected)
        return GgufTensor(kind, shape, offset, num_values // block_len * block_bytes)


def _require_version(header: _Header) -> None:
    magic = bytes(header.view[header.take(4, "its magic") :][:4])
    if magic != MAGIC:
        raise header.fail(f"it begins with {magic!a}", f"{MAGIC!a}, as every GGUF file")
    version = header.number("I", "its version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        given = f"version {swapped}, big-endian" if 0 < swapped < 2**16 else f"version {version:,}"
        raise header.fail(given, "version 2 or 3, little-endian", "Convert the model anew with a current llama.cpp")


def _with_file_offsets(header: _Header, tensors: Mapping[str, GgufTensor], alignment: int) -> dict[str, GgufTensor]:
    """Return the tensors with offsets in the file; CheckpointError unless tensors are aligned and contiguous."""
    start = position = _align(header.position, alignment)
    end = header.position
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if start + tensor.offset != position:
            raise header.fail(
                f"tensor {name!a:.100} starts at byte {tensor.offset:,} of the data",
                f"{position - start:,}, without gap or overlap",
            )
        end = position + tensor.num_bytes
        if end > header.size:
            raise header.fail(
                f"tensor {name!a:.100} ends at byte {end:,} of {header.size:,}",
                "tensor data inside the file",
                "It may be cut short; copy it again",
            )
        position = _align(end, alignment)
    if header.size > max(end, position):
        raise header.fail(f"{header.size:,} bytes", f"at most the {position:,} that its header describes")
    return {name: tensor._replace(offset=start + tensor.offset) for name, tensor in tensors.items()}


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def padding(num_bytes: int) -> bytes:
    """Return the zeros that align the end of `num_bytes` bytes."""
    return bytes(-num_bytes % ALIGNMENT)


def render_header(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return the bytes before the first tensor.

    Integers are stored as uint32, in arrays as int32; floats as float32.

    Args:
        tensors: (kind, shape) by name, in the order of the data.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), *_render_value(value)]
    offset = 0
    for name, (kind, shape) in tensors.items():
        number, block_len, block_bytes, _ = KINDS[kind]
        parts += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, offset)]
        offset = _align(offset + math.prod(shape) // block_len * block_bytes, ALIGNMENT)
    header = b"".join(parts)
    return header + padding(len(header))


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _render_value(value: Any) -> Iterator[bytes]:
    if isinstance(value, list):
        is_text = bool(value) and isinstance(value[0], str)
        yield struct.pack("<IIQ", ARRAY, STRING if is_text else INT32, len(value))
        yield from map(_text, value) if is_text else [np.array(value, "<i4").tobytes()]
    elif isinstance(value, str):
        yield struct.pack("<I", STRING) + _text(value)
    elif isinstance(value, bool):
        yield struct.pack("<IB", BOOL, value)
    elif isinstance(value, int):
        yield struct.pack("<II", UINT32, value)
    else:
        yield struct.pack("<If", FLOAT32, value)
