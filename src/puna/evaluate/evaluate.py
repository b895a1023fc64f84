"""Checkpoints and tasks -> scores side by side, with intervals and every conversation.

Each checkpoint is asked in the format that it was trained in, by the sampler that would serve it. What a good answer
is, the tasks say; this stage trains and filters nothing.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from puna import artifact
from puna.chat.format import ChatFormat
from puna.checkpoint.adapter import checkpoint_at
from puna.config import StageConfig
from puna.data.shards import read_rows, write_jsonl
from puna.errors import ConfigError
from puna.estimate import Estimate, Known
from puna.evaluate.asking import Asked, How, Reply, ask
from puna.evaluate.compare import describe_questions, diagnose, lines, section
from puna.evaluate.cost import estimate_evaluation
from puna.evaluate.exam import describe_null_scores, null_scores
from puna.evaluate.grading import Grader, Item, Judgement, similarity
from puna.evaluate.report import draw_scores, print_scores, report
from puna.evaluate.roles import Roles, casts
from puna.evaluate.scores import OVERALL, UNJUDGED, Answers, score
from puna.run import Run
from puna.shelf.shelf import follow
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

    def estimate(self, known: Known) -> Estimate:
        """Foresee the answers of all checkpoints (evaluate/cost.py)."""
        limits = {"max_questions": self.max_questions, "max_tokens": self.max_tokens}
        return estimate_evaluation(known, self.checkpoints, self.tasks, precision=self.precision, **limits)


def run(config: Config, run: Run) -> None:
    """Write scores.json, speed.json, report.md, scores.png and conversations-NAME.jsonl for each checkpoint."""
    items = _items(config)
    found = casts(config.checkpoints, config.roles.named()) if config.compare else []
    grader = Grader()
    everyone: list[Answers] = []
    for name, path in config.checkpoints.items():
        asked = _resume(run, name) or _ask(config, run, name, path, items)
        answers = _grade(grader, name, path, items, asked)
        write_jsonl(run.output / f"conversations-{name}.jsonl", answers.rows)
        _tell(run, config, answers)
        everyone.append(answers)
    nulls = null_scores(items, grader, seed=config.seed)
    artifact.write_text(run.output / "null_models.json", _dump({"models": nulls}))
    scores = score(everyone)
    artifact.write_text(run.output / "scores.json", _dump(scores))
    artifact.write_text(run.output / "speed.json", _dump({answers.name: _speed(answers) for answers in everyone}))
    described = _described(config, items) if found else {}
    diagnoses = diagnose(found, everyone, config.checkpoints, config.general, described)
    sections = [section(each) for each in diagnoses]
    artifact.write_text(
        run.output / "report.md", "\n\n".join([report(scores, everyone, nulls).rstrip(), *sections]) + "\n"
    )
    if not draw_scores(scores, run.output / "scores.png"):
        run.log("no scores.png: matplotlib is not installed")
    print_scores(scores, everyone, run.console)
    run.log(describe_null_scores(nulls))
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


def _ask(config: Config, run: Run, name: str, path: Path, items: list[Item]) -> Asked:
    """Let one checkpoint answer all questions, and keep the replies in case the run is interrupted."""
    how = How(
        config.temperature,
        config.top_p,
        config.max_tokens,
        config.seed,
        config.max_batch,
        getattr(torch, config.precision),
        config.kv_cache == "int8",
    )
    asked = ask(how, run, name, path, items)
    directory = run.directory / "answers"
    directory.mkdir(exist_ok=True)
    write_jsonl(directory / f"{name}.jsonl", (reply.to_json() for reply in asked.replies))
    # NOTE: written last and as a whole: where it stands, the replies beside it are complete.
    artifact.write_text(directory / f"{name}.json", _dump(asked._replace(replies=[])._asdict()))
    return asked


def _resume(run: Run, name: str) -> Asked | None:
    """Return the replies of this checkpoint from before the run was interrupted, if it had answered everything."""
    summary = run.directory / "answers" / f"{name}.json"
    if not summary.exists():
        return None
    run.log(f"{name}: answered before the interruption")
    replies = [Reply.from_json(row) for row in read_rows(summary.with_suffix(".jsonl"))]
    return Asked(**json.loads(summary.read_text()))._replace(replies=replies)


def _grade(grader: Grader, name: str, path: Path, items: list[Item], asked: Asked) -> Answers:
    """Judge the replies of one checkpoint."""
    judgements = grader.grade(items, [reply.message for reply in asked.replies])
    rows = [_row(*each) for each in zip(items, asked.replies, judgements, strict=True)]
    num_tokens = sum(reply.num_tokens for reply in asked.replies)
    return Answers(name, rows, _num_weight_bytes(path), num_tokens, asked.num_prompt_tokens, asked.seconds)


def _row(item: Item, reply: Reply, judgement: Judgement) -> dict[str, Any]:
    """Return the line of conversations-NAME.jsonl, which has all that judging the answer again takes."""
    grade = judgement.grade
    # The grade of an empty answer names the parts; a failure has them all at 0.
    if reply.failure:
        grade = replace(grade, score=0.0, reason=reply.failure, parts=dict.fromkeys(grade.parts, 0.0))
    elif reply.is_truncated and grade.score < 1:
        grade = replace(grade, reason=f"{grade.reason}; cut off after {reply.num_tokens} tokens")
    return {
        "task": item.task.name,
        **item.question.to_json(),
        "answer": reply.message.to_json(),
        **judgement._replace(grade=grade).to_json(),
        "similarity": similarity(item.question, reply.message),
        "finish_reason": reply.finish_reason,
        "num_tokens": reply.num_tokens,
    }


def _tell(run: Run, config: Config, answers: Answers) -> None:
    slices = score([answers])["checkpoints"][answers.name]
    overall, num_unjudged = slices[OVERALL], slices.get(UNJUDGED, {}).get("n", 0)
    unjudged = f", {num_unjudged:,} answers not judged" if num_unjudged else ""
    right = f"{overall['score']:.1%} of {overall['n']:,} questions" if overall["n"] else "no question judged"
    run.log(f"{answers.name}: {right}{unjudged}, {answers.tokens_per_s:,.0f} tokens/s")
    num_cut = sum(row["finish_reason"] == "length" for row in answers.rows)
    if num_cut:
        limit = f"max_tokens = {config.max_tokens}, or where the context ends"
        run.log(f"{answers.name}: {num_cut:,} answers were cut off at {limit}")


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
