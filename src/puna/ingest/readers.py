"""The formats that can be read: a name, the files it takes, and the function that reads one of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.chat.conversation import Conversation
from puna.data.document import Document
from puna.data.preference import Preference
from puna.ingest.pairs import read_pairs
from puna.ingest.records import read_records
from puna.ingest.taskmaster import read_taskmaster
from puna.ingest.text import read_text

Reader = Callable[[Path, str], Iterator[Document | Conversation | Preference | tuple[str, str]]]


@dataclass(frozen=True)
class Format:
    """`read(path, source)` yields documents, conversations, preferences, or (id, reason) for what it must reject."""

    suffixes: tuple[str, ...]
    read: Reader


FORMATS = {
    "text": Format((".md", ".txt"), read_text),
    "records": Format((".jsonl", ".jsonl.gz", ".parquet"), read_records),
    "preferences": Format((".jsonl", ".jsonl.gz", ".parquet"), read_pairs),
    "taskmaster": Format((".json", ".json.gz"), read_taskmaster),
}
