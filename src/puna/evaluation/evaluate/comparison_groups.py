"""Checkpoints and their lineage -> who is the student, its teacher, the model it began as, and the plain one beside it.

Nothing is measured here. What the lineage does not say, the settings can (`roles`).
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

# The widths that make two networks the same size, as config.json names them.
WIDTHS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# Inputs that a checkpoint is another form of: quantize, prune and merge keep what was trained.
FORMS = ("checkpoint", "model", "base")


class Roles(StageConfig):
    """Who is who among the checkpoints, where their lineage does not say it."""

    student: str = Field(default="", description="the model that is to be explained")
    plain: str = Field(default="", description="the same network, trained without the teacher")
    start: str = Field(default="", description="the model that the student began as")
    teacher: str = Field(default="", description="the model that the student learned from")

    def named(self) -> dict[str, str]:
        return {role: name for role, name in self.model_dump().items() if name}


class GroupNames(NamedTuple):
    """A student and those beside it, by their names among the checkpoints; None where there is no such one."""

    student: str
    baseline: str | None
    start: str | None
    teacher: str | None


def find_groups(checkpoints: Mapping[str, Path], roles: Mapping[str, str]) -> list[GroupNames]:
    """Find every student with those beside it: all that learned from a teacher, or else from a start model given too.

    Raises ConfigError if there is none, or a role names no checkpoint.
    """
    for role, name in roles.items():
        if name not in checkpoints:
            raise ConfigError(f"roles.{role} = '{name}'", expected=f"one of {', '.join(checkpoints)}")
    students = [roles["student"]] if "student" in roles else _students(checkpoints)
    found = [_group(name, checkpoints, roles) for name in students if name not in _others(roles)]
    found = [group for group in found if group.baseline or group.start]
    if not found:
        raise ConfigError(
            f"compare among {', '.join(checkpoints)}",
            expected="a student that Puna trained, and the same model without the teacher or the one it began as",
            hint="Name them: --roles.student NAME --roles.plain NAME --roles.teacher NAME --roles.start NAME",
        )
    return found


def read_member(name: str, path: Path) -> GroupMember:
    """Read what the rules want to know of one checkpoint."""
    run, template = _run_of(path), path / "chat_template.jinja"
    text = template.read_text(encoding="utf-8", errors="replace") if template.is_file() else ""
    return GroupMember(name, Record.read(run) if run else None, Tokenizer.load(path).fingerprint, text)


def _others(roles: Mapping[str, str]) -> set[str]:
    return {name for role, name in roles.items() if role != "student"}


def _students(checkpoints: Mapping[str, Path]) -> list[str]:
    """Return who learned from a teacher; if nobody did, who was trained at all."""
    trained = {name: run for name, path in checkpoints.items() if (run := _run_of(path))}
    # A quantized form of a student says nothing of its training that the student itself does not.
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
    """Tell whether a checkpoint is as large as the student, was trained, is stored whole and never had a teacher."""
    path, run = checkpoints[name], _run_of(checkpoints[name])
    is_whole = run is not None and run == path
    return is_whole and not _ever_had_a_teacher(path) and _widths(path) == _widths(checkpoints[student])


def _run_of(path: Path) -> Path | None:
    """Return the artifact that a training run wrote: `path`, or the one that it is another form of."""
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
    """Return the hash of the teacher that a run learned from, itself or through stored labels; "" for none."""
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
    settings = read_record(config, dict[str, Any], expected="a model's settings") if config.is_file() else {}
    return [settings.get(name) for name in WIDTHS]
