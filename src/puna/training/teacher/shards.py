"""Labelled rows -> shards in a run's directory, which a resumed run keeps, and finally the artifact's files.

A shard is complete once the run's journal has a note with the hash of every file. Rows keep their order. A shard holds
either documents or conversations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.data.labels import write_shard
from puna.data.shards import write_jsonl
from puna.formats.chat.conversation import Conversation
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError
from puna.pipeline.run import Run
from puna.pipeline.storage.files import link_or_copy, make_directory
from puna.training.teacher.teacher import Labelled


@dataclass
class Note:
    """Contents of a shard: end row of the stream, counts, sums over labels, and left-out rows by reason.

    `files`: name -> {size, sha256}.

    Example: `ShardDirectory.notes`.
    """

    end: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_labels: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class ShardDirectory:
    """The complete shards of a run. A missing file discards the shard and all later shards.

    Example:
        >>> shards = ShardDirectory(run, vocab_size=tokenizer.vocab_size)
        >>> shards.write(end=100, labelled=teacher.label(items, bar.advance))

    Raises:
        ArtifactError: A file of a complete shard was altered.
    """

    def __init__(self, run: Run, *, vocab_size: int):
        self._directory, self._vocab_size = run.directory / "shards", vocab_size
        make_directory(self._directory)
        self._journal = run.journal("shards")
        for number, note in enumerate(self._journal.records):
            missing = [name for name in note["files"] if not (self._directory / name).is_file()]
            if missing:
                run.log(f"{self._directory / missing[0]} is missing: resuming before this shard")
                self._journal.cut(number)
                break
            self._verify(note["files"])
        self.notes = [Note(**note) for note in self._journal.records]

    def _verify(self, files: dict[str, dict[str, Any]]) -> None:
        for name, entry in files.items():
            if artifact.entry(self._directory / name) != entry:
                hint = "Delete the file: the run labels the rows of this shard again and keeps earlier shards"
                raise ArtifactError(f"{self._directory / name} was altered or cut short", hint=hint)

    @property
    def end(self) -> int:
        """Number of finished rows of the stream."""
        return self.notes[-1].end if self.notes else 0

    def write(self, end: int, labelled: Sequence[Labelled]) -> None:
        """Write a shard; the journal entry comes last, after all files."""
        number = f"{len(self.notes):05d}"
        pairs = [(each.row, each.labels) for each in labelled if each.labels is not None]
        note = Note(end, left_out=dict(Counter(each.reason for each in labelled if each.labels is None)))
        if pairs:
            rows = [labels for _, labels in pairs]
            kind = "conversations" if isinstance(pairs[0][0], Conversation) else "documents"
            path = self._directory / f"{kind}-{number}.jsonl"
            write_jsonl(path, (row.to_json() for row, _ in pairs))
            labels = self._directory / f"labels-{number}.safetensors"
            write_shard(labels, rows, vocab_size=self._vocab_size)
            note.files = {each.name: artifact.entry(each) for each in (path, labels)}
            artifact.fsync(self._directory)
            note.num_rows, note.num_tokens = len(rows), sum(len(labels.ids_T) for labels in rows)
            note.num_labels = sum(len(labels.tail_N) for labels in rows)
            note.sums = _sums(np.concatenate([labels.top_NK for labels in rows]), *(
                np.concatenate([getattr(labels, name) for labels in rows]) for name in ("tail_N", "chosen_N")
            ))  # fmt: skip
        self._journal.append(asdict(note))
        self.notes.append(note)

    def total(self) -> Note:
        """Return the totals over all shards."""
        whole = Note(self.end)
        for note in self.notes:
            whole.num_rows += note.num_rows
            whole.num_tokens += note.num_tokens
            whole.num_labels += note.num_labels
            whole.sums = {name: whole.sums.get(name, 0.0) + value for name, value in note.sums.items()} or whole.sums
            whole.left_out = dict(Counter(whole.left_out) + Counter(note.left_out))
        return whole

    def publish(self, output: Path) -> None:
        """Link the files into the artifact, or copy where the file system has no links."""
        for name in (name for note in self.notes for name in note.files):
            link_or_copy(self._directory / name, output / name)


def _sums(top_NK: np.ndarray, tail_N: np.ndarray, chosen_N: np.ndarray) -> dict[str, float]:
    """Return sums over labels: tail mass, loss of the text's tokens, entropy, and two counts.

    `first` counts text tokens equal to the teacher's most likely token, `covered` text tokens among the entries.
    """
    top, tail, chosen = (np.maximum(values.astype(np.float64), -87.0) for values in (top_NK, tail_N, chosen_N))
    entropy = -(np.exp(top) * top).sum() - (np.exp(tail) * tail).sum()
    least_N = np.where(np.isfinite(top_NK), top_NK, np.inf).min(-1)
    return {
        "tail": float(np.exp(tail).sum()),
        "loss": float(-chosen.sum()),
        "entropy": float(entropy),
        "first": float((chosen_N >= top_NK[:, 0]).sum()),
        "covered": float((chosen_N >= least_N).sum()),
    }
