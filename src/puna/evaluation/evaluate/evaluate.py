"""Checkpoints and tasks -> scores side by side, with intervals and every conversation.

Each checkpoint is asked in the format that it was trained in, by the sampler that would serve it. What a good answer
is, the tasks say; this stage trains and filters nothing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from puna.data.shards import write_jsonl
from puna.evaluation.evaluate.asking import Asked, ask, from_json, to_json
from puna.evaluation.evaluate.comparison_groups import Roles, find_groups
from puna.evaluation.evaluate.cost import estimate_evaluation
from puna.evaluation.evaluate.diagnosis import describe_questions, diagnose, lines, section
from puna.evaluation.evaluate.earlier import read_earlier, read_measured
from puna.evaluation.evaluate.exam import describe_null_scores, null_scores
from puna.evaluation.evaluate.grading import Item, calibrate, grade_replies, is_judged_by_rule, num_undecided
from puna.evaluation.evaluate.judges.judging import Judge, JudgeSettings, RewardJudge
from puna.evaluation.evaluate.report import draw_scores, judge_section, print_scores, report
from puna.evaluation.evaluate.slices import UNJUDGED, score
from puna.evaluation.scores import (
    NULL_MODELS,
    OVERALL,
    SCORES,
    SPEED,
    EvaluatedModel,
    Speed,
    conversations_name,
    is_judged,
)
from puna.evaluation.tasks.grading.similarity import reference_of
from puna.evaluation.tasks.labels import Labels, read_labels
from puna.evaluation.tasks.task import Task
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.adapters.adapter import checkpoint_at
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.completer import Completer, Reply, Sampling
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.local import LocalCompleter
from puna.inference.engine.options import EngineOptions
from puna.model.kernels.device import DeviceName
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.registry.registry import follow
from puna.pipeline.run import Run

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

    judge: JudgeSettings | None = Field(
        default=None, description="Judging model for answers in words that no rule judges"
    )
    reward: Path | None = Field(
        default=None,
        description="Reward model for such answers: right is a reward of at least the reference's",
    )
    labels: list[Path] = Field(
        default=[], description="Files of human labels (puna review), which override every other verdict"
    )
    answers: Path | None = Field(
        default=None, description="Earlier evaluation: its answers are graded anew, and no checkpoint is asked twice"
    )
    only_judged: bool = Field(
        default=False,
        description="Whether to leave out questions whose answers no rule, judge, reward model or label judges",
    )

    @field_validator("checkpoints")
    @classmethod
    def _names_are_file_names(cls, checkpoints: dict[str, Path]) -> dict[str, Path]:
        if not all(NAME.fullmatch(name) for name in checkpoints):
            raise ValueError("names of letters, digits, '.', '_' and '-'")
        return {name: follow(path) for name, path in checkpoints.items()}

    @model_validator(mode="after")
    def _has_one_judge(self) -> Self:
        if self.judge is not None and self.reward is not None:
            raise ValueError("'judge' or 'reward', not both: each would judge the same answers")
        return self

    def estimate(self, known: Known) -> Estimate:
        """Foresee the answers of all checkpoints (evaluate/cost.py)."""
        limits = {"max_questions": self.max_questions, "max_tokens": self.max_tokens}
        return estimate_evaluation(known, self.checkpoints, self.tasks, precision=self.precision, **limits)


def run(config: Config, run: Run) -> None:
    """Write scores.json, speed.json, report.md, scores.png and conversations-NAME.jsonl for each checkpoint.

    With a judge or a reward model also judge.json; with `compare` also diagnosis.json.
    """
    tasks = _load_tasks(config)
    labels = read_labels(config.labels)
    grader, judged_by = calibrate(_judge(config, run), labels, tasks, run)
    items, num_left_out = _items(config, run, tasks, labels)
    found = find_groups(config.checkpoints, config.roles.named()) if config.compare else []
    asked = {name: _ask(config, run, name, items) for name in config.checkpoints}
    everyone: list[EvaluatedModel] = []
    for name, path in config.checkpoints.items():
        rows = grade_replies(grader, labels, items, asked[name].replies)
        speed = Speed.measured(
            _num_weight_bytes(path),
            generated_tokens=asked[name].num_tokens,
            prompt_tokens=asked[name].num_prompt_tokens,
            seconds=asked[name].seconds,
        )
        everyone.append(EvaluatedModel(name, rows, speed))
    if config.only_judged:
        kept = _judged_for_all(everyone)
        run.log(f"left out {len(items) - len(kept):,} questions that not every checkpoint's answer was judged for")
        num_left_out += len(items) - len(kept)
        items = [items[index] for index in kept]
        everyone = [replace(answers, rows=[answers.rows[index] for index in kept]) for answers in everyone]
    for answers in everyone:
        write_jsonl(run.output / conversations_name(answers.name), answers.rows)
        _tell(run, config, answers)
    nulls = null_scores(items, grader, seed=config.seed)
    artifact.write_text(run.output / NULL_MODELS, _dump({"models": nulls}))
    if judged_by:
        judged_by["undecided"] = {answers.name: num_undecided(answers.rows) for answers in everyone}
        artifact.write_text(run.output / "judge.json", _dump(judged_by))
    scores = score(everyone) | {"left_out": num_left_out}
    artifact.write_text(run.output / SCORES, _dump(scores))
    artifact.write_text(run.output / SPEED, _dump({answers.name: answers.speed.to_json() for answers in everyone}))
    run.records |= {SPEED, "report.md"}  # speeds differ from run to run
    described = _described(config, items) if found else {}
    diagnoses = diagnose(found, everyone, config.checkpoints, config.general, described)
    first = report(scores, everyone, nulls, judge_section(judged_by)).rstrip()
    sections = [first, *(section(each) for each in diagnoses)]
    artifact.write_text(run.output / "report.md", "\n\n".join(sections) + "\n")
    if not draw_scores(scores, run.output / "scores.png"):
        run.log("no scores.png: matplotlib is not installed")
    print_scores(scores, everyone, run.console)
    run.log(describe_null_scores(nulls))
    if diagnoses:
        artifact.write_text(run.output / "diagnosis.json", _dump([each.to_json() for each in diagnoses]))
    for line in (line for each in diagnoses for line in lines(each)):
        run.log(line)


def _judge(config: Config, run: Run) -> Judge | RewardJudge | None:
    if config.reward is not None:
        return RewardJudge(config.reward)
    settings = config.judge
    if settings is None:
        return None
    return Judge(settings, lambda: _open_judge(config, run, settings), run)


def _open_judge(config: Config, run: Run, settings: JudgeSettings) -> Completer:
    if settings.checkpoint is not None:
        return LocalCompleter.open(settings.checkpoint, _options(config), config.device)
    key = run.secret(settings.key_variable) if settings.key_variable else ""
    return EndpointCompleter(settings.endpoint, settings.model, key, config.max_batch)


def _options(config: Config) -> EngineOptions:
    dtype, is_int8_cache = getattr(torch, config.precision), config.kv_cache == "int8"
    return EngineOptions(max_batch=config.max_batch, dtype=dtype, is_int8_cache=is_int8_cache)


def _described(config: Config, items: list[Item]) -> dict[str, float]:
    """Describe the questions of the students' own task, as long as the first checkpoint's tokenizer makes them."""
    own = [item.question.conversation for item in items if item.task.name not in config.general]
    chat = ChatFormat(Tokenizer.load(next(iter(config.checkpoints.values()))))
    return describe_questions(own, [len(chat.prompt(each)) for each in own])


def _load_tasks(config: Config) -> list[Task]:
    tasks: dict[str, Task] = {}
    for path in config.tasks:
        task = Task.load(path)
        if task.name in tasks:
            raise ConfigError(f"tasks has '{task.name}' twice", expected="tasks with names of their own")
        tasks[task.name] = task
    if not set(config.general) < set(tasks):
        raise ConfigError(
            f"general = {', '.join(config.general)}", expected=f"some, but not all, of the tasks {', '.join(tasks)}"
        )
    return list(tasks.values())


def _items(config: Config, run: Run, tasks: Sequence[Task], labels: Labels) -> tuple[list[Item], int]:
    """Draw the questions, of `only_judged` those that a rule, a model or a label can judge; count those left out."""
    drawn = [task.sample(config.max_questions, config.seed) if config.max_questions else task for task in tasks]
    items = [Item(task, question) for task in drawn for question in task.questions]
    if not config.only_judged or config.judge:
        return items, 0
    labelled = {(label.task, label.id) for label in labels}
    kept = [
        item
        for item in items
        if is_judged_by_rule(item)
        or (item.task.name, item.question.id) in labelled
        or (config.reward and reference_of(item.question))
    ]
    run.log(f"left out {len(items) - len(kept):,} of {len(items):,} questions whose answers nothing here can judge")
    if not kept:
        hint = "Name a judge, a reward model or labels, or leave out only_judged"
        raise ConfigError("only_judged where no question can be judged", expected="at least one", hint=hint)
    return kept, len(items) - len(kept)


def _judged_for_all(everyone: Sequence[EvaluatedModel]) -> list[int]:
    """Return the questions to which the answer of every checkpoint was judged; ConfigError if there is none."""
    kept = [
        index
        for index, rows in enumerate(zip(*(each.rows for each in everyone), strict=True))
        if all(map(is_judged, rows))
    ]
    if not kept:
        hint = "Have people judge the answers of each checkpoint (`puna review`), or leave out only_judged"
        raise ConfigError(
            "only_judged, but no question was judged for every checkpoint", expected="at least one", hint=hint
        )
    return kept


def _ask(config: Config, run: Run, name: str, items: list[Item]) -> Asked:
    """Return the replies of one checkpoint: those of the interrupted run, or of an earlier evaluation, or new ones."""
    journal = run.journal(f"answers-{name}")
    if journal.records:
        run.log(f"{name}: answered before the interruption")
        return from_json(journal.records[-1])
    asked = _ask_anew(config, run, name, items)
    journal.append(to_json(asked))
    return asked


def _ask_anew(config: Config, run: Run, name: str, items: list[Item]) -> Asked:
    path = config.checkpoints[name]
    known: list[Reply | None] = [None] * len(items)
    if config.answers is not None:
        known = read_earlier(config.answers, config.model_dump(mode="json"), path, items)
        run.log(f"{name}: took over {sum(each is not None for each in known):,} of {len(items):,} answers")
    new = [at for at, reply in enumerate(known) if reply is None]
    if config.answers is not None and not new:
        return read_measured(config.answers, path, [reply for reply in known if reply])
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
    model = LocalCompleter.open(path, _options(config), config.device)
    asked = ask(model, sampling, config.seed, run, name, [items[at] for at in new])
    answered = dict(zip(new, asked.replies, strict=True))
    return asked._replace(replies=[reply or answered[at] for at, reply in enumerate(known)])


def _tell(run: Run, config: Config, answers: EvaluatedModel) -> None:
    slices = score([answers])["checkpoints"][answers.name]
    overall, num_unjudged = slices[OVERALL], slices.get(UNJUDGED, {}).get("n", 0)
    unjudged = f", {num_unjudged:,} answers not judged" if num_unjudged else ""
    right = f"{overall['score']:.1%} of {overall['n']:,} questions" if overall["n"] else "no question judged"
    run.log(f"{answers.name}: {right}{unjudged}, {answers.speed.generated_tokens_per_s:,.0f} tokens/s")
    undecided = num_undecided(answers.rows)
    if undecided:
        run.log(f"{answers.name}: the judge left {undecided:,} of {len(answers.rows):,} answers undecided: wrong")
    num_cut = sum(row["finish_reason"] == "length" for row in answers.rows)
    if num_cut:
        limit = f"max_tokens = {config.max_tokens}, or where the context ends"
        run.log(f"{answers.name}: {num_cut:,} answers were cut off at {limit}")


def _num_weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for folder in {path, checkpoint_at(path)} for file in folder.glob("*.safetensors"))


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
