"""JSONL and Parquet files <-> rows with random access.

JSONL files are memory-mapped; Parquet files are compressed and therefore decoded into memory.
"""

import json
import mmap
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from puna.formats.chat.padding import PADDED, without_padding
from puna.pipeline.errors import DataError

SUFFIXES = (".jsonl", ".parquet")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write a JSON object per line; return the number of rows."""
    count = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(encode_row(row))
            count += 1
    return count


def encode_row(row: dict[str, Any]) -> bytes:
    """Return a row as a line of UTF-8 JSON with the newline; dates and further foreign types become `str(value)`.

    Raises:
        DataError: The row holds NaN or infinity, is cyclic, or is nested too deeply.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, RecursionError) as error:
        raise DataError(f"a row that JSON cannot hold ({error})") from None
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but an escape in JSON
        return json.dumps(row, default=str).encode() + b"\n"


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write rows as Parquet; return the number of rows.

    Columns of objects or lists use Parquet's JSON type. In a struct column every object would get the fields of all
    objects.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, dict | list) for value in values):
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            columns[name] = pa.array(texts, pa.json_())
        else:
            columns[name] = pa.array(values)
    pq.write_table(pa.table(columns), path)
    return len(rows)


def find_shards(path: Path, name: str) -> list[Path]:
    """List the shards NAME*.jsonl and NAME*.parquet of a directory, or `path` for a single shard file."""
    if path.is_dir():
        return sorted(file for file in path.glob(f"{name}*") if file.suffix in SUFFIXES)
    return [path] if path.suffix in SUFFIXES and path.name.startswith(name) else []


def open_shard(path: Path) -> Sequence[dict[str, Any]]:
    """Open a shard as a sequence of rows; DataError for an unreadable file.

    Example:
        open_shard(Path("build/train/conversations.jsonl"))[0]["messages"]
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", expected="a .jsonl or .parquet file")
    return ParquetRows(path) if path.suffix == ".parquet" else JsonlRows(path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of a shard in order."""
    rows = open_shard(path)
    return (rows[index] for index in range(len(rows)))


class Rows(Sequence[dict[str, Any]]):
    """The rows of a shard as dictionaries. Example: see `open_shard`."""

    @abstractmethod
    def row(self, index: int) -> dict[str, Any]:
        """Return the row at `index`, from 0."""

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])


class JsonlRows(Rows):
    """A memory-mapped JSONL file; parses a row on access. Example: see `open_shard`."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            is_empty = path.stat().st_size == 0
            self.bytes = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ends = np.flatnonzero(np.frombuffer(self.bytes, dtype=np.uint8) == ord("\n")) + 1
        self.ends = ends if is_empty or self.bytes[-1:] == b"\n" else np.append(ends, len(self.bytes))

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> dict[str, Any]:
        start = 0 if index == 0 else int(self.ends[index - 1])
        try:
            row = json.loads(self.bytes[start : int(self.ends[index])])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} line {index + 1} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.path} line {index + 1} is a {type(row).__name__}", expected="a JSON object")
        return row


class ParquetRows(Rows):
    """A Parquet file; rows omit fields without a value, and columns of the JSON type are parsed.

    Args:
        path: Parquet file.
        with_nulls: Whether objects keep the nulls of absent keys, for readers with their own removal of nulls.

    Example: see `open_shard`.
    """

    def __init__(self, path: Path, *, with_nulls: bool = False):
        self.path, self.with_nulls = path, with_nulls
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(f"{path} needs pyarrow", hint="pip install 'puna[data]'") from None
        try:
            self.table = pq.read_table(path, memory_map=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a Parquet file ({error})") from None
        self._unreadable = (ValueError, TypeError, ArithmeticError, ImportError, pa.ArrowException)
        self.json_names = {field.name for field in self.table.schema if isinstance(field.type, pa.JsonType)}

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> dict[str, Any]:
        try:
            row = self.table.slice(index, 1).to_pylist()[0]
        except self._unreadable as error:
            raise DataError(f"{self.path} row {index + 1} holds a value that cannot be read ({error})") from None
        present = {name: value for name, value in row.items() if value is not None}
        try:
            parsed = {name: json.loads(value) for name, value in present.items() if name in self.json_names}
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} row {index + 1} holds a text that is not JSON ({error})") from None
        if self.with_nulls:
            return present | parsed
        stripped = without_padding(present | parsed)
        fields = {name: stripped[name] if name in PADDED else without_nulls(value) for name, value in present.items()}
        return fields | parsed


def without_nulls(value: Any) -> Any:
    """Remove Arrow's nulls for absent struct fields, in values without a meaning for null.

    Example:
        >>> without_nulls({"a": None, "b": [None, {"c": None}]})
        {'b': [None, {}]}
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
