"""Fields and bounds of manifests and receipts. Imported only to read a file, since pydantic is slow to import."""

import math
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

FORMAT_VERSION = 1
MAX_PATH, MAX_NAME = 4096, 255  # bytes, as on Linux
STRICT = ConfigDict(extra="forbid")


def _relative_name(name: str) -> str:
    """Refuse names outside of the artifact, and second spellings of a name ("a/../b")."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ValueError("a name inside the artifact, without '..' and not absolute")
    return _possible(name)


def _possible(path: str) -> str:
    """Refuse paths beyond the limits of file systems, before a later check fails."""
    if len(path.encode()) >= MAX_PATH or any(len(part.encode()) > MAX_NAME for part in path.split("/")):
        raise ValueError(f"a path below {MAX_PATH} bytes, of names up to {MAX_NAME}")
    return path


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters")
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a path")
    return _possible(text)


def _details(details: dict[str, Any]) -> dict[str, Any]:
    """Validate known fields of `details`."""
    for name in ("reasons", "passes_over"):
        if not isinstance(lines := details.get(name, []), list) or not all(isinstance(each, str) for each in lines):
            raise ValueError(f"{name} as a list of strings")
    if not isinstance(details.get("hint", ""), str):
        raise ValueError("a hint in words")
    return details


FileName = Annotated[str, AfterValidator(_relative_name)]
Line = Annotated[str, AfterValidator(_one_line), StringConstraints(max_length=1000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(config=STRICT)
class FileEntry:
    """Size and hash of a file."""

    size: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Sha256


@dataclass(config=STRICT)
class InputEntry:
    """Path, kind and hash of an input; the path leads to another artifact or to raw files."""

    path: Annotated[str, AfterValidator(_path)]
    kind: Line
    hash: Sha256


@dataclass(config=STRICT)
class ManifestFile:
    """`manifest.json`."""

    kind: Line
    stage: Line
    key: Line
    config: dict[str, Any]
    inputs: dict[str, InputEntry]
    files: dict[FileName, FileEntry]
    licences: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    version: Line = ""
    created: Line = ""
    format: Literal[1] = FORMAT_VERSION


@dataclass(config=STRICT)
class ReceiptFile:
    """`receipts/CLAIM.json`."""

    claim: Line
    parent: str
    value: float
    tolerance: float | None
    held: bool
    details: Annotated[dict[str, Any], AfterValidator(_details)] = field(default_factory=dict)
    is_least: bool = False

    def __post_init__(self) -> None:
        if self.held and not math.isfinite(self.value):
            raise ValueError("a finite value, where held is true")
