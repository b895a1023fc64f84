"""Files of human labels -> the verdict on an answer, and the answers that reviewers disagree about.

`puna review` writes these files; `puna evaluate` reads them. Grades nothing and knows no checkpoint.
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
        task: Name of the task that the question belongs to.
        id: Id of the question in its task.
        answer: Assistant message in JSON, as a row of conversations-NAME.jsonl holds it.
        right: Whether the reviewer would send the answer.
        reviewer: Name of the reviewer.
        at: Time of the verdict, ISO 8601 with a UTC offset.
        checkpoint: Name of the checkpoint that gave the answer; several may have given it.
        side_by_side_with: Name of the checkpoint whose answer stood beside this one; empty where it stood alone.

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
        """Task, question and answer: labels with equal keys judge the same answer."""
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
                raise DataError(f"{where}: {name} is empty", expected="text")
        if row["answer"].get("role") != "assistant":
            raise DataError(
                f"{where}: answer is no assistant message", expected='{"role": "assistant", "content": ...}'
            )
        _parse_time(row["at"], where)
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer that some reviewers call right and others wrong.

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
    """Human labels, by answer. Of one reviewer's labels of the same answer the latest counts.

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
        """Iterate over the labels that count: one for each answer and reviewer."""
        return (label for by_reviewer in self._by_answer.values() for label in by_reviewer.values())

    def verdict(self, task: str, id: str, answer: dict[str, Any]) -> bool | None:
        """Return whether reviewers call an answer right; None without a label or where reviewers disagree."""
        by_reviewer = self._by_answer.get(answer_key(task, id, answer), {})
        verdicts = {label.right for label in by_reviewer.values()}
        return verdicts.pop() if len(verdicts) == 1 else None

    @property
    def disagreements(self) -> tuple[Disagreement, ...]:
        """Answers that reviewers disagree about, in the order of the first label of each."""
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
    """Read files of labels, one JSON object a line.

    A last line without a line feed that is no JSON was cut off while it was written, and is passed over.

    Raises:
        DataError: A file cannot be read, or a row does not fit; the message names file and row.

    Example:
        >>> labels = read_labels([Path("labels.jsonl")])
        >>> labels.verdict("shop", "7/2", {"role": "assistant", "content": "At nine."})
        True
    """
    return Labels(label for path in paths for label in read_file(path))


def read_file(path: Path) -> list[Label]:
    """Read the labels of one file, in the order of its lines; errors as in `read_labels`.

    Example:
        >>> [label.reviewer for label in read_file(Path("labels.jsonl"))]
        ['ada']
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        hint = "'puna review' writes one"
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
            raise DataError(f"{where} is not JSON ({error})", expected="a label") from None
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
