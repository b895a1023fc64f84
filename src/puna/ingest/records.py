"""JSONL (plain or gzip) and Parquet rows -> documents (`text`) or conversations (`messages`)."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from puna.chat.conversation import Conversation
from puna.data.document import Document
from puna.data.preference import Preference
from puna.data.shards import read_rows
from puna.errors import ChatError, DataError

Read = Document | Conversation | Preference | tuple[str, str]
# A row, its name, the file's name.
ReadRow = Callable[[dict[str, Any], str, str], Document | Conversation | Preference]


def read_records(path: Path, source: str) -> Iterator[Read]:
    """Yield what each row holds; fields that a document or a conversation does not have become its metadata."""
    return read_each(path, source, _read_row)


def read_each(path: Path, source: str, read_row: ReadRow) -> Iterator[Read]:
    """Yield what a function makes of each row of a file, or the row's name and why it makes nothing of it."""
    line = 0
    try:
        for line, row in enumerate(_rows(path), start=1):
            where = f"{source}:{line}"
            try:
                if not isinstance(row, bytes) or row.strip():
                    yield read_row(_object(row), where, source)
            except (ChatError, DataError) as error:
                yield where, str(error)
    except (OSError, EOFError, zlib.error, DataError) as error:
        yield source, f"unreadable after record {line}: {error}"


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        yield from read_rows(path)
        return
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        yield from file


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, bytes):
        try:
            row = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise DataError(f"a line is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"a line is not a JSON object: {str(row)[:60]!r}")
    return row


def _read_row(row: dict[str, Any], where: str, source: str) -> Document | Conversation:
    if "messages" in row:
        names = {each.name for each in fields(Conversation)}
        known = {name: value for name, value in row.items() if name in names}
        return Conversation.from_json({**known, "id": first_of(row, "id") or where, "metadata": metadata(row, names)})
    if not isinstance(row.get("text"), str) or not row["text"].strip():
        raise DataError(f"a row has neither 'text' nor 'messages'; it has {', '.join(row) or 'nothing'}")
    return Document(
        text=row["text"],
        id=first_of(row, "id") or where,
        source=first_of(row, "source") or source,
        language=first_of(row, "language", "lang"),
        licence=first_of(row, "licence", "license"),
        metadata=metadata(row, {"text", "id", "lang", "language", "licence", "license", "source"}),
    )


def first_of(row: dict[str, Any], *names: str) -> str:
    """Return the first of these fields that says anything, as a string."""
    return next((str(row[name]) for name in names if row.get(name) is not None), "")


def metadata(row: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Gather what has no field of its own; an object `metadata` is taken apart."""
    others = {name: value for name, value in row.items() if name not in known | {"metadata"} and value is not None}
    own = row.get("metadata")
    return {**own, **others} if isinstance(own, dict) else {**others, **({"metadata": own} if own is not None else {})}
