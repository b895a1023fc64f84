"""A file name in a checkpoint directory -> a path that is safe to open, or its JSON. Knows no format of weights."""

import json
import stat
from pathlib import Path
from typing import Any

from puna.pipeline.errors import CheckpointError
from puna.pipeline.storage.records import parse_strict, read_bounded

MAX_JSON_BYTES = 16 * 2**20


def find_file(directory: Path, name: str) -> Path | None:
    """Return the file's real path, None if there is none.

    `name` must be a plain file name. A symbolic link may lead only into the directory itself or, since that is how
    the Hugging Face cache stores a model, from `snapshots/REVISION/` or `original/` in it into the `blobs/` beside
    `snapshots/`.
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
    """Return where the Hugging Face cache keeps the files of a snapshot or of Meta's own within it."""
    for snapshot in (root, root.parent) if root.name == "original" else (root,):
        if snapshot.parent.name == "snapshots":
            return snapshot.parent.parent / "blobs"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most 16 MiB; strict: no NaN, no key twice."""
    try:
        text = read_bounded(path, max_bytes=MAX_JSON_BYTES, error=CheckpointError)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {error.strerror}", expected="a readable file") from error
    return parse_json(text, path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `text`, which came from `path`."""
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
