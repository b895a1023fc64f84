"""An evaluation's directory -> what each checkpoint answered in it, found by content and not by name.

Measures nothing: `puna evaluate` does. A checkpoint that has changed since it was asked is not found.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.data.shards import read_rows
from puna.evaluation.tasks.intervals import Interval, score_interval
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.storage.records import read_record

OVERALL = "overall"
EXPECTED = "scores as 'evaluate' writes them"


@dataclass(frozen=True)
class Answered:
    """One checkpoint's part of an evaluation. `rows` are its answers, in the order of the questions.

    Scores and groups are those of the answers whose content was judged; an older evaluation tells of none that was not.
    `num_left_out` more questions were not asked because nothing could judge their answers (evaluate.only_judged).
    """

    name: str
    rows: list[dict[str, Any]]
    weight_bytes: int
    tokens_per_s: float
    num_left_out: int = 0

    @cached_property
    def judged(self) -> list[dict[str, Any]]:
        """The rows whose content was judged."""
        return [row for row in self.rows if row.get("judged", True)]

    @cached_property
    def scores(self) -> dict[tuple[str, str], float]:
        """The score of every judged answer, by task and id of its question."""
        return {(row["task"], row["id"]): row["score"] for row in self.judged}

    @cached_property
    def groups(self) -> dict[tuple[str, str], str]:
        """The group of every judged answer; a question without one is a group of its own."""
        return {
            (row["task"], row["id"]): f"{row['task']} {row['group'] or 'question ' + row['id']}" for row in self.judged
        }

    @property
    def interval(self) -> Interval:
        """The mean score with its interval."""
        return score_interval(list(self.scores.values()), list(self.groups.values()))


@dataclass(frozen=True)
class Speed:
    """What a release tells of speed.json."""

    weight_bytes: int
    generated_tokens_per_s: float


@dataclass(frozen=True)
class _Scores:
    """The part of scores.json that a release reads."""

    checkpoints: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    left_out: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, read: `hashes` has the content of every checkpoint asked, by the name it was asked under."""

    path: Path
    tasks: list[str]
    temperature: float
    hashes: dict[str, str]
    checkpoints: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    speed: dict[str, Speed]
    null_models: list[dict[str, Any]] | None = None
    num_left_out: int = 0

    def name_of(self, content: str) -> str | None:
        """Return the name under which a checkpoint with this content hash was asked."""
        return next((name for name, asked in self.hashes.items() if asked == content), None)

    def answered(self, content: str) -> Answered | None:
        """Return the answers of the checkpoint with this content hash; None if it was not asked."""
        name = self.name_of(content)
        if name is None:
            return None
        speed = self.speed[name]
        rows = list(read_rows(self.path / f"conversations-{name}.jsonl"))
        return Answered(name, rows, speed.weight_bytes, speed.generated_tokens_per_s, self.num_left_out)

    def null_answers(self, candidate: Answered) -> list[Answered] | None:
        """Return what the null models scored on the candidate's questions; None for an evaluation without them."""
        if self.null_models is None:
            return None
        if any(len(model["scores"]) != len(candidate.rows) for model in self.null_models):
            expected = f"{len(candidate.rows):,} scores of each null model, one for every answer of {candidate.name}"
            raise ArtifactError(f"{self.path / 'null_models.json'}", expected=expected, hint="Evaluate again")
        return [
            Answered(
                model["description"],
                [
                    {**row, "score": score or 0.0, "judged": score is not None}
                    for row, score in zip(candidate.rows, model["scores"], strict=True)
                ],
                weight_bytes=0,
                tokens_per_s=0.0,
            )
            for model in self.null_models
        ]


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, and under which name it asked the checkpoint that is released."""

    name: str
    tasks: list[str]
    temperature: float
    checkpoints: dict[str, dict[str, dict[str, float]]]
    differences: list[dict[str, Any]]

    @property
    def overall(self) -> dict[str, float]:
        """The entry of all questions: score, low, high, n, groups."""
        return self.checkpoints[self.name][OVERALL]

    def against(self, other: str) -> tuple[float, float, float] | None:
        """Return how much better this checkpoint is than `other`: difference and its interval."""
        for entry in self.differences:
            part = entry["slices"][OVERALL]
            if (entry["checkpoint"], entry["against"]) == (self.name, other):
                return part["difference"], part["low"], part["high"]
            if (entry["checkpoint"], entry["against"]) == (other, self.name):
                return -part["difference"], -part["high"], -part["low"]
        return None


def read_evaluation(path: Path, setting: str) -> Evaluation:
    """Read a scores artifact; ConfigError that names the setting if it is none, ArtifactError if it cannot be read."""
    manifest = artifact.read_manifest(path)
    if manifest.kind != "scores":
        raise ConfigError(f"{setting} = {path} is an artifact of kind '{manifest.kind}'", expected="one of 'evaluate'")
    prefix = "checkpoints."
    hashes = {
        role.removeprefix(prefix): entry["hash"] for role, entry in manifest.inputs.items() if role.startswith(prefix)
    }
    try:
        found = read_record(path / "scores.json", _Scores, expected=EXPECTED)
        speed = read_record(path / "speed.json", dict[str, Speed], expected="speeds as 'evaluate' writes them")
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} does not exist", expected=EXPECTED) from None
    try:
        tasks = [Path(task).name for task in manifest.config["tasks"]]
        temperature = float(manifest.config["temperature"])
    except (KeyError, TypeError, ValueError):
        given = f"{path / artifact.MANIFEST}: config.tasks and config.temperature"
        raise ArtifactError(given, expected="the settings of an evaluation") from None
    null_models = _read_null_models(path / "null_models.json")
    scores = found.checkpoints, found.differences, speed, null_models, found.left_out
    return Evaluation(path, tasks, temperature, hashes, *scores)


def _read_null_models(path: Path) -> list[dict[str, Any]] | None:
    """Read the null models of an evaluation; None where an older version wrote none."""
    if not path.is_file():
        return None
    expected = "at least one null model, each with a description and a score from 0 to 1, or null, for every answer"
    models = read_record(path, dict[str, Any], expected=expected, hint="Evaluate again").get("models")
    if not isinstance(models, list) or not models or not all(map(_is_null_model, models)):
        raise ArtifactError(f"{path} holds something else", expected=expected, hint="Evaluate again")
    return models


def _is_null_model(model: Any) -> bool:
    if not (isinstance(model, dict) and isinstance(model.get("description"), str)):
        return False
    scores = model.get("scores")
    return isinstance(scores, list) and all(
        score is None or (isinstance(score, int | float) and 0 <= score <= 1) for score in scores
    )


def scores_of(evaluation: Evaluation | None, content: str) -> Scores | None:
    """Return what the card tells of an evaluation; None where no checkpoint with this content hash was asked."""
    name = evaluation and evaluation.name_of(content)
    if evaluation is None or name is None:
        return None
    return Scores(name, evaluation.tasks, evaluation.temperature, evaluation.checkpoints, evaluation.differences)
