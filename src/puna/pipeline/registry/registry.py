"""A registry: a folder of promoted releases, and `current.json` with the history of changes.

The release of the last change is in use. `current.json` is replaced atomically, so a crash leaves the old or the new
history. Promoted releases stay in the folder until the user removes them. The gate (`puna release`) judges releases;
the registry only requires a passed gate.
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
GATE = "gate"  # claim of the receipt with the verdict of the gate


@dataclass(frozen=True)
class Change:
    """One entry of the history: a release that came into use.

    Attributes:
        release: Name of the release's folder within the registry.
        hash: Content hash of the release.
        how: Kind of the change.
        at: Time in UTC, ISO 8601 with seconds.

    Example:
        >>> read_history(Path("releases/helper"))[-1]
        Change(release='helper-3f1c22ab9d04', hash='3f1c...', how='promoted', at='2026-11-24T09:12:00+00:00')
    """

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


def is_registry(path: Path) -> bool:
    """Tell whether `path` is a registry with a release in use."""
    return (path / POINTER).is_file()


def follow(path: Path) -> Path:
    """Return the path of the release in use for a registry, and `path` itself for any other path.

    Example:
        >>> follow(Path("releases/helper")).name
        'helper-3f1c22ab9d04'
    """
    return path / read_history(path)[-1].release if is_registry(path) else path


def read_history(registry: Path) -> list[Change]:
    """Return the changes of a registry, oldest first; an empty list for a folder without a history.

    Raises:
        ArtifactError: `current.json` is damaged.
    """
    path, expected = registry / POINTER, "a history as 'promote' writes it"
    try:
        pointer = read_record(path, _History, expected=expected, hint="Promote a release into another folder")
    except FileNotFoundError:
        return []
    if not pointer.history:
        raise ArtifactError(f"{path} has an empty history", expected=expected)
    return pointer.history


def way_back(changes: list[Change]) -> list[Change]:
    """Return the changes that `roll_back` can step through; changes undone by a rollback are left out."""
    stack: list[Change] = []
    for change in changes:
        if change.how == "rolled back":
            while stack and stack[-1].release != change.release:
                stack.pop()
        else:
            stack.append(change)
    return stack


def promote(release: Path, registry: Path) -> Change:
    """Link or copy a release into the registry, and put the release into use.

    Raises:
        ArtifactError: The release is incomplete, altered, or of another kind of artifact.
        ReceiptError: The release did not pass the gate.
    """
    manifest = require_release(release)
    make_directory(registry)
    if artifact.is_artifact(registry):
        raise ConfigError(f"{registry} is an artifact", expected="a separate folder for promoted releases")
    with locked(registry / ".lock", wait=True):
        changes = read_history(registry)
        name = f"{manifest.config.get('name') or 'release'}-{manifest.content_hash[:12]}"
        if changes and changes[-1].release == name:
            require_release(registry / name, manifest.content_hash)
            return changes[-1]
        try:
            change = Change(name, manifest.content_hash, "promoted", _now())
        except ValueError as error:
            raise ArtifactError(f"{release / artifact.MANIFEST}: config.name", expected=str(error)) from None
        _add(release, registry / name, manifest)
        return _change(registry, changes, change)


def roll_back(registry: Path, to: str = "") -> Change:
    """Verify an earlier release, then put the release back into use.

    Args:
        registry: Folder that releases were promoted into.
        to: Name of an earlier release; "" takes the release before the current one.

    Raises:
        ArtifactError: The folder is no registry, or the earlier release was altered.
        ConfigError: No earlier release has the name, or there is no earlier release.
    """
    if not is_registry(registry):
        raise ArtifactError(f"{registry} has no {POINTER}", expected="a folder with promoted releases")
    with locked(registry / ".lock", wait=True):
        changes = read_history(registry)
        *earlier, now = way_back(changes)
        names = list(dict.fromkeys(change.release for change in reversed(earlier)))
        target = next((change for change in reversed(earlier) if to in ("", change.release)), None)
        if target is None:
            expected = f"one of {', '.join(names)}" if names else "an earlier release"
            given = f"--to {to}" if to else f"{now.release} is the first release in {registry}"
            raise ConfigError(given, expected=expected)
        require_release(registry / target.release, target.hash)
        return _change(registry, changes, Change(target.release, target.hash, "rolled back", _now()))


def require_release(path: Path, content_hash: str = "") -> artifact.Manifest:
    """Verify that `path` is a complete release that passed the gate; return the manifest.

    Args:
        content_hash: Expected content hash; "" accepts any content.
    """
    manifest = artifact.verify(path)
    if manifest.kind != "release":
        raise ArtifactError(
            f"{path} is an artifact of kind '{manifest.kind}'", expected="an artifact of kind 'release'"
        )
    if content_hash and manifest.content_hash != content_hash:
        raise ArtifactError(f"{path} is not what was promoted", expected=f"content {content_hash[:12]}...")
    if not any(receipt.claim == GATE for receipt in artifact.read_receipts(path)):
        hint = "Run 'puna release' again"
        raise ArtifactError(f"{path} was never judged", expected=f"a receipt of the {GATE}", hint=hint)
    artifact.require_receipts(path)
    return manifest


def _add(release: Path, target: Path, manifest: artifact.Manifest) -> None:
    """Link or copy a verified release into the registry; rewrite input paths in the manifest relative to the copy."""
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


def _change(registry: Path, changes: list[Change], change: Change) -> Change:
    content = {"current": change.release, "history": [asdict(each) for each in (*changes, change)]}
    artifact.write_text(registry / POINTER, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    artifact.fsync(registry)
    return change


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
