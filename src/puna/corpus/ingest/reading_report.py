"""Results of readers -> places, ids, reasons and notes for the report of ingest."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from puna.corpus.ingest.checks.findings import EXAMPLES
from puna.corpus.ingest.checks.table import Places
from puna.corpus.ingest.results import Accepted, Read, Rejected
from puna.data.document import Document
from puna.data.overlap.prompts import digest
from puna.data.preference import Preference
from puna.formats.chat.conversation import Conversation

SHARDS: dict[type, str] = {Document: "documents", Conversation: "conversations", Preference: "preferences"}


def kind_of(reason: str) -> str:
    """Return the kind of a reason: the words before the colon.

    Example:
        >>> kind_of("not UTF-8: byte 3")
        'not UTF-8'
    """
    return reason.partition(":")[0]


@dataclass
class ReadingReport:
    """Running report: places and ids of rows by shard, reasons of rejections, and notes.

    Example:
        >>> reading = ReadingReport()
        >>> reading.reject(Rejected("a.md", "not UTF-8: byte 3"))
        >>> reading.reasons.total()
        1
    """

    places: dict[str, Places] = field(default_factory=lambda: {name: Places() for name in SHARDS.values()})
    reasons: Counter[str] = field(default_factory=Counter[str])
    rejected: list[dict[str, str]] = field(default_factory=list)
    spellings: Counter[str] = field(default_factory=Counter[str])
    columns: Counter[str] = field(default_factory=Counter[str])
    left_out: Counter[str] = field(default_factory=Counter[str])
    num_unanswered: int = 0
    # Digest of every id, with the index of its row.
    rows_by_id: dict[str, dict[int, int]] = field(default_factory=lambda: {name: {} for name in SHARDS.values()})

    def with_own_id(self, read: Accepted) -> Read:
        """Return the row with a unique id, or a rejection; the place replaces the id of a row with `may_share_id`."""
        kind = SHARDS[type(read.row)]
        earlier = self.rows_by_id[kind].get(digest(read.row.id))
        if earlier is None:
            return read
        if read.may_share_id:
            return self.with_own_id(read._replace(row=replace(read.row, id=read.place), may_share_id=False))
        return Rejected(
            read.place or read.row.id, f"an id of an earlier row: {read.row.id!r}, {self.places[kind][earlier]}"
        )

    def accept(self, read: Accepted, file: str, number: int) -> None:
        """Record place, id, layout and columns of a row."""
        kind = SHARDS[type(read.row)]
        self.rows_by_id[kind][digest(read.row.id)] = len(self.rows_by_id[kind])
        self.places[kind].add(file, number)
        self.spellings.update([read.spelling] if read.spelling else [])
        self.columns.update(read.descriptive)
        self.left_out.update(read.left_out)
        self.num_unanswered += isinstance(read.row, Conversation) and read.row.messages[-1].role != "assistant"

    def reject(self, read: Rejected) -> None:
        """Count a rejection; store the first few as examples."""
        self.reasons[kind_of(read.reason)] += 1
        if len(self.rejected) < EXAMPLES:
            self.rejected.append({"place": read.name, "text": read.reason})

    def notes(self) -> dict[str, Any]:
        """Return counts of layouts, metadata columns, omitted fields, and rows with an open question."""
        counts = {"spellings": self.spellings, "metadata_columns": self.columns, "left_out": self.left_out}
        listed = {name: dict(sorted(count.items())) for name, count in counts.items()}
        return {**listed, "unanswered": self.num_unanswered}

    def lines(self) -> Iterator[str]:
        """Yield the notes as lines of the log."""
        said = {"read as": self.spellings, "kept as metadata": self.columns, "left out": self.left_out}
        for words, counts in said.items():
            if counts and list(counts) != ["text"]:
                listed = ", ".join(f"{name} ({count:,} rows)" for name, count in sorted(counts.items()))
                yield f"  {words}: {listed}"
        if self.num_unanswered:
            yield f"  {self.num_unanswered:,} conversations end without an answer to the last message"
