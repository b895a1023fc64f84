"""Rows of files in the layouts of many programs -> documents, conversations or preferences."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from puna.corpus.ingest.results import Accepted, Read, Rejected
from puna.corpus.ingest.row_files import read_file
from puna.corpus.ingest.spellings.columns import MEDIA, is_given
from puna.corpus.ingest.spellings.dialogues import is_dialogue, read_dialogue
from puna.corpus.ingest.spellings.preferences import read_preference
from puna.data.document import Document
from puna.data.preference import Preference
from puna.data.shards import without_nulls
from puna.formats.chat.conversation import Conversation, is_blank
from puna.formats.chat.padding import without_padding
from puna.pipeline.errors import ChatError, DataError

DOCUMENT_COLUMNS = {"text", "id", "lang", "language", "licence", "license", "source"}
# A row, its name, the file's name.
ReadRow = Callable[[dict[str, Any], str, str], Accepted]


def read_records(path: Path, source: str) -> Iterator[Read]:
    """Yield a document or a conversation per row; descriptive columns become metadata.

    Example:
        accepted = [read.row for read in read_records(Path("train.jsonl"), "train.jsonl") if isinstance(read, Accepted)]
    """
    return _read_each(path, source, _read_record)


def read_pairs(path: Path, source: str) -> Iterator[Read]:
    """Yield a preference per row; descriptive columns become metadata.

    Example:
        pairs = [read.row for read in read_pairs(Path("pairs.jsonl"), "pairs.jsonl") if isinstance(read, Accepted)]
    """
    return _read_each(path, source, _read_pair)


def _read_each(path: Path, source: str, read_row: ReadRow) -> Iterator[Read]:
    line = 0
    try:
        for line, row in enumerate(read_file(path), start=1):
            where = f"{source}:{line}"
            if row is None:
                continue
            if isinstance(row, DataError):
                yield Rejected(where, str(row))
                continue
            try:
                yield read_row(row, where, source)
            except (ChatError, DataError) as error:
                yield Rejected(where, str(error))
            except RecursionError:
                yield Rejected(where, "a row nested too deeply")
    except DataError as error:
        yield Rejected(source, f"unreadable after record {line}: {error}")


def _read_record(row: dict[str, Any], where: str, source: str) -> Accepted:
    if is_dialogue(row):
        parsed_row = read_dialogue(row)
        fields = without_padding(parsed_row.fields)
        fields |= {"id": _first_of(row, "id") or where, "metadata": _metadata(row, parsed_row.descriptive)}
        columns = _reported_columns(row, parsed_row.descriptive)
        return Accepted(Conversation.from_json(fields), parsed_row.spelling, columns, parsed_row.left_out, where)
    if not isinstance(row.get("text"), str) or is_blank(row["text"]):
        raise DataError(
            f"a row has neither 'text' nor 'messages'; it has {', '.join(row) or 'nothing'}",
            hint="docs/stages/ingest.md lists the spellings of a dialogue",
        )
    descriptive = tuple(name for name, value in row.items() if name not in DOCUMENT_COLUMNS and value is not None)
    for name in descriptive:
        if name in MEDIA and row[name]:
            raise DataError(f"the column '{name}' belongs to the text", expected="documents of text only")
    document = Document(
        text=row["text"],
        id=_first_of(row, "id") or where,
        source=_first_of(row, "source") or source,
        language=_first_of(row, "language", "lang"),
        licence=_first_of(row, "licence", "license"),
        metadata=_metadata(row, descriptive),
    )
    return Accepted(document, "text", _reported_columns(row, descriptive), place=where)


def _read_pair(row: dict[str, Any], where: str, source: str) -> Accepted:
    parsed_row = read_preference(row)
    fields = without_padding(parsed_row.fields)
    fields |= {"id": _first_of(row, "id", "prompt_id") or where}
    fields |= {"metadata": _metadata(row, tuple(name for name in parsed_row.descriptive if name != "prompt_id"))}
    is_shared = row.get("id") is None and row.get("prompt_id") is not None  # Several pairs share a prompt.
    preference = Preference.from_json(fields)
    columns = _reported_columns(row, parsed_row.descriptive)
    return Accepted(preference, parsed_row.spelling, columns, parsed_row.left_out, where, is_shared)


def _first_of(row: dict[str, Any], *names: str) -> str:
    """Return the first non-null field as a string; "" without any."""
    return next((str(row[name]) for name in names if row.get(name) is not None), "")


def _reported_columns(row: dict[str, Any], descriptive: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns for the report: descriptive columns with a value, except `metadata`."""
    return tuple(name for name in descriptive if name != "metadata" and is_given(row.get(name)))


def _metadata(row: dict[str, Any], descriptive: tuple[str, ...]) -> dict[str, Any]:
    """Return the descriptive columns of a row, with the fields of an object `metadata` in place of the object."""
    others = {name: without_nulls(row[name]) for name in descriptive if name != "metadata"}
    own = without_nulls(row.get("metadata"))
    return {**own, **others} if isinstance(own, dict) else {**others, **({"metadata": own} if own is not None else {})}
