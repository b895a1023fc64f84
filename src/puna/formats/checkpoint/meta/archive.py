"""A .pth file of torch.save -> dtype, shape, stride and byte offset of every tensor.

Reads the zip directory and data.pkl, but no weights. Runs in the confined child process. Nothing is unpacked, and entry
names are never used as paths.
"""

import os
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

from puna.formats.checkpoint.meta.pickled import ITEM_BYTES, View, read_state_dict
from puna.pipeline.errors import CheckpointError

MAX_PICKLE_BYTES = 64 * 2**20
MAX_DIRECTORY_BYTES = 2 * 2**20  # About 100 bytes per entry; Llama 3.1 405B has 1,137 tensors.
LOCAL_HEADER = struct.Struct("<4s22x2H")  # Signature, and after sizes and times the lengths of name and extra field.
PICKLE_NAME = "data.pkl"
LITTLE = b"little"
# Exceptions of zipfile for a damaged directory.
DAMAGE = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, OSError, struct.error)


class Entry(NamedTuple):
    """The byte range of an archive entry in the file."""

    start: int
    num_bytes: int


class Bounded(NamedTuple):
    """A file with a size limit on reads: zipfile reads the whole directory at once, and needs ten times the memory."""

    file: BinaryIO

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"the archive's directory has {size:,} bytes", expected=f"at most {MAX_DIRECTORY_BYTES:,}"
            )
        return self.file.read(size)


def read_table(file: BinaryIO) -> dict[str, dict[str, Any]]:
    """Return {name: {dtype, shape, stride, start}} of an open file; CheckpointError unless the file is a state dict."""
    entries = read_entries(file)
    folder = _folder(entries)
    order = entries.get(f"{folder}/byteorder")
    if order and (order.num_bytes != len(LITTLE) or _read(file, order) != LITTLE):
        raise CheckpointError("the numbers are big-endian", expected="little-endian numbers")
    pickled = entries[f"{folder}/{PICKLE_NAME}"]
    if pickled.num_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{PICKLE_NAME} has {pickled.num_bytes:,} bytes", expected=f"at most {MAX_PICKLE_BYTES:,}"
        )
    views = read_state_dict(_read(file, pickled))
    return {
        name: _table_entry(name, view, entries.get(f"{folder}/data/{view.storage.key}")) for name, view in views.items()
    }


def _table_entry(name: str, view: View, entry: Entry | None) -> dict[str, Any]:
    num_bytes = entry.num_bytes if entry else 0
    if entry is None or num_bytes != view.storage.num_bytes:
        raise CheckpointError(
            f"{name!a}: storage {view.storage.key!a} has {num_bytes:,} bytes", expected=f"{view.storage.num_bytes:,}"
        )
    start = entry.start + view.offset * ITEM_BYTES[view.dtype]
    return {"dtype": view.dtype, "shape": view.shape, "stride": view.stride, "start": start}


def read_entries(file: BinaryIO) -> dict[str, Entry]:
    """Return the entries of the archive: uncompressed, without overlaps, and inside the file."""
    _require_zip(file)
    try:
        with zipfile.ZipFile(Bounded(file)) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        entries: dict[str, Entry] = {}
        end = 0
        for info in infos:
            if info.header_offset < end or info.filename in entries:
                raise CheckpointError(
                    f"entry {info.filename!a} overlaps or repeats another", expected="distinct entries without overlap"
                )
            entry = entries[info.filename] = _read_entry(file, info)
            end = entry.start + entry.num_bytes
    except DAMAGE as error:
        raise CheckpointError(
            f"the archive is damaged ({ascii(str(error))[1:-1]:.100})",
            expected="a whole .pth file",
            hint="It may be cut short; copy it again",
        ) from error
    if end > file.seek(0, os.SEEK_END):
        raise CheckpointError("an entry reaches behind the end of the file", expected="a whole .pth file")
    return entries


def _read_entry(file: BinaryIO, info: zipfile.ZipInfo) -> Entry:
    if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(f"entry {info.filename!a} is compressed or encrypted", expected="uncompressed entries")
    parts = info.orig_filename.split("/")
    if info.orig_filename != info.filename or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\\" in info.filename:
        raise CheckpointError(f"entry {info.orig_filename!a}", expected="a name inside the archive's one folder")
    file.seek(info.header_offset)
    signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04" or file.read(name_bytes) != info.orig_filename.encode():
        raise CheckpointError(f"entry {info.filename!a} is not where the directory says", expected="a whole .pth file")
    return Entry(info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes, info.file_size)


def _require_zip(file: BinaryIO) -> None:
    file.seek(0)
    start = file.read(4)
    if start == b"PK\x03\x04":
        return
    if start[:1] == b"\x80":
        raise CheckpointError(
            "a bare pickle, as PyTorch wrote it before 1.6",
            expected="a zip archive",
            hint="Puna doesn't read these; no published Llama 3 is one",
        )
    raise CheckpointError("no zip archive", expected="a file written by torch.save")


def _folder(entries: dict[str, Entry]) -> str:
    """Return the name of the single top-level folder of the archive."""
    folders = {name.split("/")[0] for name in entries}
    if len(folders) != 1 or f"{(folder := folders.pop())}/{PICKLE_NAME}" not in entries:
        raise CheckpointError(f"no {PICKLE_NAME} in one folder", expected="a file written by torch.save")
    return folder


def _read(file: BinaryIO, entry: Entry) -> bytes:
    file.seek(entry.start)
    return file.read(entry.num_bytes)
