"""Questions and a model -> conversations with sampled answers, preference pairs, and rejected answers with reasons.

One answer without a judge: sequence-level distillation (Kim and Rush, 2016). Several answers with a judge: rejection
sampling. rejected.jsonl holds every answer left out of the training data, with a reason.

Example:
    [answer]
    questions = ["data/conversations"]
    checkpoint = "models/teacher"
    num_answers = 4
    judge = "reward"
    reward = "models/reward"
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from puna.corpus.synthesize.answer_sampling import AnswerSampler, Attempt, Reply
from puna.corpus.synthesize.rejection_sampling import Candidate, Selected, SelectionRule
from puna.data.dataset import Dataset
from puna.data.shards import find_shards, write_jsonl
from puna.evaluation.tasks import GRADES, Question, Task
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Completer, Sampling
from puna.inference.completer.opening import open_completer
from puna.inference.completer.settings import flat_endpoint, require_one_source
from puna.inference.engine.options import EngineOptions
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision, StageConfig
from puna.pipeline.errors import DataError
from puna.pipeline.progress import Progress
from puna.pipeline.run import Run

# Full batches between two journal records: the batch drains before every record, which costs throughput.
ROUNDS = 8


class Config(StageConfig):
    """Questions, the answering model, sampling, and the selection of answers. Example: see the module."""

    questions: list[Path] = Field(
        min_length=1, description="Tasks or conversations; every assistant turn of a conversation becomes a question"
    )
    checkpoint: Path | None = Field(
        default=None, description="Checkpoint directory of the answering model, loaded in this process"
    )
    endpoint: str = Field(
        default="", description="URL of an OpenAI-compatible server up to /v1, instead of `checkpoint`"
    )
    model: str = Field(default="", description="Model name sent to `endpoint`")
    key_variable: str = Field(default="", description="Name of the environment variable with the API key of `endpoint`")
    licence: str = Field(
        default="", description="Licence terms of text written by the model at `endpoint`; the dataset inherits them"
    )
    num_answers: int = Field(default=1, ge=1, le=1000, description="Number of sampled answers per question")
    temperature: float = Field(
        default=0.6, ge=0, le=2, description="Sampling temperature, 0 to 2; 0 takes the most likely token (greedy)"
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="Nucleus sampling: probability mass of the candidate tokens, above 0 to 1"
    )
    max_tokens: int = Field(default=512, ge=1, description="Largest number of tokens in an answer")
    max_questions: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of questions per source, sampled evenly over groups; default: all",
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed for the sample of questions and for every answer's sampling"
    )
    judge: Literal["none", "grade", "reward"] = Field(
        default="none", description="Judge of answers: none, the question's own grade, or a reward model"
    )
    reward: Path | None = Field(
        default=None, description="Checkpoint directory of the reward model for judge = 'reward'"
    )
    min_score: float | None = Field(
        default=None,
        description="Lowest score of a good answer; default: 1 for judge = 'grade', otherwise no threshold",
    )
    keep: Literal["best", "all"] = Field(
        default="best", description="Good answers to keep per question: best (the highest score alone) or all"
    )
    preferences: bool = Field(
        default=False, description="Whether to write preference pairs of the best and the worst answer to a question"
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="Number of answers generated at the same time")
    precision: Precision = Field(
        default="float32", description="Data type of computation with `checkpoint`: float32 or bfloat16"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_one_source(self.checkpoint, self.endpoint, self.model)
        if (self.key_variable or self.licence) and not self.endpoint:
            raise ValueError("key_variable and licence only together with 'endpoint'")
        if (self.judge == "reward") != (self.reward is not None):
            raise ValueError("'reward' exactly if judge = 'reward'")
        if self.judge == "none" and self.min_score is not None:
            raise ValueError("no min_score without a judge")
        if self.judge == "none" and self.preferences:
            raise ValueError("preferences only with a judge, whose scores rank the answers")
        if self.judge == "none" and self.num_answers > 1 and self.keep == "best":
            raise ValueError("keep = 'all' for several answers without a judge, since no score ranks the answers")
        if self.num_answers > 1 and self.temperature == 0:
            raise ValueError("a temperature above 0 for several answers, since greedy answers are all equal")
        if self.preferences and self.num_answers == 1:
            raise ValueError("num_answers of at least 2 for preferences")
        return self

    def stated_licence(self) -> str:
        """Return `licence`."""
        return self.licence

    def made_of(self) -> dict[str, Path]:
        """Return the inputs with inherited licences, without the reward model: scores copy no text."""
        return {name: path for name, path in self.inputs().items() if name != "reward"}


def run(config: Config, run: Run) -> None:
    """Write conversations.jsonl, rejected.jsonl, and preferences.jsonl with `preferences`."""
    questions = _questions(config, run)
    attempts = [Attempt(question, number) for question in questions for number in range(config.num_answers)]
    replies = [Reply.from_json(row) for row in _answer(config, run, attempts)]
    judged = _judge(config, run, attempts, replies)
    candidates = [
        Candidate(attempt.number, reply._replace(failure=row["failure"]), row["score"], row["reason"])
        for attempt, reply, row in zip(attempts, replies, judged, strict=True)
    ]
    min_score = 1.0 if config.judge == "grade" and config.min_score is None else config.min_score
    rule = SelectionRule(config.keep, min_score, config.preferences)
    size = config.num_answers
    selected = [
        rule.select(question, candidates[index * size : (index + 1) * size]) for index, question in enumerate(questions)
    ]
    _write(run, selected, len(attempts))


def _write(run: Run, selected: Sequence[Selected], num_answers: int) -> None:
    rejected = [row for question in selected for row in question.rejected]
    conversations = [row.to_json() for question in selected for row in question.conversations]
    pairs = [question.preference.to_json() for question in selected if question.preference]
    for name, rows in (("conversations", conversations), ("preferences", pairs), ("rejected", rejected)):
        if rows or name == "rejected":
            write_jsonl(run.output / f"{name}.jsonl", rows)
    run.log(f"{num_answers:,} answers to {len(selected):,} questions: {len(conversations):,} conversations")
    if pairs:
        run.log(f"{len(pairs):,} preference pairs")
    reasons = Counter(row["reason"].partition(":")[0] for row in rejected if "number" in row)
    for reason, count in reasons.most_common():
        run.log(f"  rejected {count:,} answers: {reason}")
    for reason, count in Counter(row["reason"] for row in rejected if "number" not in row).most_common():
        run.log(f"  {count:,} questions with {reason}")
    if not conversations and not pairs:
        (first,) = rejected[:1] or [{"reason": "there was no question"}]
        raise DataError(
            "no answer is fit for training",
            expected="at least one good answer",
            hint=f"The first rejected: {first['reason']}",
        )


def _questions(config: Config, run: Run) -> list[Question]:
    questions: list[Question] = []
    for path in config.questions:
        is_task = path.name.startswith("questions") if path.is_file() else bool(find_shards(path, "questions"))
        task_questions = list(Task.load(path).questions if is_task or config.judge == "grade" else _turns(path))
        if config.judge == "grade" and not is_task:
            num_skipped = sum(1 for _ in _turns(path)) - len(task_questions)
            run.log(f"{path}: skipped {num_skipped:,} turns without an expected answer, or with several calls")
        task = Task(path.name, tuple(task_questions))
        questions += (
            task.sample(config.max_questions, config.seed).questions if config.max_questions else task_questions
        )
    ids = Counter(question.id for question in questions)
    seen = Counter[str]()
    for at, question in enumerate(questions):
        if ids[question.id] > 1:  # NOTE: sources may share ids, and conversations may have no ids.
            seen[question.id] += 1
            questions[at] = replace(question, id=f"{question.id} ({seen[question.id]})")
    run.log(f"{len(questions):,} questions, {config.num_answers} answers each")
    return questions


def _turns(path: Path) -> Iterator[Question]:
    """Yield a question for every assistant turn, also for the open turn after a last user message or tool result."""
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


def _answer(config: Config, run: Run, attempts: list[Attempt]) -> list[dict[str, Any]]:
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
    # The model is loaded for the first chunk: a resumed run may have no chunk left.
    sampler = cache(lambda: AnswerSampler(_open(config, run), sampling, config.seed))

    def answer(chunk: Sequence[Attempt], tell: Callable[[int], None]) -> list[dict[str, Any]]:
        return [reply.to_json() for reply in sampler().reply(chunk, tell)]

    return _in_chunks(run, "answering", attempts, config.max_batch * ROUNDS, answer)


def _open(config: Config, run: Run) -> Completer:
    options = EngineOptions(max_batch=config.max_batch, dtype=torch_dtype(config.precision))
    endpoint = (config.endpoint, config.model, config.key_variable, config.max_batch)
    return open_completer(config.checkpoint or flat_endpoint(*endpoint), options=options, secret=run.secret)


def _judge(config: Config, run: Run, attempts: list[Attempt], replies: list[Reply]) -> list[dict[str, Any]]:
    answered = list(zip(attempts, replies, strict=True))
    if config.judge == "none":
        return [{"score": None, "reason": "", "failure": reply.failure} for reply in replies]
    if config.judge == "grade":
        grades = [GRADES[attempt.question.grade](attempt.question, reply.message) for attempt, reply in answered]
        num_unjudged = sum(not grade.is_judged and grade.score > 0 for grade in grades)
        if num_unjudged:
            run.log(
                f"answers without a grading rule, accepted because the answer is text without a call: {num_unjudged:,}"
            )
        judged = zip(grades, replies, strict=True)
        return [{"score": grade.score, "reason": grade.reason, "failure": reply.failure} for grade, reply in judged]
    assert config.reward is not None
    reward_model = cache(partial(RewardModel.open, config.reward))

    def judge(chunk: Sequence[tuple[Attempt, Reply]], tell: Callable[[int], None]) -> list[dict[str, Any]]:
        return [_score(reward_model(), *answer) for answer in chunk]

    return _in_chunks(run, "judging", answered, config.max_batch * ROUNDS, judge)


def _score(judge: RewardModel, attempt: Attempt, reply: Reply) -> dict[str, Any]:
    conversation = attempt.question.conversation.with_message(reply.message)
    is_readable = not reply.failure and judge.can_read(conversation)
    score = judge.score([conversation])[0] if is_readable else None
    failure = reply.failure or ("" if is_readable else "longer than the reward model's context")
    return {"score": score, "reason": "score of the reward model", "failure": failure}


def _in_chunks(
    run: Run, name: str, items: list[Any], size: int, work: Callable[..., list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return one row per item; after a kill, only the chunk in progress is computed again."""
    journal = run.journal(name)
    rows = [row for chunk in journal.records for row in chunk]
    if rows:
        run.log(f"{name}: resumed after {len(rows):,} rows of the interrupted run")
    with run.progress(len(items), name, unit="answers", done=len(rows)) as bar:
        while len(rows) < len(items):
            rows += journal.append(work(items[len(rows) : len(rows) + size], partial(_advance_to, bar, len(rows))))
            bar.advance(len(rows) - bar.count)
    return rows


def _advance_to(bar: Progress, start: int, done: int) -> None:
    bar.advance(start + done - bar.count)
