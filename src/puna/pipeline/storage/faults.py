"""Errors of the operating system -> a message with the file, the fault and the remedy."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

WRITE_FAULTS = {
    errno.ENOSPC: "Free space on the disk, or choose another output",
    errno.EDQUOT: "Your quota on the disk is used up: remove files, or choose another output",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f), or choose another disk",
    errno.EIO: "The disk reports a fault: look at the system's log, and choose another disk",
    errno.EROFS: "The disk is mounted read-only: choose another output",
}
OTHER_FAULTS = {
    errno.EACCES: "Change the permissions of the file or of the folder, or choose another path",
    errno.EPERM: "Change the permissions of the file or of the folder, or choose another path",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Close other programs: all file handles of this machine are in use",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.EISDIR: "It is a folder: name a file",
}
NOTHING_LOST = "Finished artifacts are whole, and the same command resumes where this one stopped"


def explain(error: OSError) -> str:
    """Return a message for a person; without known advice the system's own words.

    Example:
        >>> explain(OSError(errno.EROFS, "Read-only file system", "out/a.json")).partition(". ")[0]
        'out/a.json cannot be written: Read-only file system'
    """
    file = _file_of(error)
    if error.errno in WRITE_FAULTS:
        unwritten = f"{file or 'a file or the terminal'} cannot be written: {error.strerror}"
        return f"{unwritten}. {WRITE_FAULTS[error.errno]}. {NOTHING_LOST}"
    if error.errno in OTHER_FAULTS:
        return f"{file or 'a file'}: {error.strerror}. {OTHER_FAULTS[error.errno]}"
    if error.errno == errno.ENOENT and not file:  # tempfile names folders in the message, and no file
        return f"{error.strerror}. Name a folder with room for temporary files in TMPDIR"
    return f"{file}: {error.strerror}" if file and error.strerror else str(error)


@contextlib.contextmanager
def naming_newest(*directories: Path) -> Iterator[None]:
    """Give an OSError of the block that names no file the newest file in `directories`: the one being written.

    A failed open names the file; a failed write, flush or copy through a library names none.
    """
    try:
        yield
    except OSError as error:
        newest = _newest(directories)
        if error.errno is None or _file_of(error) or newest is None:
            raise
        raise OSError(error.errno, error.strerror, str(newest)) from error


def _file_of(error: OSError) -> str:
    # A failed copy has the source as first name; the unwritable file is the target.
    file = error.filename2 if error.errno in WRITE_FAULTS and error.filename2 else error.filename
    return os.fsdecode(file) if isinstance(file, str | bytes) else ""


def _newest(directories: tuple[Path, ...]) -> Path | None:
    times: dict[Path, int] = {}
    for path in (path for directory in directories for path in directory.rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file():
                times[path] = path.stat().st_mtime_ns
    return max(times, key=times.__getitem__, default=None)
