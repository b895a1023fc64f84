"""Verdicts of a reviewer -> a label file; the file survives a crash and accepts a single writing review at a time.

NOTE: every change is synced to disk before the confirmation. A single append adds labels; a rewrite under a temporary
name and a rename remove labels. Readers see a file with or without a label, never a part of a label.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from puna.data.shards import encode_row
from puna.evaluation.tasks.labels import Label, read_file
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError


class LabelFile:
    """A label file, open for writing. `labels` holds the file's labels in order.

    Example:
        >>> file = LabelFile(Path("labels.jsonl"))
        >>> file.append([label])
        >>> file.remove(lambda label: label.reviewer == "ada")
        >>> file.close()
    """

    def __init__(self, path: Path):
        """Open or create a file; remove a last line cut off by a crash.

        Raises:
            ConfigError: A concurrent review writes the file, or the file cannot be created.
            DataError: A row of the file is no label.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(path)
        except OSError as error:
            raise ConfigError(f"--out {path}: {error.strerror}", expected="a writable file") from None
        self.labels = read_file(path)
        if not path.read_bytes().endswith(b"\n") and path.stat().st_size:
            self._rewrite(self.labels)

    def append(self, labels: Sequence[Label]) -> None:
        """Add labels in a single write.

        Raises:
            DataError: The disk refuses the write; no label is added.
        """
        size, lines = os.fstat(self._file.fileno()).st_size, _encode(labels)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)
            raise DataError(f"{self.path}: {error.strerror}; the verdict is not saved") from None
        self.labels += labels

    def remove(self, is_removed: Callable[[Label], bool]) -> None:
        """Remove labels from the file.

        Raises:
            DataError: The disk refuses the write; all labels remain.
        """
        remaining = [label for label in self.labels if not is_removed(label)]
        try:
            self._rewrite(remaining)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; the verdict is not taken back") from None
        self.labels = remaining

    def close(self) -> None:
        """Close the file, to let a later review write labels."""
        self._file.close()

    def _rewrite(self, labels: Sequence[Label]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_bytes(_encode(labels))
        artifact.fsync(partial)
        # Locked before the rename: no other review can lock the new file first.
        file = _open_locked(partial)
        partial.replace(self.path)
        artifact.fsync(self.path.parent)
        self._file.close()
        self._file = file


def _open_locked(path: Path) -> BinaryIO:
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_current = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except BlockingIOError:
        is_current = False
    if not is_current:
        file.close()
        raise ConfigError(
            f"{path} is being written by another review",
            expected="a label file that no other review writes",
            hint="Give another --out",
        )
    return file


def _encode(labels: Sequence[Label]) -> bytes:
    return b"".join(encode_row(label.to_json()) for label in labels)
