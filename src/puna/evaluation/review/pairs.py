"""An evaluation's directory -> pairs of answers to judge: two checkpoints' answers to the same question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.data.shards import read_rows
from puna.evaluation.scores import conversations_name
from puna.evaluation.tasks.labels import AnswerKey, answer_key
from puna.pipeline.errors import ConfigError, DataError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant message, and the checkpoints with this answer.

    Attributes:
        message: The assistant message in JSON.
        checkpoints: Names of the checkpoints in the evaluation.
        rule_score: Score by a rule, 0 to 1; None without a rule for the content.

    Example:
        >>> Answer({"role": "assistant", "content": "At nine."}, ("mine",), None).rule_score is None
        True
    """

    message: Row
    checkpoints: tuple[str, ...]
    rule_score: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with two different answers; with one answer if one checkpoint is reviewed or both answers are equal.

    Example:
        >>> [pair] = read_pairs(Path("build/evaluate"), ["base", "mine"])
        >>> [answer.checkpoints for answer in pair.answers]
        [('base',), ('mine',)]
    """

    task: str
    id: str
    group: str
    conversation: Row
    expected: Row
    answers: tuple[Answer, ...]

    @property
    def is_judged_by_rule(self) -> bool:
        """Whether a rule judged the content of every answer."""
        return all(answer.rule_score is not None for answer in self.answers)

    def key(self, answer: Answer) -> AnswerKey:
        """Return the key of an answer for a search among labels."""
        return answer_key(self.task, self.id, answer.message)


def read_pairs(evaluation: Path, names: Sequence[str]) -> list[Pair]:
    """Read the answers of one or two checkpoints, in the order of the questions.

    Raises:
        ConfigError: A checkpoint has no answers in the evaluation.
        DataError: The answers cannot be read, or the two checkpoints have different questions.

    Example:
        >>> pairs = read_pairs(Path("build/evaluate"), ["base", "mine"])
        >>> [answer.checkpoints for answer in pairs[0].answers]
        [('base',), ('mine',)]
    """
    columns = [_read_answers(evaluation, name) for name in names]
    if any(column.keys() != columns[0].keys() for column in columns):
        raise DataError(
            f"{evaluation}: {' and '.join(names)} were asked different questions", expected="the same questions"
        )
    return [_pair([column[key] for column in columns], names) for key in columns[0]]


def _read_answers(evaluation: Path, name: str) -> dict[tuple[str, str], Row]:
    path = evaluation / conversations_name(name)
    rows: dict[tuple[str, str], Row] = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            rows[row["task"], row["id"]] = row
            _ = row["answer"]["role"], row["conversation"]["messages"], row["expected"], row["score"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} row {number} lacks {error}", expected="a row as 'puna evaluate' writes it"
            ) from None
    if not rows:
        raise DataError(f"{path} is empty", expected="answers as 'puna evaluate' writes them")
    return rows


def _pair(rows: Sequence[Row], names: Sequence[str]) -> Pair:
    first = rows[0]
    task, id = first["task"], first["id"]
    answers: dict[AnswerKey, Answer] = {}
    for row, name in zip(rows, names, strict=True):
        key = answer_key(task, id, row["answer"])
        others = answers[key].checkpoints if key in answers else ()
        answers[key] = Answer(row["answer"], (*others, name), _rule_score(row))
    return Pair(task, id, first.get("group", ""), first["conversation"], first["expected"], tuple(answers.values()))


def _rule_score(row: Row) -> float | None:
    """Return the score by a rule; in evaluations without the field `judged`, every rule but `no_call` judges."""
    is_judged = row.get("judged", row.get("grade") != "no_call")
    return float(row["score"]) if is_judged and row.get("judged_by", "rule") == "rule" else None


def choose_names(asked: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """Return the checkpoints to review: the chosen names, by default the evaluation's first and last checkpoint.

    The first checkpoint is the baseline of `puna evaluate`; the last is the newest in the recipes.

    Raises:
        ConfigError: A chosen name is unknown or repeated, or there are more than two.

    Example:
        >>> choose_names(["base", "teacher", "mine"], [])
        ('base', 'mine')
    """
    for name in chosen:
        if name not in asked:
            raise ConfigError(f"--checkpoints {name}", expected=f"names of evaluated checkpoints: {', '.join(asked)}")
    if len(set(chosen)) != len(chosen) or len(chosen) > 2:
        raise ConfigError(f"--checkpoints {' '.join(chosen)}", expected="one name, or two different names")
    return tuple(chosen) or tuple(dict.fromkeys((asked[0], asked[-1])))
