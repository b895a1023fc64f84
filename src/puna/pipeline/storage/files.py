"""Bytes -> files and directories, durable across a power loss: write, fsync, rename, fsync of the directory."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RENAME_EXCHANGE = 2


def make_directory(path: Path) -> None:
    """Create a directory with missing parents, and make every new name durable."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync(each.parent)


def replace_directory(new: Path, path: Path) -> None:
    """Rename the directory `new` to `path`; remove the old directory once the new directory is durable.

    The two directories are exchanged in a single step if system and disk allow. Elsewhere a crash between two renames
    leaves the old directory beside `path`, as .NAME.old.
    """
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists() and _exchange(new, path):
        new.rename(old)
    else:
        if path.exists():
            path.rename(old)
        new.rename(path)
    fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically (renameat2 of Linux); return whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here = -100  # AT_FDCWD: relative paths start at the current directory
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0


def write_text(path: Path, text: str) -> None:
    """Write `path` as a whole or not at all: temporary name, fsync, rename.

    The new name is durable only after an fsync of the directory, which a caller adds where later files rely on it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise naming(error, path) from None


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk without hard links
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise naming(error, target) from None


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path` during the block; the system releases the lock of a killed process.

    Raises:
        BlockingIOError: A second process holds the lock, and `wait` is False.

    Example:
        >>> with locked(Path("build/.lock"), wait=True):
        ...     write_text(Path("build/current.json"), "{}")
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def naming(error: OSError, path: Path) -> OSError:
    """Return an error of the system with the name of the file, which failed writes and fsyncs lack.

    Example:
        >>> str(naming(OSError(28, "No space left on device"), Path("build/out")))
        "[Errno 28] No space left on device: 'build/out'"
    """
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry(path: Path) -> dict[str, Any]:
    """Force a file to the disk and return size and SHA-256, as listed in a manifest."""
    fsync(path)
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def fsync(path: Path) -> None:
    """Make the file or directory at `path` durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise naming(error, path) from None
