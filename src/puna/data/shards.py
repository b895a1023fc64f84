"""JSONL and Parquet files <-> rows that can be read one by one, in any order, without holding them in memory."""

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from puna.errors import DataError

SUFFIXES = (".jsonl", ".parquet")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; return how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write rows as Parquet; return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return len(rows)


def find_shards(path: Path, name: str) -> list[Path]:
    """List the shards NAME*.jsonl and NAME*.parquet in a directory, or `path` itself if it is such a file."""
    if path.is_dir():
        return sorted(file for file in path.glob(f"{name}*") if file.suffix in SUFFIXES)
    return [path] if path.suffix in SUFFIXES and path.name.startswith(name) else []


def open_shard(path: Path) -> Sequence[dict[str, Any]]:
    """Open a shard as a sequence of rows; DataError if it cannot be read."""
    if not path.is_file():
        raise DataError(f"{path} does not exist", expected="a .jsonl or .parquet file")
    return ParquetRows(path) if path.suffix == ".parquet" else JsonlRows(path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of one shard in order."""
    rows = open_shard(path)
    return (rows[index] for index in range(len(rows)))


class JsonlRows(Sequence[dict[str, Any]]):
    """A memory-mapped JSONL file; a row is parsed when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            is_empty = path.stat().st_size == 0
            self.bytes = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ends = np.flatnonzero(np.frombuffer(self.bytes, dtype=np.uint8) == ord("\n")) + 1
        self.ends = ends if is_empty or self.bytes[-1:] == b"\n" else np.append(ends, len(self.bytes))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = 0 if index == 0 else int(self.ends[index - 1])
        try:
            row = json.loads(self.bytes[start : int(self.ends[index])])
        except ValueError as error:
            raise DataError(f"{self.path} line {index + 1} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.path} line {index + 1} is a {type(row).__name__}", expected="a JSON object")
        return row


class ParquetRows(Sequence[dict[str, Any]]):
    """A memory-mapped Parquet file; fields without a value are left out of a row."""

    def __init__(self, path: Path):
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(f"{path} needs pyarrow", hint="pip install 'puna[data]'") from None
        try:
            self.table = pq.read_table(path, memory_map=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a Parquet file ({error})") from None

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _without_none(self.table.slice(index, 1).to_pylist()[0])


def _without_none(value: Any) -> Any:
    """Undo Parquet's filling of absent struct fields with null."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
