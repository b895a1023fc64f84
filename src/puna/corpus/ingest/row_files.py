"""A file of rows (JSONL or JSON, plain or gzip, or Parquet) -> rows, and errors for unreadable rows."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from puna.data.shards import ParquetRows
from puna.pipeline.errors import DataError
from puna.pipeline.storage.records import unique_keys

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
MAX_LINE_BYTES = 64 << 20
MAX_LIST_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_FORMS = {
    b"\x1f\x8b": "gzip data without .gz in its name",
    b"PAR1": "Parquet data without .parquet as its suffix",
    b"PK\x03\x04": "a ZIP archive",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

Row = dict[str, Any]


def read_file(path: Path) -> Iterator[Row | DataError | None]:
    """Yield rows, errors of unreadable rows, and None for blank lines.

    Raises:
        DataError: The rest of the file is unreadable.

    Example:
        rows = [row for row in read_file(Path("train.jsonl")) if isinstance(row, dict)]
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield from _text_rows(cast(IO[bytes], file), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(error)) from None


def _parquet_rows(path: Path) -> Iterator[Row | DataError | None]:
    try:
        rows = ParquetRows(path, with_nulls=True)
    except RecursionError:
        raise DataError("columns nested too deeply") from None
    for index in range(len(rows)):
        try:
            yield rows[index]
        except DataError as error:
            yield error


def _text_rows(file: IO[bytes], path: Path) -> Iterator[Row | DataError | None]:
    start = file.read(4)
    form = next((form for magic, form in _FORMS.items() if start.startswith(magic)), "")
    if form:
        raise DataError(form, expected="UTF-8 text with one JSON object a line")
    file.seek(0)
    if path.name.lower().endswith((".json", ".json.gz")):
        if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            file.seek(0)
            yield from _listed_rows(file)
            return
        file.seek(0)
        if isinstance(_parse_line(file.readline(MAX_LINE_BYTES)), DataError):
            raise DataError("neither a list of rows nor one JSON object a line")
        file.seek(0)
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield DataError(f"a line of more than {MAX_LINE_BYTES >> 20} MiB")
        else:
            yield _parse_line(line)


def _listed_rows(file: IO[bytes]) -> Iterator[Row | DataError | None]:
    text = file.read(MAX_LIST_BYTES + 1)
    if len(text) > MAX_LIST_BYTES:
        raise DataError(f"a list of more than {MAX_LIST_BYTES >> 30} GiB", expected="a .jsonl file: one row a line")
    try:
        rows = _parse(text)
    except DataError as error:
        raise DataError(f"the file is not JSON: {error}") from None
    for row in rows:
        yield row if isinstance(row, dict) else DataError(f"an item is not a JSON object: {str(row)[:60]!r}")


def _parse_line(line: bytes) -> Row | DataError | None:
    if not line.strip():
        return None
    try:
        row = _parse(line)
    except DataError as error:
        return DataError(f"a line is not JSON: {error}")
    return row if isinstance(row, dict) else DataError(f"a line is not a JSON object: {str(row)[:60]!r}")


def _parse(text: bytes) -> Any:
    try:
        return _DECODER.decode(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(str(error)) from None


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
