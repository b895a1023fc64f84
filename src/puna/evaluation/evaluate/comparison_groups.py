"""Checkpoints and their lineage -> comparison groups: a student with teacher, start model and baseline.

The lineage gives the roles; the settings `roles` override the lineage.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from puna.evaluation.diagnose.comparison_group import GroupMember
from puna.evaluation.diagnose.record import Record
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.storage.records import read_record

# Fields of config.json that two networks of equal size share.
WIDTHS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# Roles of inputs whose training a quantized, pruned or merged checkpoint keeps.
FORMS = ("checkpoint", "model", "base")


class Roles(StageConfig):
    """Roles of the models where the lineage does not tell them.

    Example:
        >>> Roles(student="mine", teacher="large").named()
        {'student': 'mine', 'teacher': 'large'}
    """

    student: str = Field(default="", description="Name of the model to diagnose")
    plain: str = Field(default="", description="Name of the baseline: the same network, trained without the teacher")
    start: str = Field(default="", description="Name of the start model, from which the student's training began")
    teacher: str = Field(default="", description="Name of the student's teacher")

    def named(self) -> dict[str, str]:
        """Return the stated roles."""
        return {role: name for role, name in self.model_dump().items() if name}


class GroupNames(NamedTuple):
    """Names of a student and of the models to compare with; None for an absent model.

    Example:
        >>> find_groups({"mine": student, "sft": plain, "large": teacher}, {})
        [GroupNames(student='mine', baseline='sft', start=None, teacher='large')]
    """

    student: str
    baseline: str | None
    start: str | None
    teacher: str | None


def find_groups(checkpoints: Mapping[str, Path], roles: Mapping[str, str]) -> list[GroupNames]:
    """Find every student with a baseline or start model.

    Students are all checkpoints with a teacher in the lineage; without teachers, all trained checkpoints.

    Raises:
        ConfigError: A role names no checkpoint, or no student has a baseline or start model.
    """
    for role, name in roles.items():
        if name not in checkpoints:
            raise ConfigError(f"roles.{role} = '{name}'", expected=f"one of {', '.join(checkpoints)}")
    students = [roles["student"]] if "student" in roles else _students(checkpoints)
    others = {name for role, name in roles.items() if role != "student"}
    groups = [_group(name, checkpoints, roles) for name in students if name not in others]
    groups = [group for group in groups if group.baseline or group.start]
    if not groups:
        raise ConfigError(
            f"compare among {', '.join(checkpoints)}",
            expected="a student that Puna trained, and its start model or the same network without the teacher",
            hint="Name them: --roles.student NAME --roles.plain NAME --roles.teacher NAME --roles.start NAME",
        )
    return groups


def read_member(name: str, path: Path) -> GroupMember:
    """Read training record, tokenizer and chat template of a checkpoint."""
    run, template = _run_of(path), path / "chat_template.jinja"
    text = template.read_text(encoding="utf-8", errors="replace") if template.is_file() else ""
    return GroupMember(name, Record.read(run) if run else None, Tokenizer.load(path).fingerprint, text)


def _students(checkpoints: Mapping[str, Path]) -> list[str]:
    """Return the checkpoints with a teacher; without any, all trained checkpoints."""
    trained = {name: run for name, path in checkpoints.items() if (run := _run_of(path))}
    # A quantized form of a student has no training record beyond the student's.
    whole = [name for name, run in trained.items() if run == checkpoints[name]] or list(trained)
    return [name for name in whole if _teacher_hash(trained[name])] or whole


def _group(student: str, checkpoints: Mapping[str, Path], roles: Mapping[str, str]) -> GroupNames:
    run = _run_of(checkpoints[student])
    inputs = artifact.read_manifest(run).inputs if run else {}
    hashes = {name: _hash(path) for name, path in checkpoints.items() if name != student}
    by_hash = {value: name for name, value in hashes.items() if value}
    start = roles.get("start") or by_hash.get(inputs.get("start", {}).get("hash", ""))
    teacher = roles.get("teacher") or by_hash.get(_teacher_hash(run) if run else "")
    baseline = roles.get("plain")
    if baseline is None and run and _teacher_hash(run):
        others = [name for name in hashes if name not in (start, teacher)]
        baseline = next((name for name in others if _is_baseline(student, name, checkpoints)), None)
    return GroupNames(student, baseline, start, teacher)


def _is_baseline(student: str, name: str, checkpoints: Mapping[str, Path]) -> bool:
    """Tell whether a checkpoint is a trained network of the student's size, not quantized, without a teacher."""
    path, run = checkpoints[name], _run_of(checkpoints[name])
    is_whole = run is not None and run == path
    return is_whole and not _ever_had_a_teacher(path) and _widths(path) == _widths(checkpoints[student])


def _run_of(path: Path) -> Path | None:
    """Return the artifact of the training run: `path`, or the checkpoint that was quantized, pruned or merged."""
    seen: set[Path] = set()  # a forged lineage may lead in a circle
    while artifact.is_artifact(path) and path not in seen:
        seen.add(path)
        if Record.read(path):
            return path
        inputs = artifact.read_manifest(path).inputs
        parents = [path / inputs[role]["path"] for role in FORMS if role in inputs]
        if not parents:
            return None
        path = parents[0].resolve()
    return None


def _teacher_hash(path: Path) -> str:
    """Return the content hash of a run's teacher, directly or through stored labels; "" without a teacher."""
    for role, entry in artifact.read_manifest(path).inputs.items():
        if role == "teacher":
            return entry["hash"]
        labels = path / entry["path"]
        if entry["kind"] == "labels" and artifact.is_artifact(labels):
            made_of = artifact.read_manifest(labels).inputs
            return next((made_of[role]["hash"] for role in ("teacher", "checkpoint") if role in made_of), "")
    return ""


def _ever_had_a_teacher(path: Path) -> bool:
    seen: set[Path] = set()
    while artifact.is_artifact(path) and path not in seen:
        seen.add(path)
        if _teacher_hash(path):
            return True
        start = artifact.read_manifest(path).inputs.get("start")
        if start is None:
            return False
        path = (path / start["path"]).resolve()
    return False


def _hash(path: Path) -> str:
    return artifact.read_manifest(path).content_hash if artifact.is_artifact(path) else ""


def _widths(path: Path) -> list[Any]:
    config = path / "config.json"
    settings = read_record(config, dict[str, Any], expected="a model's settings as JSON") if config.is_file() else {}
    return [settings.get(name) for name in WIDTHS]
