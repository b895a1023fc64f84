"""Answers and a judging model or a reward model -> verdicts on the content.

A judge rules on every answer in two orders. An invalid reply leads to one retry; saved verdicts are not requested
again. An answer left undecided by a judge counts as wrong.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from puna.evaluation.scores import UNDECIDED
from puna.evaluation.tasks.grading.judge import DEFAULT_RUBRIC, Verdict, ask_again, judge_prompt, read_verdict
from puna.evaluation.tasks.grading.similarity import reference_of
from puna.evaluation.tasks.labels import answer_key
from puna.evaluation.tasks.question import Question
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Completer, Prompt, Sampling
from puna.inference.completer.settings import require_one_source
from puna.pipeline.config import StageConfig
from puna.pipeline.run import Run

CHUNK = 64  # Answers between two saves of the verdicts.


class JudgeSettings(StageConfig):
    """Settings of a judging model: checkpoint or endpoint, rubric, and the agreement with people required for judging.

    Example:
        >>> JudgeSettings(endpoint="http://localhost:8000/v1", model="judge-70b").name
        'judge-70b'
    """

    checkpoint: Path | None = Field(
        default=None, description="Checkpoint of the judging model, which runs in this process"
    )
    endpoint: str = Field(
        default="", description="OpenAI-compatible address of the judging model, up to /v1, in place of a checkpoint"
    )
    model: str = Field(default="", description="Name of the judging model at the endpoint")
    key_variable: str = Field(default="", description="Environment variable that holds the endpoint's API key")
    rubric: str = Field(default=DEFAULT_RUBRIC, min_length=1, description="Rubric: in words, when an answer is right")
    min_agreement: float = Field(
        default=0.8,
        gt=0.5,
        le=1,
        description="Smallest share of human labels, 0.5 to 1, that the judge must agree with before it judges",
    )
    min_labels: int = Field(
        default=30, ge=5, description="Smallest number of human labels on which the judge's agreement is measured"
    )
    max_tokens: int = Field(default=256, ge=16, description="Longest reply of the judge, in tokens")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_one_source(self.checkpoint, self.endpoint, self.model, spelling="judge.{}")
        if self.key_variable and not self.endpoint:
            raise ValueError("judge.key_variable beside judge.endpoint only")
        return self

    @property
    def name(self) -> str:
        """Name of the judge in reports."""
        return self.model or (self.checkpoint.name if self.checkpoint else "")


class Case(NamedTuple):
    """An answer to judge, with the question and the name of the task.

    Example:
        >>> Case("shop", question, Message("assistant", "At nine.")).task
        'shop'
    """

    task: str
    question: Question
    answer: Message


class Ruling(NamedTuple):
    """Ruling of a judge or reward model on an answer. `is_right` is None for an undecided answer.

    Example:
        >>> Ruling(True, "says the same time", evidence="At nine.").is_right
        True
    """

    is_right: bool | None
    reason: str
    evidence: str = ""


@dataclass
class Judge:
    """A judging model with all verdicts so far, kept across interruptions in the run's journal "verdicts".

    Example:
        >>> judge = Judge(settings, lambda: completer, run)
        >>> judge.rule([Case("shop", question, Message("assistant", "At nine."))])[0].is_right
        True
    """

    settings: JudgeSettings
    open: Callable[[], Completer]
    run: Run
    _model: Completer | None = None
    _rulings: dict[str, Ruling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._journal = self.run.journal("verdicts")
        self._rulings = {key: Ruling(*fields) for chunk in self._journal.records for key, fields in chunk.items()}

    @property
    def name(self) -> str:
        return f"the judge {self.settings.name}"

    def close(self) -> None:
        """Free the memory of the model; the next request reopens the model."""
        self._model = None

    def to_json(self) -> dict[str, Any]:
        """Return the judge's entries of judge.json."""
        names = ("rubric", "min_agreement", "min_labels")
        settings = {name: getattr(self.settings, name) for name in names}
        return {"judged_by": "judge", "judge": self.settings.name, **settings}

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        """Judge every answer, in the order given."""
        keys = [_key(case) for case in cases]
        new = list({key: case for key, case in zip(keys, cases, strict=True) if key not in self._rulings}.items())
        with self.run.progress(len(new), "judging", unit="answers") as bar:
            for start in range(0, len(new), CHUNK):
                chunk = new[start : start + CHUNK]
                rulings = dict(zip((key for key, _ in chunk), self._rule([case for _, case in chunk]), strict=True))
                self._journal.append(rulings)
                self._rulings |= rulings
                bar.advance(len(chunk))
        return [self._rulings[key] for key in keys]

    def _rule(self, cases: Sequence[Case]) -> list[Ruling]:
        rubric = self.settings.rubric
        orders = [
            (case, judge_prompt(case.question, case.answer, rubric, is_answer_first=is_first))
            for case in cases
            for is_first in (False, True)
        ]
        verdicts = self._ask(orders)
        return [_combine(*verdicts[at : at + 2]) for at in range(0, len(verdicts), 2)]

    def _ask(self, requests: Sequence[tuple[Case, Conversation]]) -> list[Verdict]:
        """Request a verdict per prompt; an invalid reply leads to one retry with the problem stated."""
        replies = self._complete([prompt for _, prompt in requests])
        verdicts = [_read(reply, case) for reply, (case, _) in zip(replies, requests, strict=True)]
        invalid = [at for at, verdict in enumerate(verdicts) if verdict.is_right is None]
        again = [ask_again(requests[at][1], replies[at], verdicts[at].reason) for at in invalid]
        for at, reply in zip(invalid, self._complete(again), strict=True):
            verdicts[at] = _read(reply, requests[at][0])
        return verdicts

    def _complete(self, conversations: Sequence[Conversation]) -> list[Message]:
        if not conversations:
            return []
        self._model = self._model or self.open()
        sampling = Sampling(temperature=0.0, max_tokens=self.settings.max_tokens)
        replies = self._model.complete([Prompt(each) for each in conversations], sampling)
        return [Message("assistant", reply.failure or reply.message.content) for reply in replies]


@dataclass
class RewardJudge:
    """A reward model as judge: an answer is right if the reward is at least the reward of the reference answer.

    Example:
        >>> judge = RewardJudge(Path("build/reward"))
        >>> judge.rule([Case("shop", question_without_reference, answer)])[0].reason
        'no reference to compare the reward with'
    """

    path: Path
    _model: RewardModel | None = None

    @property
    def name(self) -> str:
        return f"the reward model {self.path.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the reward model's entries of judge.json."""
        return {"judged_by": "reward", "judge": self.path.name}

    def close(self) -> None:
        """Free the memory of the model; the next comparison reopens the model."""
        self._model = None

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        """Judge every answer, in the order given.

        An answer stays undecided without a reference, or if answer or reference exceeds the reward model's context.
        """
        return [self._rule(case) for case in cases]

    def _rule(self, case: Case) -> Ruling:
        reference = reference_of(case.question)
        if not reference:
            return Ruling(None, "no reference to compare the reward with")
        self._model = self._model or RewardModel.open(self.path)
        conversation = case.question.conversation
        both = [conversation.with_message(case.answer), conversation.with_message(Message("assistant", reference))]
        if not all(map(self._model.can_read, both)):
            return Ruling(None, "longer than the reward model's context")
        answer, reference_score = self._model.score(both)
        return Ruling(answer >= reference_score, f"reward {answer:.4g}, that of the reference is {reference_score:.4g}")


def _key(case: Case) -> str:
    return json.dumps(answer_key(case.task, case.question.id, case.answer.to_json()))


def _read(reply: Message, case: Case) -> Verdict:
    return read_verdict(reply.content, case.question, case.answer)


def _combine(first: Verdict, second: Verdict) -> Ruling:
    """Return a decided ruling if both orders give the same valid verdict, otherwise an undecided ruling."""
    for verdict in (first, second):
        if verdict.is_right is None:
            return Ruling(None, f"{UNDECIDED}: the judge's reply is invalid, {verdict.reason}")
    if first.is_right != second.is_right:
        return Ruling(None, f"{UNDECIDED}: the judge's two orders disagree", first.quote)
    return Ruling(first.is_right, first.reason, first.quote)
