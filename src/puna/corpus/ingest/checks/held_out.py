"""Held-out datasets and the rows of another dataset -> the rows that contain a held-out question.

A row matches if the whole prompt equals a held-out prompt word for word. Long questions also match by n-grams
(data/overlap), as in the release gate. Paraphrases and translations are not found.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from puna.data.overlap.ngrams import Probe, find_rows, reach, row_text, split_words
from puna.data.overlap.prompts import answer_places, dialogue_of, prompt_digest, said, system_texts
from puna.data.preference import Preference
from puna.data.shards import SUFFIXES, read_rows
from puna.formats.chat.conversation import Conversation
from puna.pipeline.errors import ChatError, DataError

# N-gram length in words, and threshold on the share of a question's n-grams; the values of the release gate.
N, SHARE = 13, 0.5
# Name prefixes of dataset files that hold no questions.
ASIDE = ("rejected", "run_", ".")


@dataclass(frozen=True, slots=True)
class Row:
    """A row to search for held-out questions: index, fields, and the digest of the prompt.

    Example:
        >>> Row(0, {"messages": []}, prompt=None).index
        0
    """

    index: int
    fields: dict[str, Any]
    prompt: int | None


@dataclass(frozen=True)
class HeldOut:
    """The questions of held-out datasets. `prompts` maps the digest of a whole prompt to the place of a held-out row.

    `num_short` counts the questions too short for n-grams, which match as whole prompts only. Of the others n-grams
    find `num_beside_answers` only in a row with the answer.

    Example:
        held_out = HeldOut.read([Path("build/held_out")])
    """

    probes: Sequence[Probe]
    prompts: dict[int, str]
    num_short: int
    num_beside_answers: int

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "HeldOut":
        """Read the questions of datasets: directories with JSONL or Parquet shards, or single shards."""
        probes: list[Probe] = []
        prompts: dict[int, str] = {}
        for path in paths:
            for place, row in _rows(path):
                for probe, prompt in _questions(place, _as_shard(row)):
                    probes.append(probe)
                    if prompt is not None:
                        prompts.setdefault(prompt, place)
        return cls(probes, prompts, *map(len, reach(probes, n=N)))

    @property
    def summary(self) -> str:
        """Number of held-out questions, by the way of matching."""
        long, beside = len(self.probes) - self.num_short, self.num_beside_answers
        aside = f"; {beside:,} of these only beside the answer or as a whole prompt" if beside else ""
        words = f"{long:,} by their words ({N} in a row, or all{aside})"
        return (
            f"looked for {len(self.probes):,} held-out questions: {words}, "
            f"{self.num_short:,} of too few words only where the whole prompt is the same"
        )

    def overlapping(self, rows: Iterable[Row]) -> dict[int, str]:
        """Map the index of every overlapping row to the place of the held-out row with the question."""
        overlaps: dict[int, str] = {}

        def other_rows() -> Iterator[tuple[str, str]]:
            for row in rows:
                if row.prompt is not None and row.prompt in self.prompts:
                    overlaps[row.index] = self.prompts[row.prompt]
                else:
                    yield str(row.index), row_text(row.fields)

        for overlap in find_rows(self.probes, other_rows(), n=N, threshold=SHARE):
            overlaps[int(overlap.place)] = overlap.name
        return overlaps


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the fields of every row of a dataset."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in SUFFIXES and not file.name.startswith(ASIDE)]
    if not files:
        raise DataError(f"apart_from has {path}", expected="a dataset, or a .jsonl or .parquet file with rows")
    for file in files:
        name = f"{path.name}/{file.name}" if path.is_dir() else file.name
        for number, row in enumerate(read_rows(file), start=1):
            yield f"{name} row {number}", row


def _as_shard(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in the schema of Puna's shards; a row of unknown schema becomes a document."""
    known = {entry.name for entry in fields(Conversation)}
    try:
        if "messages" in row:
            return Conversation.from_json({name: row[name] for name in known & row.keys()}).to_json()
        if "chosen" in row:
            return Preference.from_json(row).to_json()
        if isinstance(row.get("conversation"), dict):
            return {**row, "conversation": Conversation.from_json(row["conversation"]).to_json()}
    except ChatError:
        pass
    return {"text": row_text(row)}


def _questions(place: str, row: dict[str, Any]) -> Iterator[tuple[Probe, int | None]]:
    """Yield the questions of a row with prompt digests: one question per answer of the assistant.

    A conversation without an answer is one question. A text is one question without a prompt digest.
    """
    if "conversation" in row:  # a question of a task: the conversation ends before the answer
        messages, _ = dialogue_of(row["conversation"])
        yield _question(place, row["conversation"], messages, row_text(row.get("expected")), row.get("group") or place)
        return
    messages, _ = dialogue_of(row)
    indices = [index for index in answer_places(row, messages) if index]
    for index in indices:
        yield _question(place, row, messages[:index], said(messages[index]), place)
    if messages and not indices:
        yield _question(place, row, messages, "", place)
    if not messages:
        yield Probe(place, row_text(row)), None


def _question(
    place: str, row: dict[str, Any], messages: list[dict[str, Any]], answer: str, group: str
) -> tuple[Probe, int | None]:
    users = [message["content"] for message in messages if message["role"] == "user"]
    text = "\n".join([*system_texts(row), *map(said, messages)])
    prompt = prompt_digest(row, [split_words(said(message)) for message in messages])
    answers = (answer,) if answer.strip() else ()
    return Probe(place, text, users[-1] if users else "", answers, group), prompt
