"""Files of human labels -> verdicts on answers, and answers with disagreeing reviewers.

`puna review` writes the files; `puna evaluate` reads them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from puna.evaluation.tasks.fields import require_fields
from puna.pipeline.errors import DataError

REQUIRED: dict[str, type] = {"task": str, "id": str, "answer": dict, "right": bool, "reviewer": str, "at": str}
OPTIONAL: dict[str, type] = {"checkpoint": str, "side_by_side_with": str}
EXAMPLE_TIME = "2026-12-01T09:30:00+00:00"

AnswerKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Label:
    """One reviewer's verdict on one answer to one question.

    Attributes:
        task: Name of the question's task.
        id: Id of the question in the task.
        answer: Assistant message in JSON, as in conversations-NAME.jsonl.
        right: Whether the reviewer would send the answer.
        reviewer: Name of the reviewer.
        at: Time of the verdict, ISO 8601 with a UTC offset.
        checkpoint: Name of the checkpoint, or of one of several checkpoints with this answer.
        side_by_side_with: Name of the checkpoint with the answer beside; empty for an answer alone.

    Example:
        >>> answer = {"role": "assistant", "content": "At nine."}
        >>> Label("shop", "7/2", answer, True, "ada", "2026-12-01T09:30:00+00:00").right
        True
    """

    task: str
    id: str
    answer: dict[str, Any]
    right: bool
    reviewer: str
    at: str
    checkpoint: str = ""
    side_by_side_with: str = ""

    @property
    def key(self) -> AnswerKey:
        """Task, question and answer; labels with equal keys judge the same answer."""
        return answer_key(self.task, self.id, self.answer)

    def to_json(self) -> dict[str, Any]:
        """Return the line of a labels file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str) -> Self:
        """Check one line of a labels file.

        Raises:
            DataError: A field is missing, unknown or of another type; the message begins with `where`.
        """
        require_fields(row, where, REQUIRED, OPTIONAL)
        for name in ("task", "id", "reviewer"):
            if not row[name]:
                raise DataError(f"{where}: {name} is empty", expected="non-empty text")
        if row["answer"].get("role") != "assistant":
            raise DataError(
                f"{where}: answer is no assistant message", expected='{"role": "assistant", "content": ...}'
            )
        _parse_time(row["at"], where)
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer with disagreeing reviewers.

    Example:
        >>> Disagreement("shop", "7/2", {"role": "assistant", "content": "At nine."}, ("ada",), ("bob",)).wrong
        ('bob',)
    """

    task: str
    id: str
    answer: dict[str, Any]
    right: tuple[str, ...]
    wrong: tuple[str, ...]


class Labels:
    """Human labels by answer. The latest label of a reviewer for an answer counts.

    Example:
        >>> labels = read_labels([Path("labels.jsonl")])
        >>> labels.verdict("shop", "7/2", {"role": "assistant", "content": "At nine."})
        True
    """

    def __init__(self, labels: Iterable[Label] = ()):
        self._by_answer: dict[AnswerKey, dict[str, Label]] = {}
        # sorted() keeps the order of labels of the same time: the last line wins.
        for label in sorted(labels, key=lambda label: _parse_time(label.at, "label")):
            self._by_answer.setdefault(label.key, {})[label.reviewer] = label

    def __len__(self) -> int:
        """Return the number of answers with a label."""
        return len(self._by_answer)

    def __iter__(self) -> Iterator[Label]:
        """Iterate over the counted labels: one per answer and reviewer."""
        return (label for by_reviewer in self._by_answer.values() for label in by_reviewer.values())

    def verdict(self, task: str, id: str, answer: dict[str, Any]) -> bool | None:
        """Return whether reviewers call an answer right; None without a label, or if reviewers disagree."""
        by_reviewer = self._by_answer.get(answer_key(task, id, answer), {})
        verdicts = {label.right for label in by_reviewer.values()}
        return verdicts.pop() if len(verdicts) == 1 else None

    @property
    def disagreements(self) -> tuple[Disagreement, ...]:
        """Answers with disagreeing reviewers, in the order of the first labels."""
        return tuple(
            Disagreement(
                first.task,
                first.id,
                first.answer,
                right=tuple(name for name, label in by_reviewer.items() if label.right),
                wrong=tuple(name for name, label in by_reviewer.items() if not label.right),
            )
            for by_reviewer in self._by_answer.values()
            for first in [next(iter(by_reviewer.values()))]
            if len({label.right for label in by_reviewer.values()}) == 2
        )


def read_labels(paths: Iterable[Path]) -> Labels:
    """Read files of labels with one JSON object per line.

    An incomplete last line, cut off by an interruption, is ignored.

    Raises:
        DataError: A file cannot be read, or a row does not fit; the message names file and row.

    Example:
        >>> labels = read_labels([Path("labels.jsonl")])
        >>> labels.verdict("shop", "7/2", {"role": "assistant", "content": "At nine."})
        True
    """
    return Labels(label for path in paths for label in read_file(path))


def read_file(path: Path) -> list[Label]:
    """Read the labels of one file in the order of the lines; errors as in `read_labels`.

    Example:
        >>> [label.reviewer for label in read_file(Path("labels.jsonl"))]
        ['ada']
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        hint = "'puna review' writes label files"
        raise DataError(f"{path}: {error.strerror}", expected="a file of labels", hint=hint) from None
    labels: list[Label] = []
    for number, line in enumerate(lines, 1):
        where = f"{path} row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{where} is not JSON ({error})", expected="a label as a JSON object") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}", expected="a JSON object")
        labels.append(Label.from_json(row, where))
    return labels


def answer_key(task: str, id: str, answer: dict[str, Any]) -> AnswerKey:
    """Return equal keys for equal answers to the same question, whatever the order of the JSON fields.

    Example:
        >>> answer_key("shop", "7/2", {"content": "At nine.", "role": "assistant"})
        ('shop', '7/2', '{"content": "At nine.", "role": "assistant"}')
    """
    return task, id, json.dumps(answer, sort_keys=True)


def _parse_time(text: str, where: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise DataError(f"{where}: at = '{text}'", expected=f"a time with its UTC offset, such as {EXAMPLE_TIME}")
    return time
