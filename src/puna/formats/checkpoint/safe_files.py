"""Safe access to files of an untrusted checkpoint directory: file names -> real paths, and bounded strict JSON."""

import json
import stat
from pathlib import Path
from typing import Any

from puna.pipeline.errors import CheckpointError
from puna.pipeline.storage.records import parse_strict, read_bounded

MAX_JSON_BYTES = 16 * 2**20


def find_file(directory: Path, name: str) -> Path | None:
    """Return the real path of a file, None if the file does not exist.

    A symbolic link may lead only into the directory itself, or into the `blobs` of a Hugging Face cache: from
    `snapshots/REVISION/` or its `original/` into the `blobs/` beside `snapshots/`.

    Args:
        name: Plain file name without a path.

    Raises:
        CheckpointError: The name has a path, or the file is a link elsewhere, irregular or unreadable.
    """
    if Path(name).name != name or name in ("", "..") or "\\" in name or "\0" in name:
        raise CheckpointError(f"{directory}: file name {name!r}", expected="a name without a path")
    root = directory.resolve()
    try:
        path = (root / name).resolve(strict=True)
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{directory / name!s}: {error}", expected="a readable file") from error
    if path.parent not in (root, _blobs_of(root)):
        raise CheckpointError(
            f"{directory / name} is a link to {path}",
            expected="a file in the checkpoint's own directory",
            hint="Copy the file, or name the directory it leads to",
        )
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{directory / name} is not a regular file", expected="a file")
    return path


def _blobs_of(root: Path) -> Path | None:
    """Return the `blobs` directory of the Hugging Face cache for a snapshot or its `original` folder."""
    for snapshot in (root, root.parent) if root.name == "original" else (root,):
        if snapshot.parent.name == "snapshots":
            return snapshot.parent.parent / "blobs"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file of at most 16 MiB; NaN and duplicate keys are errors."""
    try:
        text = read_bounded(path, max_bytes=MAX_JSON_BYTES, error=CheckpointError)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {error.strerror}", expected="a readable file") from error
    return parse_json(text, path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `text`, the contents of `path`."""
    try:
        value = parse_strict(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({_shorten(error)})", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}", expected="a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shorten(error: Exception) -> str:
    return ascii(str(error))[1:-1][:200]
