"""Files of questions or conversations -> a Task: validated questions with their grading rules."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.data.shards import find_shards, read_rows
from puna.evaluation.tasks.fields import require_fields
from puna.evaluation.tasks.grading.facts import required_facts
from puna.evaluation.tasks.grading.table import EXPECTED, GRADES
from puna.evaluation.tasks.next_turn_questions import recurring_names, turn_questions
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Conversation, Message
from puna.pipeline.errors import ChatError, DataError

REQUIRED = {"id": str, "conversation": dict, "expected": dict, "grade": str}
OPTIONAL = {"group": str}


@dataclass(frozen=True)
class Task:
    """Questions with grading rules.

    Example:
        >>> task = Task.load(Path("data/shop"))
        >>> task.grade(task.questions[0], Message("assistant", "It costs 24.90.")).score
        1.0
    """

    name: str
    questions: tuple[Question, ...]

    @classmethod
    def load(cls, path: Path) -> "Task":
        """Read a questions file, or a folder of files; conversations give a question per assistant turn.

        Raises:
            DataError: A row does not fit; the message names file, row and field.
        """
        questions: dict[str, Question] = {}
        for where, question in _questions(path):
            if question.id in questions:
                raise DataError(f"{where} has the id '{question.id}' again", expected="unique ids within a task")
            questions[question.id] = question
        if not questions:
            raise DataError(f"{path} has no questions", expected="questions*.jsonl or conversations*.jsonl with rows")
        named = path.resolve() if path.name in ("", "..") else path  # "." and ".." name no folder
        name = named.name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
        return cls(name, tuple(questions.values()))

    def grade(self, question: Question, message: Message) -> Grade:
        """Grade an answer with the rule of the question."""
        return GRADES[question.grade](question, message)

    def sample(self, max_questions: int, seed: int) -> "Task":
        """Draw at most `max_questions` in proportion to the groups, in the original order.

        Whole groups would cost as much and tell less, since the questions of a group are alike.
        """
        num_questions = len(self.questions)
        if max_questions >= num_questions:
            return self
        source = random.Random(seed)
        drawn = list(range(num_questions))
        source.shuffle(drawn)
        drawn.sort(key=lambda index: self.questions[index].group)
        # Systematic sampling: a fixed step from a random start gives every question the same chance.
        start = source.randrange(num_questions)
        chosen = sorted(drawn[(start + number * num_questions) // max_questions] for number in range(max_questions))
        return replace(self, questions=tuple(self.questions[index] for index in chosen))


def _questions(path: Path) -> Iterator[tuple[str, Question]]:
    """Yield every question with file and row."""
    files = find_shards(path, "questions") if path.is_dir() else [path]
    conversations: list[tuple[str, Conversation]] = []
    for file in files or find_shards(path, "conversations"):
        for line, row in enumerate(read_rows(file), 1):
            where = f"{file} row {line}"
            if "messages" in row:
                conversation = replace(_read_conversation(row, where), id=str(row.get("id") or line))
                conversations.append((where, conversation))
            else:
                yield where, _read_question(row, where)
    names = recurring_names(conversation for _, conversation in conversations)
    for where, conversation in conversations:
        yield from ((where, question) for question in turn_questions(conversation, names))


def _read_conversation(row: dict[str, Any], where: str) -> Conversation:
    try:
        return Conversation.from_json(row)
    except ChatError as error:
        raise DataError(f"{where}: conversation: {error}") from None


def _read_question(row: dict[str, Any], where: str) -> Question:
    require_fields(row, where, REQUIRED, OPTIONAL)
    if row["grade"] not in GRADES:
        raise DataError(f"{where}: grade = '{row['grade']}'", expected=", ".join(GRADES))
    conversation = _read_conversation(row["conversation"], where)
    if not conversation.messages or conversation.messages[-1].role == "assistant":
        raise DataError(f"{where}: conversation", expected="a conversation that does not end with the assistant")
    _require_expected(row["expected"], row["grade"], where)
    question = Question(**{**row, "conversation": conversation})
    if question.grade == "facts" and not required_facts(question).required:
        raise DataError(
            f"{where}: the reference states no new fact: {question.expected['reference'][:80]!r}",
            expected="a number, date, time, address, id or name that the user's last message does not have",
            hint="Give `facts`, the texts that an answer must have, or another grade",
        )
    return question


def _require_expected(expected: dict[str, Any], grade: str, where: str) -> None:
    """Refuse values of `expected` that every answer would pass, or no answer could."""
    required, optional = EXPECTED[grade]
    require_fields(expected, f"{where}: expected of grade '{grade}'", required, optional)
    for name, value in expected.items():
        texts = value if isinstance(value, list) else [value] if isinstance(value, str) else ["-"]
        is_empty = not texts and name in required
        if is_empty or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: expected.{name} = {value!r}", expected="non-empty text")
    if expected.get("no_call") is False:
        raise DataError(f"{where}: expected.no_call = false", expected="true, or the grade tool_call")
