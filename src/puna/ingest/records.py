"""JSONL (plain or gzip) and Parquet rows -> documents (`text`) or conversations (`messages`)."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.chat.conversation import Conversation
from puna.data.document import Document
from puna.data.shards import read_rows
from puna.errors import ChatError, DataError

Read = Document | Conversation | tuple[str, str]


def read_records(path: Path, source: str) -> Iterator[Read]:
    """Yield what each row holds; other fields of a text row become its metadata."""
    for line, row in enumerate(_rows(path), start=1):
        where = f"{source}:{line}"
        try:
            yield _read_row(row, where, source)
        except (ChatError, DataError) as error:
            yield where, str(error)


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from read_rows(path)
        return
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                yield text


def _read_row(row: Any, where: str, source: str) -> Read:
    if not isinstance(row, dict):
        raise DataError(f"a line is not a JSON object: {str(row)[:60]!r}")
    if "messages" in row:
        return Conversation.from_json(row)
    if not str(row.get("text") or "").strip():
        raise DataError(f"a row has neither 'text' nor 'messages'; it has {', '.join(row) or 'nothing'}")
    known = {"text", "id", "lang", "language", "licence", "license", "source", "metadata"}
    return Document(
        text=row["text"],
        id=str(row.get("id", where)),
        source=str(row.get("source", source)),
        language=str(row.get("language", row.get("lang", ""))),
        licence=str(row.get("licence", row.get("license", ""))),
        metadata={**row.get("metadata", {}), **{key: value for key, value in row.items() if key not in known}},
    )
