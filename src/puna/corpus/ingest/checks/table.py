"""A shard of rows -> the rows, with places in the source and digests for comparison. Drops no row."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.corpus.ingest.checks.digests import row_digests
from puna.corpus.ingest.checks.near_duplicates import THRESHOLD, NearDuplicates, similarity
from puna.data.overlap.ngrams import split_words
from puna.data.overlap.prompts import answer_places, dialogue_of, said, system_texts
from puna.data.shards import open_shard

# Maximum number of rows to search for near duplicates: the signatures lie in memory.
MAX_NEAR_ROWS = 500_000
MAX_CACHED = 10_000


class Places:
    """Places of rows in the source: file and row number, in a few bytes per row.

    Example:
        places = Places()
        places.add("train.jsonl", 7)
        str(places[0])  # "train.jsonl row 7"
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._file_of, self._numbers = array("L"), array("L")

    def add(self, file: str, number: int) -> None:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._file_of.append(len(self._files) - 1)
        self._numbers.append(number)

    def __getitem__(self, index: int) -> str:
        return f"{self._files[self._file_of[index]]} row {self._numbers[index]}"


@dataclass
class Table:
    """The rows of one shard with the results of the checks; `left_out` maps a row index to the reason.

    `wholes`, `prompts`, `answers`, `only_answers` and `has_empty` hold one entry per row, as in RowDigests; the
    digest 0 stands for None.

    Example:
        >>> table = Table.read("conversations", Path("build/conversations.jsonl"), places)
        >>> table.num_kept
        1
    """

    kind: str
    rows: Sequence[dict[str, Any]]
    places: Places
    left_out: dict[int, str] = field(default_factory=dict)
    wholes: "array[int]" = field(default_factory=lambda: array("Q"))
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    answers: list[tuple[int, ...]] = field(default_factory=list)
    only_answers: "array[int]" = field(default_factory=lambda: array("Q"))
    has_empty: bytearray = field(default_factory=bytearray)
    near: NearDuplicates = field(default_factory=NearDuplicates)

    @classmethod
    def read(cls, kind: str, path: Path, places: Places) -> "Table":
        """Compute the digests of every row of a shard."""
        table, seen = cls(kind, open_shard(path), places), set[int]()
        for index, row in enumerate(table.rows):
            compared = row_digests(row)
            table.wholes.append(compared.whole)
            table.prompts.append(compared.prompt or 0)
            table.answers.append(compared.answers)
            table.only_answers.append(compared.only_answer or 0)
            table.has_empty.append(compared.has_empty_answer)
            if compared.whole not in seen and index < MAX_NEAR_ROWS:
                table.near.add(index, compared.words)
            seen.add(compared.whole)
        return table

    def kept(self) -> Iterator[int]:
        """Yield the indices of the rows that are not left out."""
        return (index for index in range(len(self.rows)) if index not in self.left_out)

    @property
    def num_kept(self) -> int:
        return len(self.rows) - len(self.left_out)

    def copies(self) -> dict[int, int]:
        """Map every kept row that repeats an earlier kept row, descriptive fields aside, to the earlier row."""
        first: dict[int, int] = {}
        return {
            index: earlier for index in self.kept() if (earlier := first.setdefault(self.wholes[index], index)) < index
        }

    def near_copies(self) -> dict[int, int]:
        """Map every kept row that is nearly an earlier kept row, but no exact copy of any row, to the earlier row.

        Nearly: a Jaccard similarity of word 3-grams of at least 0.8, separately in the system message with settings, in
        the dialogue, and in the answers; for documents, in the text.
        """
        near: dict[int, int] = {}
        words: dict[int, list[list[str]]] = {}
        for index, earlier in self.near.pairs():
            if index in near or index in self.left_out or earlier in self.left_out:
                continue
            if len(words) > MAX_CACHED:
                words.clear()
            parts = (words.setdefault(each, _parts(self.rows[each])) for each in (index, earlier))
            if all(similarity(one, other) >= THRESHOLD for one, other in zip(*parts, strict=True)):
                near[index] = earlier
        return near


def _parts(row: dict[str, Any]) -> list[list[str]]:
    """Return the words of the system message with settings, of the dialogue, and of the answers; or of a document."""
    messages, _ = dialogue_of(row)
    if not messages:
        return [split_words(str(row["text"]))]
    fixed = {name: row[name] for name in ("tools", "environment") if name in row}
    answers = [said(messages[index]) for index in answer_places(row, messages)]
    dialogue = [said(message) for message in (*messages, *row.get("rejected", []))]
    texts = ["\n".join([*system_texts(row), *([str(fixed)] if fixed else [])]), "\n".join(dialogue), "\n".join(answers)]
    return [split_words(text) for text in texts]
