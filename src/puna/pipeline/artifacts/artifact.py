"""A directory and its manifest: kind, stage, inputs, and the hash of every file.

A directory is filled under a temporary name, fsynced and renamed, so finished artifacts always have a manifest. The
content of files is up to the stages.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna import __version__
from puna.pipeline.errors import ArtifactError, ReceiptError
from puna.pipeline.storage.files import entry, fsync, hash_file, make_directory, replace_directory, write_text
from puna.pipeline.storage.records import parse_strict, read_bounded, read_record

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RECORD_PREFIX = "run_"


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        kind: Kind of the artifact, from `stages.KINDS`.
        key: Hash of everything that decides the content.
        inputs: {role: {path (relative to the artifact), kind, hash}}.
        files: {name: {size (bytes), sha256}}.
        licences: Ids of the inherited licences.
        records: Names of files with speeds and times of the run, which do not count for the content hash.
        created: Time in UTC, ISO 8601 with seconds.

    Example:
        >>> read_manifest(Path("build/sft")).kind
        'checkpoint'
    """

    kind: str
    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    files: dict[str, dict[str, Any]]
    licences: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    version: str = __version__
    created: str = ""
    format: int = FORMAT_VERSION

    @property
    def content_hash(self) -> str:
        """SHA-256 over names and hashes of the files: equal for equal contents, regardless of time, place and user.

        Records of the run do not count: files of `records`, and run_NAME, such as run_metrics.jsonl with rates and
        run_config.json with paths.
        """
        content = {name: each["sha256"] for name, each in self.files.items() if not self.is_record(name)}
        return _hash_json(content)

    def is_record(self, name: str) -> bool:
        """Return whether a file is a record of the run, which does not count for the content hash."""
        return name.startswith(RECORD_PREFIX) or name in self.records


@dataclass(frozen=True)
class Receipt:
    """A measured claim about an artifact: a value, a tolerance, and whether the value lies within.

    Attributes:
        claim: Name of the measurement, and of the file: "kl".
        parent: Content hash of the artifact compared with.
        tolerance: Largest allowed value, or the smallest with `is_least`; None for a measurement without a limit.
        held: Whether the claim held; always True without a tolerance.
        details: Further facts. `reasons` and `hint` replace the figures in errors; `passes_over` lists claims of other
            receipts to override.

    Example:
        >>> Receipt("kl", parent="3f1c", value=0.008, tolerance=0.02, held=True).limit
        'at most 0.02'
    """

    claim: str
    parent: str
    value: float
    tolerance: float | None
    held: bool
    details: dict[str, Any] = field(default_factory=dict)
    is_least: bool = False

    @property
    def limit(self) -> str:
        """The tolerance in words: "at most 0.02"."""
        if self.tolerance is None:
            return "measured only"
        return f"at {'least' if self.is_least else 'most'} {self.tolerance:.4g}"

    def save(self, directory: Path) -> None:
        """Write `receipts/CLAIM.json` into `directory`."""
        path = directory / "receipts" / f"{self.claim}.json"
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def read_receipts(directory: Path) -> list[Receipt]:
    """Return the receipts of an artifact, sorted by claim; ArtifactError for an unreadable receipt."""
    return [_read_receipt(path) for path in sorted(directory.glob("receipts/*.json"))]


def _read_receipt(path: Path) -> Receipt:
    from puna.pipeline.storage.schemas import ReceiptFile

    hint = "Make the artifact again: a claim that cannot be read is not proven"
    try:
        receipt = read_record(path, ReceiptFile, expected="a receipt as Puna writes it", hint=hint, allow_nan=True)
    except FileNotFoundError:  # a broken link
        raise ArtifactError(f"{path} does not exist", expected="a receipt as Puna writes it", hint=hint) from None
    if receipt.claim != path.stem:  # copies of receipts are named after the claim
        raise ArtifactError(
            f"{path}: claim = {receipt.claim!a}", expected=f"{path.stem!a}, the name of the file", hint=hint
        )
    return Receipt(**asdict(receipt))


def require_receipts(directory: Path) -> None:
    """Raise ReceiptError for a failed receipt, unless another receipt overrides the claim (`passes_over`)."""
    receipts = read_receipts(directory)
    passed_over = {claim for each in receipts if each.held for claim in each.details.get("passes_over", [])}
    for receipt in (each for each in receipts if each.claim not in passed_over):
        if not receipt.held and "reasons" in receipt.details:
            reasons = "; ".join(receipt.details["reasons"])
            raise ReceiptError(f"{directory}: {reasons}", hint=receipt.details.get("hint", ""))
        if not receipt.held:
            raise ReceiptError(
                f"{directory}: {receipt.claim} is {receipt.value:.4g}",
                expected=receipt.limit,
                hint="Change the stage that made it, or give --ignore-receipts to go on",
            )


def is_artifact(path: Path) -> bool:
    """Return whether `path` is a finished artifact."""
    return (path / MANIFEST).is_file()


def find_artifact(path: Path) -> Path | None:
    """Return the artifact at `path`, or the artifact that lists the file at `path`; None for other paths.

    A folder with another program's manifest.json is no artifact.

    Raises:
        ArtifactError: The manifest beside the file is damaged, so the file cannot be verified.
    """
    if is_artifact(path):
        return path
    if not is_artifact(path.parent):
        return None
    try:
        return path.parent if path.name in read_manifest(path.parent).files else None
    except ArtifactError:
        if _is_foreign(path.parent / MANIFEST):
            return None
        raise


def _is_foreign(path: Path) -> bool:
    """Return whether a manifest.json is valid JSON without most of the fields of a manifest."""
    try:
        value = parse_strict(read_bounded(path))
    except (OSError, ValueError, RecursionError, ArtifactError):
        return False
    return not isinstance(value, dict) or len({"kind", "stage", "key", "files"} & value.keys()) < 2


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact at `path`.

    Raises:
        ArtifactError: The manifest is missing, damaged or of another format.

    Example:
        >>> read_manifest(Path("build/sft")).stage
        'sft'
    """
    from puna.pipeline.storage.schemas import ManifestFile

    try:
        manifest = read_record(
            path / MANIFEST,
            ManifestFile,
            expected=f"a manifest of format {FORMAT_VERSION}",
            hint="Make the artifact again; if the folder is none of Puna's, give that file another name",
        )
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} is not a finished artifact",
            expected=f"a directory with a {MANIFEST}",
            hint="Run the stage that writes it",
        ) from None
    return Manifest(**asdict(manifest))


def is_whole(path: Path, manifest: Manifest) -> bool:
    """Return whether all files of the manifest exist with the listed sizes; hashes are not checked."""
    files = ((path / name, entry["size"]) for name, entry in manifest.files.items())
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def verify(path: Path, *, part: int = 0, num_parts: int = 1) -> Manifest:
    """Hash every file of an artifact again, and return the manifest.

    Args:
        path: Directory of the artifact.
        part: Index of the part of the files to hash, where several processes verify one artifact together.
        num_parts: Number of these parts.

    Raises:
        ArtifactError: A file is missing, differs from the manifest, or is not listed; the message names the first.

    Example:
        >>> verify(Path("build/shop/sft")).kind
        'checkpoint'
    """
    manifest = read_manifest(path)
    for name in _visible_files(path):
        if name not in manifest.files:
            raise ArtifactError(f"{path / name} is not part of the artifact", hint="Take it out of the folder")
    verify_files(path, manifest, list(manifest.files)[part::num_parts])
    return manifest


def verify_files(path: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Hash some files of an artifact again; ArtifactError names the first missing or altered file."""
    for name in names:
        file, listed = path / name, manifest.files.get(name)
        if listed is None:
            raise ArtifactError(f"{file} is not part of the artifact", hint="Take it out of the folder")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing", expected=f"{listed['size']} bytes, as {MANIFEST} lists")
        if file.stat().st_size != listed["size"] or hash_file(file) != listed["sha256"]:
            raise ArtifactError(f"{file} was altered or cut short", expected=f"SHA-256 {listed['sha256'][:12]}...")


@contextlib.contextmanager
def verifying(path: Path) -> Iterator[None]:
    """Verify the artifact at or around `path` in a thread while the block loads files; the end of the block waits.

    An error of the block caused by an altered file becomes an ArtifactError with the name of the file. Paths outside of
    artifacts are not verified.
    """
    around, verified = find_artifact(path), Future[Manifest | None]()

    def run() -> None:
        try:
            verified.set_result(verify(around) if around else None)
        except Exception as error:
            verified.set_exception(error)

    # NOTE: an executor would wait for its threads, so that Ctrl-C would not stop at once.
    threading.Thread(target=run, daemon=True).start()
    try:
        yield
    except Exception:
        verified.result()
        raise
    verified.result()


def content_hash(path: Path) -> str:
    """Hash the content at `path`: of an artifact the manifest, of raw files and folders names and contents.

    Hidden files of a raw folder (.git, .DS_Store) do not count. Of files outside of the folder behind a link, and of
    files without read permission, only the names count.

    Raises:
        ArtifactError: There is no file and no folder at the path.
    """
    if is_artifact(path):
        return read_manifest(path).content_hash
    if path.is_file():
        return hash_file(path)
    if path.is_dir():
        root = path.resolve()
        return _hash_json({name: _hash_inside(path / name, root) for name in _visible_files(path)})
    problem = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
    raise ArtifactError(f"{path} {problem}", expected="a file, a folder or an artifact")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; the directory is removed at the end unless `commit` renamed it."""
    partial = path.parent / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    make_directory(partial)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def commit(
    partial: Path, path: Path, manifest: Manifest, *, hashed: Mapping[str, dict[str, Any]] | None = None
) -> Manifest:
    """Add the manifest to `partial`, fsync all files, and rename the directory to `path`, replacing an older artifact.

    Args:
        hashed: Entries of files that are already fsynced and hashed.
    """
    entries = hashed or {}
    files = {name: entries.get(name) or entry(partial / name) for name in _files(partial)}
    finished = Manifest(
        **{**asdict(manifest), "files": files, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    write_text(partial / MANIFEST, json.dumps(asdict(finished), indent=2, ensure_ascii=False) + "\n")
    for directory, _, _ in os.walk(partial):
        fsync(Path(directory))
    replace_directory(partial, path)
    return finished


def _files(directory: Path) -> list[str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in files if path != directory / MANIFEST)


def _visible_files(directory: Path) -> list[str]:
    return [name for name in _files(directory) if not any(part.startswith(".") for part in name.split("/"))]


def _hash_inside(path: Path, root: Path) -> str:
    if not path.resolve().is_relative_to(root):
        return "outside"
    try:
        return hash_file(path)
    except PermissionError:
        return "unreadable"


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
