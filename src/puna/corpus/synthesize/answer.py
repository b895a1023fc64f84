"""Questions and a model -> conversations with its answers: the best, all that are good, and pairs to prefer by.

With one answer and no judge this is distillation by sequences; with several and a judge it is rejection sampling. No
answer is dropped without a reason: rejected.jsonl has those that are not learned from.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from puna.corpus.synthesize.asking import Ask, Asker, Reply
from puna.corpus.synthesize.picking import Candidate, Picked, Rule
from puna.data.dataset import Dataset
from puna.data.shards import find_shards, write_jsonl
from puna.evaluation.tasks import GRADES, Question, Task
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Completer, Sampling
from puna.inference.completer.endpoint import EndpointCompleter, require_one_source
from puna.inference.completer.local import LocalCompleter
from puna.inference.engine.options import EngineOptions
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import DataError
from puna.pipeline.progress import Progress
from puna.pipeline.run import Run

# Rounds of a full batch between two saves: the rest of a batch runs emptier, so not every one is saved.
ROUNDS = 8


class Config(StageConfig):
    """Who answers what, how often, and which answers are kept."""

    questions: list[Path] = Field(min_length=1, description="tasks, or conversations whose every turn is a question")
    checkpoint: Path | None = Field(default=None, description="the model that answers, in this process")
    endpoint: str = Field(default="", description="or an OpenAI-compatible address, up to /v1")
    model: str = Field(default="", description="the model's name there")
    key_variable: str = Field(default="", description="environment variable that holds the endpoint's key")
    licence: str = Field(default="", description="terms of what the endpoint's model writes, which are inherited")
    num_answers: int = Field(default=1, ge=1, le=1000, description="answers to each question")
    temperature: float = Field(default=0.6, ge=0, le=2, description="0 takes the most likely token")
    top_p: float = Field(default=0.9, gt=0, le=1, description="share of the probability to sample from")
    max_tokens: int = Field(default=512, ge=1, description="longest answer")
    max_questions: int | None = Field(default=None, ge=1, description="of each source, drawn from its groups")
    seed: int = Field(default=0, ge=0, description="of the draw of questions and, with the question, of each answer")
    judge: Literal["none", "grade", "reward"] = Field(default="none", description="the question's grade or a model")
    reward: Path | None = Field(default=None, description="reward model that judges")
    min_score: float | None = Field(default=None, description="least score of a good answer; 1 for grades, else none")
    keep: Literal["best", "all"] = Field(default="best", description="of the good answers to a question")
    preferences: bool = Field(default=False, description="write pairs of the best and the worst answer, too")
    max_batch: int = Field(default=32, ge=1, le=1024, description="answers at the same time")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype to compute in")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_one_source(self.checkpoint, self.endpoint, self.model)
        if (self.key_variable or self.licence) and not self.endpoint:
            raise ValueError("key_variable and licence beside 'endpoint' only")
        if (self.judge == "reward") != (self.reward is not None):
            raise ValueError("'reward' beside judge = 'reward', and only there")
        if self.judge == "none" and self.min_score is not None:
            raise ValueError("no min_score without a judge")
        if self.judge == "none" and self.preferences:
            raise ValueError("preferences with a judge: without one no answer is better than another")
        if self.judge == "none" and self.num_answers > 1 and self.keep == "best":
            raise ValueError("keep = 'all' for several answers without a judge: none of them is the best")
        if self.num_answers > 1 and self.temperature == 0:
            raise ValueError("a temperature above 0 for several answers: without it they are all the same")
        if self.preferences and self.num_answers == 1:
            raise ValueError("num_answers of at least 2 for preferences")
        return self

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences it inherits: a reward model only chooses."""
        return {name: path for name, path in self.inputs().items() if name != "reward"}


def run(config: Config, run: Run) -> None:
    """Write conversations.jsonl, rejected.jsonl and, with preferences, preferences.jsonl."""
    questions = _questions(config, run)
    asks = [Ask(question, number) for question in questions for number in range(config.num_answers)]
    replies = [Reply.from_json(row) for row in _answer(config, run, asks)]
    judged = _judge(config, run, asks, replies)
    candidates = [
        Candidate(ask.number, reply._replace(failure=row["failure"]), row["score"], row["reason"])
        for ask, reply, row in zip(asks, replies, judged, strict=True)
    ]
    min_score = 1.0 if config.judge == "grade" and config.min_score is None else config.min_score
    rule = Rule(config.keep, min_score, config.preferences)
    size = config.num_answers
    picked = [rule.pick(each, candidates[at * size : (at + 1) * size]) for at, each in enumerate(questions)]
    _write(run, picked, len(asks))


def _write(run: Run, picked: Sequence[Picked], num_answers: int) -> None:
    rejected = [row for each in picked for row in each.rejected]
    conversations = [conversation.to_json() for each in picked for conversation in each.conversations]
    pairs = [each.preference.to_json() for each in picked if each.preference]
    for name, rows in (("conversations", conversations), ("preferences", pairs), ("rejected", rejected)):
        if rows or name == "rejected":
            write_jsonl(run.output / f"{name}.jsonl", rows)
    run.log(f"{num_answers:,} answers to {len(picked):,} questions: {len(conversations):,} conversations")
    if pairs:
        run.log(f"{len(pairs):,} pairs")
    reasons = Counter(row["reason"].partition(":")[0] for row in rejected if "number" in row)
    for reason, count in reasons.most_common():
        run.log(f"  not learned from {count:,}: {reason}")
    for reason, count in Counter(row["reason"] for row in rejected if "number" not in row).most_common():
        run.log(f"  {count:,} questions with {reason}")
    if not conversations and not pairs:
        (first,) = rejected[:1] or [{"reason": "there was no question"}]
        raise DataError(
            "no answer can be learned from", expected="at least one that is good", hint=f"First: {first['reason']}"
        )


def _questions(config: Config, run: Run) -> list[Question]:
    questions: list[Question] = []
    for path in config.questions:
        is_task = path.name.startswith("questions") if path.is_file() else bool(find_shards(path, "questions"))
        found = list(Task.load(path).questions if is_task or config.judge == "grade" else _turns(path))
        if config.judge == "grade" and not is_task:
            num_passed_over = sum(1 for _ in _turns(path)) - len(found)
            run.log(f"{path}: passed over {num_passed_over:,} turns without an expected answer, or with several calls")
        task = Task(path.name, tuple(found))
        questions += task.sample(config.max_questions, config.seed).questions if config.max_questions else found
    ids = Counter(question.id for question in questions)
    seen = Counter[str]()
    for at, question in enumerate(questions):
        if ids[question.id] > 1:  # of several sources, or of conversations without ids
            seen[question.id] += 1
            questions[at] = replace(question, id=f"{question.id} ({seen[question.id]})")
    run.log(f"{len(questions):,} questions, {config.num_answers} answers each")
    return questions


def _turns(path: Path) -> Iterator[Question]:
    """Ask for each turn of the assistant in conversations, given the true history, and for the one that is open."""
    dataset = Dataset([path], ["conversations"])
    for index in range(len(dataset)):
        row = dataset[index]
        assert isinstance(row, Conversation)
        name = row.id or f"{index + 1}"
        for at, message in enumerate(row.messages):
            is_last = at + 1 == len(row.messages)
            if message.role in ("user", "tool") and (is_last or row.messages[at + 1].role == "assistant"):
                prompt = replace(row, messages=row.messages[: at + 1])
                yield Question(f"{name}/{at + 1}", prompt, {}, grade="", group=name)


def _answer(config: Config, run: Run, asks: list[Ask]) -> list[dict[str, Any]]:
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
    opened: list[Asker] = []

    def answer(chunk: Sequence[Ask], tell: Callable[[int], None]) -> list[dict[str, Any]]:
        if not opened:
            opened.append(Asker(_open(config, run), sampling, config.seed))
        return [reply.to_json() for reply in opened[0].reply(chunk, tell)]

    return _in_chunks(run, "answering", asks, config.max_batch * ROUNDS, answer)


def _open(config: Config, run: Run) -> Completer:
    if config.checkpoint is not None:
        options = EngineOptions(max_batch=config.max_batch, dtype=getattr(torch, config.precision))
        return LocalCompleter.open(config.checkpoint, options)
    key = run.secret(config.key_variable) if config.key_variable else ""
    return EndpointCompleter(config.endpoint, config.model, key, config.max_batch)


def _judge(config: Config, run: Run, asks: list[Ask], replies: list[Reply]) -> list[dict[str, Any]]:
    answered = list(zip(asks, replies, strict=True))
    if config.judge == "none":
        return [{"score": None, "reason": "", "failure": reply.failure} for reply in replies]
    if config.judge == "grade":
        grades = [GRADES[ask.question.grade](ask.question, reply.message) for ask, reply in answered]
        num_unjudged = sum(not grade.is_judged and grade.score > 0 for grade in grades)
        if num_unjudged:
            run.log(f"answers that no rule judges, taken for being words: {num_unjudged:,}")
        judged = zip(grades, replies, strict=True)
        return [{"score": grade.score, "reason": grade.reason, "failure": reply.failure} for grade, reply in judged]
    opened: list[RewardModel] = []

    def judge(chunk: Sequence[tuple[Ask, Reply]], tell: Callable[[int], None]) -> list[dict[str, Any]]:
        if not opened:
            assert config.reward is not None
            opened.append(RewardModel.open(config.reward))
        return [_score(opened[0], *each) for each in chunk]

    return _in_chunks(run, "judging", answered, config.max_batch * ROUNDS, judge)


def _score(judge: RewardModel, ask: Ask, reply: Reply) -> dict[str, Any]:
    conversation = ask.question.conversation.with_message(reply.message)
    is_readable = not reply.failure and judge.can_read(conversation)
    score = judge.score([conversation])[0] if is_readable else None
    failure = reply.failure or ("" if is_readable else "longer than the reward model's context")
    return {"score": score, "reason": "as the reward model has it", "failure": failure}


def _in_chunks(
    run: Run, name: str, items: list[Any], size: int, work: Callable[..., list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return a row for each item; a kill costs the chunk that was under way."""
    journal = run.journal(name)
    rows = [row for chunk in journal.records for row in chunk]
    if rows:
        run.log(f"{name}: {len(rows):,} were done before the interruption")
    with run.progress(len(items), name, unit="answers", done=len(rows)) as bar:
        while len(rows) < len(items):
            rows += journal.append(work(items[len(rows) : len(rows) + size], partial(_advance_to, bar, len(rows))))
            bar.advance(len(rows) - bar.count)
    return rows


def _advance_to(bar: Progress, start: int, done: int) -> None:
    bar.advance(start + done - bar.count)
