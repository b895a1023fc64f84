"""A text and where it came from."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from puna.pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its provenance; `language` is a code of ISO 639-1, `source` a path or an address."""

    text: str
    id: str
    source: str = ""
    language: str = ""
    licence: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the row that goes into a JSONL or Parquet shard."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any], *, where: str = "a document") -> "Document":
        """Build a document from a row; DataError for a missing text or an unknown field."""
        if not isinstance(row.get("text"), str):
            raise DataError(
                f"{where} has no 'text'", expected="a string", hint=f"It has: {', '.join(row) or 'nothing'}"
            )
        unknown = set(row) - {f.name for f in fields(cls)}
        if unknown:
            raise DataError(f"{where} has '{min(unknown)}'", expected=", ".join(f.name for f in fields(cls)))
        return cls(**{"id": where, **row})
