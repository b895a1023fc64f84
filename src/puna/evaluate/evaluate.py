"""Checkpoints and tasks -> scores side by side, with intervals and every conversation.

Each checkpoint is asked in the format that it was trained in, by the sampler that would serve it. What a good answer
is, the tasks say; this stage trains and filters nothing.
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator

from puna import artifact
from puna.chat.conversation import Message
from puna.chat.format import ChatFormat
from puna.checkpoint.adapter import checkpoint_at
from puna.checkpoint.checkpoint import Checkpoint
from puna.config import StageConfig
from puna.data.shards import read_rows, write_jsonl
from puna.engine.local import LocalSampler
from puna.engine.options import EngineOptions
from puna.engine.sampler import Completion, SamplingParams
from puna.errors import ConfigError
from puna.evaluate.compare import describe_questions, diagnose, lines, section
from puna.evaluate.report import draw_scores, print_scores, report
from puna.evaluate.roles import Roles, casts
from puna.evaluate.scores import OVERALL, Answers, score
from puna.kernels.device import DeviceName
from puna.run import Run
from puna.shelf.shelf import follow
from puna.tasks.question import Grade, Question
from puna.tasks.task import Task, load_task
from puna.tokenizer.tokenizer import Tokenizer

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Config(StageConfig):
    """Ask every checkpoint the same questions; of a folder that releases were promoted into, the one in use."""

    checkpoints: dict[str, Path] = Field(min_length=1, description="name and checkpoint; differences are to the first")
    tasks: list[Path] = Field(min_length=1, description="questions files, or artifacts that hold some")
    max_questions: int | None = Field(
        default=None, ge=1, description="of each task, drawn from its groups in proportion"
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 takes the most likely token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="share of the probability to sample from")
    max_tokens: int = Field(default=256, ge=1, description="longest answer")
    seed: int = Field(default=0, ge=0, description="of the draw of questions and of sampling")
    max_batch: int = Field(default=32, ge=1, description="questions answered at the same time")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype to compute in")
    device: DeviceName = Field(default="auto", description="where to compute; auto: the GPU where there is one")
    kv_cache: Literal["stored", "int8"] = Field(default="stored", description="what keys and values are kept in")
    compare: bool = Field(default=False, description="say why a student ends below the plain model or its own start")
    roles: Roles = Field(default=Roles(), description="who is who, where the lineage does not say it")
    general: list[str] = Field(
        default=[], description="names of tasks that are not the student's own: is it forgotten?"
    )

    @field_validator("checkpoints")
    @classmethod
    def _names_are_file_names(cls, checkpoints: dict[str, Path]) -> dict[str, Path]:
        if not all(NAME.fullmatch(name) for name in checkpoints):
            raise ValueError("names of letters, digits, '.', '_' and '-'")
        return {name: follow(path) for name, path in checkpoints.items()}


class Item(NamedTuple):
    """A question and the task that judges its answer."""

    task: Task
    question: Question


class Reply(NamedTuple):
    """What came back for one question; `failure` says why there is no answer."""

    message: Message = Message("assistant")
    num_tokens: int = 0
    finish_reason: str = ""
    failure: str = ""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


def run(config: Config, run: Run) -> None:
    """Write scores.json, speed.json, report.md, scores.png and conversations-NAME.jsonl for each checkpoint."""
    items = _items(config)
    found = casts(config.checkpoints, config.roles.named()) if config.compare else []
    everyone: list[Answers] = []
    for name, path in config.checkpoints.items():
        answers = _resume(run, name) or _ask(config, run, name, path, items)
        write_jsonl(run.output / f"conversations-{name}.jsonl", answers.rows)
        everyone.append(answers)
    scores = score(everyone)
    artifact.write_text(run.output / "scores.json", _dump(scores))
    artifact.write_text(run.output / "speed.json", _dump({answers.name: _speed(answers) for answers in everyone}))
    described = _described(config, items) if found else {}
    diagnoses = diagnose(found, everyone, config.checkpoints, config.general, described)
    sections = [section(each) for each in diagnoses]
    artifact.write_text(run.output / "report.md", "\n\n".join([report(scores, everyone).rstrip(), *sections]) + "\n")
    if not draw_scores(scores, run.output / "scores.png"):
        run.log("no scores.png: matplotlib is not installed")
    print_scores(scores, everyone, run.console)
    if diagnoses:
        artifact.write_text(run.output / "diagnosis.json", _dump([each.to_json() for each in diagnoses]))
    for line in (line for each in diagnoses for line in lines(each)):
        run.log(line)


def _described(config: Config, items: list[Item]) -> dict[str, float]:
    """Describe the questions of the students' own task, as long as the first checkpoint's tokenizer makes them."""
    own = [item.question.conversation for item in items if item.task.name not in config.general]
    chat = ChatFormat(Tokenizer.load(next(iter(config.checkpoints.values()))))
    return describe_questions(own, [len(chat.prompt(each)) for each in own])


def _items(config: Config) -> list[Item]:
    tasks: dict[str, Task] = {}
    for path in config.tasks:
        task = load_task(path)
        if task.name in tasks:
            raise ConfigError(f"tasks has '{task.name}' twice", expected="tasks with names of their own")
        tasks[task.name] = task.sample(config.max_questions, config.seed) if config.max_questions else task
    if not set(config.general) < set(tasks):
        raise ConfigError(
            f"general = {', '.join(config.general)}", expected=f"some, but not all, of the tasks {', '.join(tasks)}"
        )
    return [Item(task, question) for task in tasks.values() for question in task.questions]


def _ask(config: Config, run: Run, name: str, path: Path, items: list[Item]) -> Answers:
    """Let one checkpoint answer all questions, grade them, and keep the rows in case the run is interrupted."""
    dtype, is_int8_cache = getattr(torch, config.precision), config.kv_cache == "int8"
    options = EngineOptions(max_batch=config.max_batch, dtype=dtype, is_int8_cache=is_int8_cache)
    sampler = LocalSampler.open(path, options=options, device=config.device)
    chat = ChatFormat(sampler.tokenizer)
    prompts = [chat.prompt(item.question.conversation) for item in items]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < sampler.max_context]
    stop_ids = tuple(dict.fromkeys(chat.stop_ids + Checkpoint.open(checkpoint_at(path)).stop_ids))
    params = [_params(config, items[i], sampler.max_context - len(prompts[i]), stop_ids) for i in fitting]
    # The first request pays for what later ones find ready; it is no part of the speed.
    sampler.complete(
        [prompts[i] for i in fitting[:1]], [replace(p, max_tokens=min(2, p.max_tokens)) for p in params[:1]]
    )
    start = time.monotonic()
    with run.progress(len(items), name, unit="questions", done=len(items) - len(fitting)) as bar:
        completions = sampler.complete(
            [prompts[i] for i in fitting], params, progress=lambda done: bar.advance(bar.first + done - bar.count)
        )
    seconds = time.monotonic() - start
    replies = [Reply(failure=f"the prompt of {len(p)} tokens leaves no room for an answer") for p in prompts]
    for index, completion in zip(fitting, completions, strict=True):
        replies[index] = _reply(chat, items[index].question, completion)
    rows = [_row(item, reply) for item, reply in zip(items, replies, strict=True)]
    num_prompt_tokens = sum(len(prompts[i]) for i in fitting)
    num_tokens = sum(reply.num_tokens for reply in replies)
    answers = Answers(name, rows, _num_weight_bytes(path), num_tokens, num_prompt_tokens, seconds)
    _keep(run, answers)
    overall = score([answers])["checkpoints"][name][OVERALL]
    run.log(f"{name}: {overall['score']:.1%} of {len(rows):,} questions, {answers.tokens_per_s:,.0f} tokens/s")
    num_cut = sum(reply.is_truncated for reply in replies)
    if num_cut:
        run.log(
            f"{name}: {num_cut:,} answers were cut off at max_tokens = {config.max_tokens}, or where the context ends"
        )
    return answers


def _params(config: Config, item: Item, room: int, stop_ids: tuple[int, ...]) -> SamplingParams:
    """Seed each question by its id: it is asked alike whatever else is asked, and alike of every checkpoint."""
    identity = f"{config.seed} {item.task.name} {item.question.id}"
    return SamplingParams(
        max_tokens=min(config.max_tokens, room),
        temperature=config.temperature,
        top_p=config.top_p,
        stop_ids=stop_ids,
        seed=int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big"),
    )


def _reply(chat: ChatFormat, question: Question, completion: Completion) -> Reply:
    if completion.finish_reason == "error":
        return Reply(finish_reason="error", failure=f"the model failed: {completion.error}")
    message = chat.parse(completion.ids, question.conversation.tools)
    return Reply(message, len(completion.ids), completion.finish_reason)


def _row(item: Item, reply: Reply) -> dict[str, Any]:
    """Return the line of conversations-NAME.jsonl: all that one needs to judge the answer again."""
    task, question = item
    # The grade of an empty answer names the parts; a failure has them all at 0.
    grade = task.grade(question, reply.message)
    if reply.failure:
        grade = Grade(0.0, reply.failure, dict.fromkeys(grade.parts, 0.0))
    elif reply.is_truncated and grade.score < 1:
        grade = replace(grade, reason=f"{grade.reason}; cut off after {reply.num_tokens} tokens")
    return {
        "task": task.name,
        **question.to_json(),
        "answer": reply.message.to_json(),
        "score": grade.score,
        "parts": grade.parts,
        "reason": grade.reason,
        "finish_reason": reply.finish_reason,
        "num_tokens": reply.num_tokens,
    }


def _keep(run: Run, answers: Answers) -> None:
    directory = run.directory / "answers"
    directory.mkdir(exist_ok=True)
    write_jsonl(directory / f"{answers.name}.jsonl", answers.rows)
    # NOTE: written last and as a whole: where it stands, the rows beside it are complete.
    artifact.write_text(directory / f"{answers.name}.json", _dump(asdict(replace(answers, rows=[]))))


def _resume(run: Run, name: str) -> Answers | None:
    """Return what this checkpoint answered before the run was interrupted, if it got to the end."""
    summary = run.directory / "answers" / f"{name}.json"
    if not summary.exists():
        return None
    run.log(f"{name}: answered before the interruption")
    rows = list(read_rows(summary.with_suffix(".jsonl")))
    return replace(Answers(**json.loads(summary.read_text())), rows=rows)


def _speed(answers: Answers) -> dict[str, float]:
    """Return what differs from run to run, and so stands outside scores.json."""
    return {
        "weight_bytes": answers.num_bytes,
        "generated_tokens": answers.num_tokens,
        "prompt_tokens": answers.num_prompt_tokens,
        "seconds": round(answers.seconds, 3),
        "generated_tokens_per_s": round(answers.tokens_per_s, 1),
    }


def _num_weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for folder in {path, checkpoint_at(path)} for file in folder.glob("*.safetensors"))


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
