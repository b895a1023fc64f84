"""A text with source, language and licence."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from puna.pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Document:
    """A text with provenance.

    Attributes:
        source: Path or URL.
        language: ISO 639-1 code.

    Example:
        >>> Document.from_json({"text": "Open from nine."}, where="row 1").id
        'row 1'
    """

    text: str
    id: str
    source: str = ""
    language: str = ""
    licence: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the row of a JSONL or Parquet shard."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any], *, where: str = "a document") -> "Document":
        """Build a document from a row; `where` locates the row in errors and is the default id.

        Raises:
            DataError: The text is missing, or a field is unknown.
        """
        if not isinstance(row.get("text"), str):
            raise DataError(
                f"{where} has no 'text'", expected="a string", hint=f"It has: {', '.join(row) or 'nothing'}"
            )
        unknown = set(row) - {f.name for f in fields(cls)}
        if unknown:
            raise DataError(f"{where} has '{min(unknown)}'", expected=", ".join(f.name for f in fields(cls)))
        return cls(**{"id": where, **row})
