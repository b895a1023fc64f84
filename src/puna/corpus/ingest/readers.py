"""The formats that can be read: a name, the files it takes, and the function that reads one of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.ingest.read import Read
from puna.corpus.ingest.records import read_pairs, read_records
from puna.corpus.ingest.rows import SUFFIXES
from puna.corpus.ingest.taskmaster import read_taskmaster
from puna.corpus.ingest.text import read_text

Reader = Callable[[Path, str], Iterator[Read]]


@dataclass(frozen=True)
class Format:
    """`read(path, source)` yields rows in Puna's schema, or the reason why a record is none."""

    suffixes: tuple[str, ...]
    read: Reader


FORMATS = {
    "text": Format((".md", ".txt"), read_text),
    "records": Format(SUFFIXES, read_records),
    "preferences": Format(SUFFIXES, read_pairs),
    "taskmaster": Format((".json", ".json.gz"), read_taskmaster),
}
