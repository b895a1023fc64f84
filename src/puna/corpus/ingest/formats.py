"""Table of input formats: name, file suffixes, reader.

A new format is a reader in a file of its own and a row here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.ingest.records import read_pairs, read_records
from puna.corpus.ingest.results import Read
from puna.corpus.ingest.row_files import SUFFIXES
from puna.corpus.ingest.taskmaster import read_taskmaster
from puna.corpus.ingest.text import read_text

Reader = Callable[[Path, str], Iterator[Read]]


@dataclass(frozen=True)
class Format:
    """An input format; `read(path, source)` yields accepted rows and rejections.

    Example:
        >>> FORMATS["text"].suffixes
        ('.md', '.txt')
    """

    suffixes: tuple[str, ...]
    read: Reader


FORMATS = {
    "text": Format((".md", ".txt"), read_text),
    "records": Format(SUFFIXES, read_records),
    "preferences": Format(SUFFIXES, read_pairs),
    "taskmaster": Format((".json", ".json.gz"), read_taskmaster),
}
