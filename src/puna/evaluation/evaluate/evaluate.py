"""Models and tasks -> scores side by side, with 95 % intervals and every graded conversation.

A checkpoint answers in the chat format of its training, with the sampler of the server. The tasks define right answers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from puna.data.shards import write_jsonl
from puna.evaluation.evaluate.asking import ModelReplies, ask, from_json, join, to_json
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
from puna.formats.checkpoint.adapters.folder import checkpoint_at
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.completer import Completer, Reply, Sampling
from puna.inference.completer.opening import open_completer
from puna.inference.completer.settings import EndpointConfig, flat_endpoint
from puna.inference.engine.options import EngineOptions
from puna.model.kernels.device import DeviceName
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import Precision, StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.registry.registry import follow
from puna.pipeline.run import Run

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
CHUNK = 256  # questions to an endpoint between two entries of the journal


class Config(StageConfig):
    """Settings of `puna evaluate`: every model answers the same questions.

    Example: in a recipe

        [evaluate]
        checkpoints = { base = "@import", mine = "@distill" }
        tasks = ["@synthesize.held-out"]
    """

    checkpoints: dict[str, Path | EndpointConfig] = Field(
        min_length=1,
        description="Models by name: a checkpoint's directory, a folder of promoted releases, or a table of an "
        "endpoint; reports give differences to the first model",
    )
    tasks: list[Path] = Field(
        min_length=1,
        description="Questions to score the models on: files, or folders with questions* (otherwise conversations*) "
        "as JSONL or Parquet",
    )
    max_questions: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of questions per task; the sample keeps the proportions of the groups",
    )
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="Sampling temperature, 0 to 2; 0 is greedy decoding"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus sampling: smallest probability mass, 0 to 1, to sample from"
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest answer in tokens; a longer answer is cut off")
    seed: int = Field(default=0, ge=0, description="Seed of the sample of questions and of token sampling")
    max_batch: int = Field(
        default=32, ge=1, description="Number of questions answered at the same time; more use more memory"
    )
    precision: Precision = Field(
        default="float32", description="Floating-point format of weights and activations during the evaluation"
    )
    device: DeviceName = Field(
        default="auto", description="Device of the checkpoints; auto takes a GPU if there is one"
    )
    kv_cache: Literal["stored", "int8"] = Field(
        default="stored", description="Format of the KV cache: as computed, or int8 in half of the memory of bfloat16"
    )
    compare: bool = Field(
        default=False, description="Whether to diagnose why a student scores below its baseline or start model"
    )
    roles: Roles = Field(
        default=Roles(),
        description="Roles of the models where the lineage does not tell them (student, plain, start, teacher)",
    )
    general: list[str] = Field(
        default=[], description="Names of the tasks that measure forgetting; all other tasks are the student's own"
    )

    judge: JudgeSettings | None = Field(default=None, description="Judging model for answers in words without a rule")
    reward: Path | None = Field(
        default=None,
        description="Reward model for answers in words without a rule; an answer with at least the reward of the "
        "reference is right",
    )
    labels: list[Path] = Field(
        default=[], description="Files of human labels (puna review); a label overrides every other verdict"
    )
    answers: Path | None = Field(
        default=None,
        description="Earlier evaluation; answers of unchanged checkpoints are graded again and not generated again",
    )
    only_judged: bool = Field(
        default=False,
        description="Whether to leave out questions without a rule, judge, reward model or label for the answers",
    )

    @field_validator("checkpoints")
    @classmethod
    def _names_are_file_names(cls, checkpoints: dict[str, Path | EndpointConfig]) -> dict[str, Path | EndpointConfig]:
        if not all(NAME.fullmatch(name) for name in checkpoints):
            raise ValueError("names of letters, digits, '.', '_' and '-'")
        return {name: follow(model) if isinstance(model, Path) else model for name, model in checkpoints.items()}

    @model_validator(mode="after")
    def _has_one_judge(self) -> Self:
        if self.judge is not None and self.reward is not None:
            raise ValueError("'judge' or 'reward', not both: each would judge the same answers")
        return self

    @property
    def local_checkpoints(self) -> dict[str, Path]:
        """Models in this process, by name."""
        return {name: model for name, model in self.checkpoints.items() if isinstance(model, Path)}

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of all answers (evaluate/cost.py)."""
        limits = {"max_questions": self.max_questions, "max_tokens": self.max_tokens}
        return estimate_evaluation(known, self.local_checkpoints, self.tasks, precision=self.precision, **limits)


def run(config: Config, run: Run) -> None:
    """Write scores.json, speed.json, null_models.json, report.md, scores.png, and conversations-NAME.jsonl per model.

    A judge or reward model adds judge.json; `compare` adds diagnosis.json.
    """
    tasks = _load_tasks(config)
    labels = read_labels(config.labels)
    grader, judged_by = calibrate(_judge(config, run), labels, tasks, run)
    items, num_left_out = _items(config, run, tasks, labels)
    groups = find_groups(config.local_checkpoints, config.roles.named()) if config.compare else []
    replies_by_model = {name: _ask(config, run, name, items) for name in config.checkpoints}
    everyone: list[EvaluatedModel] = []
    for name, model in config.checkpoints.items():
        rows = grade_replies(grader, labels, items, replies_by_model[name].replies)
        speed = Speed.measured(
            _num_weight_bytes(model) if isinstance(model, Path) else 0,
            generated_tokens=replies_by_model[name].num_tokens,
            prompt_tokens=replies_by_model[name].num_prompt_tokens,
            seconds=replies_by_model[name].seconds,
        )
        everyone.append(EvaluatedModel(name, rows, speed))
    if config.only_judged:
        judged = _judged_for_all(everyone)
        run.log(f"left out {len(items) - len(judged):,} questions that were not judged for every model")
        num_left_out += len(items) - len(judged)
        items = [items[index] for index in judged]
        everyone = [replace(answers, rows=[answers.rows[index] for index in judged]) for answers in everyone]
    scores = {**score(everyone), "left_out": num_left_out}
    for answers in everyone:
        write_jsonl(run.output / conversations_name(answers.name), answers.rows)
        _tell(run, config, answers, scores["checkpoints"][answers.name])
    nulls = null_scores(items, grader, seed=config.seed)
    artifact.write_text(run.output / NULL_MODELS, _dump({"models": nulls}))
    if judged_by:
        judged_by["undecided"] = {answers.name: num_undecided(answers.rows) for answers in everyone}
        artifact.write_text(run.output / "judge.json", _dump(judged_by))
    artifact.write_text(run.output / SCORES, _dump(scores))
    artifact.write_text(run.output / SPEED, _dump({answers.name: answers.speed.to_json() for answers in everyone}))
    run.records |= {SPEED, "report.md"}  # speeds differ from run to run
    described = _described(config, items) if groups else {}
    diagnoses = diagnose(groups, everyone, config.local_checkpoints, config.general, described)
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
    endpoint = (settings.endpoint, settings.model, settings.key_variable, config.max_batch)
    source = settings.checkpoint or flat_endpoint(*endpoint)
    return open_completer(source, options=_options(config), secret=run.secret, device=config.device)


def _options(config: Config) -> EngineOptions:
    dtype, is_int8_cache = torch_dtype(config.precision), config.kv_cache == "int8"
    return EngineOptions(max_batch=config.max_batch, dtype=dtype, is_int8_cache=is_int8_cache)


def _described(config: Config, items: list[Item]) -> dict[str, float]:
    """Describe the questions of the students' own task, with lengths in tokens of the first checkpoint."""
    own = [item.question.conversation for item in items if item.task.name not in config.general]
    chat = ChatFormat(Tokenizer.load(next(iter(config.local_checkpoints.values()))))
    return describe_questions(own, [len(chat.prompt(each)) for each in own])


def _load_tasks(config: Config) -> list[Task]:
    tasks: dict[str, Task] = {}
    for path in config.tasks:
        task = Task.load(path)
        if task.name in tasks:
            raise ConfigError(f"tasks has '{task.name}' twice", expected="tasks with different names")
        tasks[task.name] = task
    if not set(config.general) < set(tasks):
        raise ConfigError(
            f"general = {', '.join(config.general)}", expected=f"some, but not all, of the tasks {', '.join(tasks)}"
        )
    return list(tasks.values())


def _items(config: Config, run: Run, tasks: Sequence[Task], labels: Labels) -> tuple[list[Item], int]:
    """Sample the questions; with `only_judged`, leave out questions that nothing can judge and count them."""
    drawn = [task.sample(config.max_questions, config.seed) if config.max_questions else task for task in tasks]
    items = [Item(task, question) for task in drawn for question in task.questions]
    if not config.only_judged or config.judge:
        return items, 0
    labelled = {(label.task, label.id) for label in labels}
    judgeable = [
        item
        for item in items
        if is_judged_by_rule(item)
        or (item.task.name, item.question.id) in labelled
        or (config.reward and reference_of(item.question))
    ]
    run.log(f"left out {len(items) - len(judgeable):,} of {len(items):,} questions: nothing can judge the answers")
    if not judgeable:
        hint = "Name a judge, a reward model or labels, or leave out only_judged"
        given = "only_judged, but nothing can judge the answer to any question"
        raise ConfigError(given, expected="at least one question with a rule, reference or label", hint=hint)
    return judgeable, len(items) - len(judgeable)


def _judged_for_all(everyone: Sequence[EvaluatedModel]) -> list[int]:
    """Return the indices of the questions judged for every model; ConfigError without any."""
    judged = [
        index
        for index, rows in enumerate(zip(*(each.rows for each in everyone), strict=True))
        if all(map(is_judged, rows))
    ]
    if not judged:
        hint = "Let people judge the answers of every model (`puna review`), or leave out only_judged"
        given = "only_judged, but no question was judged for every model"
        raise ConfigError(given, expected="at least one question judged for every model", hint=hint)
    return judged


def _ask(config: Config, run: Run, name: str, items: list[Item]) -> ModelReplies:
    """Return the replies of one model: from the interrupted run, an earlier evaluation, or new requests.

    An endpoint answers in chunks, and the journal keeps every chunk. A checkpoint answers everything at once.
    """
    journal = run.journal(f"answers-{name}")
    parts = [from_json(record) for record in journal.records]
    num_done = sum(len(part.replies) for part in parts)
    if num_done:
        run.log(f"{name}: {num_done:,} of {len(items):,} questions were answered before the interruption")
    size = len(items) if isinstance(config.checkpoints[name], Path) else CHUNK
    for start in range(num_done, len(items), max(1, size)):
        part = _ask_anew(config, run, name, items[start : start + size])
        journal.append(to_json(part))
        parts.append(part)
    return join(parts)


def _ask_anew(config: Config, run: Run, name: str, items: list[Item]) -> ModelReplies:
    model = config.checkpoints[name]
    reused: list[Reply | None] = [None] * len(items)
    if config.answers is not None and isinstance(model, Path):
        reused = read_earlier(config.answers, config.model_dump(mode="json"), model, items)
        run.log(f"{name}: reused {sum(reply is not None for reply in reused):,} of {len(items):,} earlier answers")
        if all(reused):
            return read_measured(config.answers, model, [reply for reply in reused if reply])
    new = [at for at, reply in enumerate(reused) if reply is None]
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
    completer = open_completer(model, options=_options(config), secret=run.secret, device=config.device)
    warm_up = isinstance(model, Path)
    fresh = ask(completer, sampling, config.seed, run, name, [items[at] for at in new], warm_up=warm_up)
    fresh_by_index = dict(zip(new, fresh.replies, strict=True))
    return fresh._replace(replies=[reply or fresh_by_index[at] for at, reply in enumerate(reused)])


def _tell(run: Run, config: Config, answers: EvaluatedModel, slices: dict[str, Any]) -> None:
    overall, num_unjudged = slices[OVERALL], slices.get(UNJUDGED, {}).get("n", 0)
    unjudged = f", {num_unjudged:,} answers not judged" if num_unjudged else ""
    right = f"{overall['score']:.1%} of {overall['n']:,} questions" if overall["n"] else "no question judged"
    run.log(f"{answers.name}: {right}{unjudged}, {answers.speed.generated_tokens_per_s:,.0f} tokens/s")
    undecided = num_undecided(answers.rows)
    if undecided:
        run.log(
            f"{answers.name}: {undecided:,} of {len(answers.rows):,} answers left undecided by the judge count as wrong"
        )
    num_cut = sum(row["finish_reason"] == "length" for row in answers.rows)
    if num_cut:
        limit = f"max_tokens = {config.max_tokens}, or where the context ends"
        run.log(f"{answers.name}: {num_cut:,} answers were cut off at {limit}")


def _num_weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for folder in {path, checkpoint_at(path)} for file in folder.glob("*.safetensors"))


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
