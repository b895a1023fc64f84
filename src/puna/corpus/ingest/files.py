"""A source -> the files to read, sorted by name: regular files inside the source, and refusals."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from puna.pipeline.errors import DataError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class SourceFile(NamedTuple):
    """A file below a source: path, path relative to the source, and a reason against opening the file.

    Unreadable folders are listed too; shell patterns do not apply to folders.

    Example:
        >>> SourceFile(Path("raw/a.md"), "a.md").refusal
        ''
    """

    path: Path
    name: str
    refusal: str = ""
    is_folder: bool = False


def find_files(source: Path, include: Sequence[str] = ("*",)) -> list[SourceFile]:
    """List the files of a source without hidden files.

    A link counts as a file if the target is a regular file inside the source. The source may be a link.

    Args:
        source: A regular file, or a folder that is read with its sub-folders.
        include: Shell patterns of file names.

    Raises:
        DataError: The source does not exist, is neither file nor folder, or holds no file with a matching name.

    Example:
        files = [file.path for file in find_files(Path("handbook")) if not file.refusal]
    """
    try:
        root = source.resolve(strict=True)
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"source {source} does not exist", expected="a file or a folder") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"source {source} cannot be read ({_reason(error)})", expected="a file or a folder") from None
    if stat.S_ISREG(mode):
        return [SourceFile(source, source.name)]
    if not stat.S_ISDIR(mode):
        raise DataError(f"source {source} is {_kind(mode)}", expected="a file or a folder")
    entries = sorted(_walk(source, root), key=lambda file: file.path)
    files = [file for file in entries if any(file.path.match(pattern) for pattern in include) or file.is_folder]
    if not files:
        raise DataError(f"no file in {source} fits", expected=f"files named {', '.join(include)}")
    return files


def _walk(source: Path, root: Path) -> list[SourceFile]:
    entries: list[SourceFile] = []

    def refuse(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename))
        entries.append(SourceFile(path, path.relative_to(source).as_posix(), f"unreadable: {_reason(error)}", True))

    for folder, below, names in os.walk(source, onerror=refuse):
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        below[:] = [name for name in below if not name.startswith(".")]
        for name in (*names, *links):
            path = Path(folder, name)
            if not name.startswith("."):
                name_below = path.relative_to(source).as_posix()
                entries.append(SourceFile(path, name_below, _refusal(path, root), is_folder=name in links))
    return entries


def _refusal(path: Path, root: Path) -> str:
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:
        return f"unreadable: {_reason(error)}"
    if not target.is_relative_to(root):
        return "a link that leads out of the source"
    if any(part.startswith(".") for part in target.relative_to(root).parts):
        return "a link to a hidden file"
    return "" if stat.S_ISREG(mode) else f"not a regular file: {_kind(mode)}"


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _reason(error: Exception) -> str:
    # NOTE: Path.resolve reports a loop of links as a RuntimeError without errno before Python 3.13.
    return (isinstance(error, OSError) and error.strerror) or "a loop of links"
