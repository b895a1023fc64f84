"""A shelf is a folder of releases, one of them in use: which one that is, how another takes its place, the way back.

`current.json` holds every change, the last of which counts; it is replaced as a whole, so a crash leaves the old one or
the new one. Releases stay on the shelf until somebody removes them. Nothing here decides which is good: the gate does.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.storage.files import link_or_copy, locked, make_directory
from puna.pipeline.storage.records import read_record

POINTER = "current.json"
GATE = "gate"  # the claim of the receipt that says that a release may go into use


@dataclass(frozen=True)
class Change:
    """One line of a shelf's history: the release (a folder of the shelf, and its content) that came into use."""

    release: str
    hash: str
    how: Literal["promoted", "rolled back"]
    at: str

    def __post_init__(self) -> None:
        if self.release in ("", "..") or Path(self.release).name != self.release or not self.release.isprintable():
            raise ValueError(f"the name of a folder in the registry, and not {self.release!a}")


@dataclass(frozen=True)
class _History:
    """`current.json`."""

    current: str
    history: list[Change]


def is_shelf(path: Path) -> bool:
    """Tell whether `path` is a folder of releases with one in use."""
    return (path / POINTER).is_file()


def follow(path: Path) -> Path:
    """Return the release in use where `path` is a shelf, and any other path as it is."""
    return path / read_history(path)[-1].release if is_shelf(path) else path


def read_history(shelf: Path) -> list[Change]:
    """Read every change of a shelf, the oldest first; empty before the first. ArtifactError if it cannot be read."""
    path, expected = shelf / POINTER, "a history as 'promote' writes it"
    try:
        found = read_record(path, _History, expected=expected, hint="Promote a release into another folder")
    except FileNotFoundError:
        return []
    if not found.history:
        raise ArtifactError(f"{path} has no change in it", expected=expected)
    return found.history


def way_back(changes: list[Change]) -> list[Change]:
    """Return the changes that one can still go back over: what was rolled back is no longer among them."""
    stack: list[Change] = []
    for change in changes:
        if change.how == "rolled back":
            while stack and stack[-1].release != change.release:
                stack.pop()
        else:
            stack.append(change)
    return stack


def promote(release: Path, shelf: Path) -> Change:
    """Put a release that passed the gate onto the shelf and into use.

    Raises ArtifactError for what is no whole release, ReceiptError for one that the gate did not let through.
    """
    manifest = require_release(release)
    make_directory(shelf)
    if artifact.is_artifact(shelf):
        raise ConfigError(f"{shelf} is an artifact", expected="a folder of its own for releases")
    with locked(shelf / ".lock", wait=True):
        changes = read_history(shelf)
        name = f"{manifest.config.get('name') or 'release'}-{manifest.content_hash[:12]}"
        if changes and changes[-1].release == name:
            require_release(shelf / name, manifest.content_hash)
            return changes[-1]
        try:
            change = Change(name, manifest.content_hash, "promoted", _now())
        except ValueError as error:
            raise ArtifactError(f"{release / artifact.MANIFEST}: config.name", expected=str(error)) from None
        _place(release, shelf / name, manifest)
        return _change(shelf, changes, change)


def roll_back(shelf: Path, to: str = "") -> Change:
    """Put the release before, or an earlier one, back into use, once it is verified; the pointer moves only then."""
    if not is_shelf(shelf):
        raise ArtifactError(f"{shelf} has no {POINTER}", expected="a folder that releases were promoted into")
    with locked(shelf / ".lock", wait=True):
        changes = read_history(shelf)
        *earlier, now = way_back(changes)
        names = list(dict.fromkeys(change.release for change in reversed(earlier)))
        target = next((change for change in reversed(earlier) if to in ("", change.release)), None)
        if target is None:
            expected = f"one of {', '.join(names)}" if names else "a release before it"
            given = f"--to {to}" if to else f"{now.release} is the first on {shelf}"
            raise ConfigError(given, expected=expected)
        require_release(shelf / target.release, target.hash)
        return _change(shelf, changes, Change(target.release, target.hash, "rolled back", _now()))


def require_release(path: Path, content_hash: str = "") -> artifact.Manifest:
    """Verify that `path` is a whole release, of this content, that the gate let through."""
    manifest = artifact.verify(path)
    if manifest.kind != "release":
        raise ArtifactError(f"{path} is an artifact of kind '{manifest.kind}'", expected="one of 'release'")
    if content_hash and manifest.content_hash != content_hash:
        raise ArtifactError(f"{path} is not what was promoted", expected=f"content {content_hash[:12]}...")
    if not any(receipt.claim == GATE for receipt in artifact.read_receipts(path)):
        hint = "Run 'puna release' again"
        raise ArtifactError(f"{path} was never judged", expected=f"a receipt of the {GATE}", hint=hint)
    artifact.require_receipts(path)
    return manifest


def _place(release: Path, target: Path, manifest: artifact.Manifest) -> None:
    """Link or copy a verified release onto the shelf; its manifest names its inputs from there."""
    if artifact.is_artifact(target):
        require_release(target, manifest.content_hash)
        return
    with artifact.writing(target) as partial:
        for name in manifest.files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(release / name, partial / name)
        inputs = {
            role: {**entry, "path": os.path.relpath(release / entry["path"], target)}
            for role, entry in manifest.inputs.items()
        }
        text = json.dumps(asdict(replace(manifest, inputs=inputs)), indent=2, ensure_ascii=False) + "\n"
        artifact.write_text(partial / artifact.MANIFEST, text)
        artifact.verify(partial)
        for directory, _, files in os.walk(partial):
            for path in (*(Path(directory, name) for name in files), Path(directory)):
                artifact.fsync(path)
        artifact.replace_directory(partial, target)


def _change(shelf: Path, changes: list[Change], change: Change) -> Change:
    told = {"current": change.release, "history": [asdict(each) for each in (*changes, change)]}
    artifact.write_text(shelf / POINTER, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    artifact.fsync(shelf)
    return change


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
