"""The files of an evaluation -> values: graded answers, scores, speeds and null models of every evaluated model.

`puna evaluate` writes the files, `puna release`, `puna review` and later evaluations read them. A release finds a
checkpoint by content hash: the scores of a checkpoint that changed since the evaluation do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.data.shards import read_rows
from puna.evaluation.tasks.intervals import Interval, score_interval
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.storage.records import read_record

OVERALL = "overall"  # slice of all judged answers
# First word of the reason of an answer that a judge left undecided.
UNDECIDED = "undecided"
SCORES, SPEED, NULL_MODELS = "scores.json", "speed.json", "null_models.json"

Row = dict[str, Any]


def conversations_name(model: str) -> str:
    """Return the name of the file with a model's graded answers.

    Example:
        >>> conversations_name("mine")
        'conversations-mine.jsonl'
    """
    return f"conversations-{model}.jsonl"


def is_judged(row: Row) -> bool:
    """Tell whether the content of an answer was judged; evaluations before the field existed judged every answer.

    Example:
        >>> is_judged({"score": 1.0}), is_judged({"score": 1.0, "judged": False})
        (True, False)
    """
    return row.get("judged", True)


def group_of(task: str, id: str, group: str) -> str:
    """Return the group of a question among several tasks; a question without a group forms a group of its own.

    Example:
        >>> group_of("shop", "7/2", group="")
        'shop question 7/2'
    """
    return f"{task} {group or 'question ' + id}"


@dataclass(frozen=True)
class Speed:
    """Size and speed of a model in one evaluation, as an entry of speed.json. An endpoint's weights count 0 bytes.

    Example:
        >>> Speed.measured(2_000_000, generated_tokens=1000, prompt_tokens=5000, seconds=2.0).generated_tokens_per_s
        500.0
    """

    weight_bytes: int
    generated_tokens_per_s: float
    generated_tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def measured(cls, weight_bytes: int, *, generated_tokens: int, prompt_tokens: int, seconds: float) -> "Speed":
        """Derive generated tokens per second; the time for reading the prompts counts."""
        per_second = generated_tokens / seconds if seconds else 0.0
        return cls(weight_bytes, per_second, generated_tokens, prompt_tokens, seconds)

    def to_json(self) -> dict[str, float]:
        """Return the entry of speed.json."""
        return {
            "weight_bytes": self.weight_bytes,
            "generated_tokens": self.generated_tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": round(self.seconds, 3),
            "generated_tokens_per_s": round(self.generated_tokens_per_s, 1),
        }


NO_SPEED = Speed(0, 0.0)


@dataclass(frozen=True)
class EvaluatedModel:
    """One model's graded answers in an evaluation, in the order of the questions, with size and speed.

    Attributes:
        name: Name of the model in the evaluation.
        rows: Rows of conversations-NAME.jsonl.
        speed: Size and speed.
        num_left_out: Number of questions left out because nothing could judge the answers (evaluate.only_judged).

    Example:
        >>> row = {"task": "shop", "id": "7/2", "group": "", "score": 1.0, "judged": True}
        >>> EvaluatedModel("mine", [row]).scores
        {('shop', '7/2'): 1.0}
    """

    name: str
    rows: list[Row]
    speed: Speed = NO_SPEED
    num_left_out: int = 0

    @cached_property
    def judged(self) -> list[Row]:
        """Rows with a judged content."""
        return [row for row in self.rows if is_judged(row)]

    @cached_property
    def scores(self) -> dict[tuple[str, str], float]:
        """Score of every judged answer by task and question id."""
        return {(row["task"], row["id"]): row["score"] for row in self.judged}

    @cached_property
    def groups(self) -> dict[tuple[str, str], str]:
        """Group of every judged answer by task and question id."""
        return {(row["task"], row["id"]): group_of(row["task"], row["id"], row["group"]) for row in self.judged}

    @property
    def interval(self) -> Interval:
        """Mean score with the 95 % interval."""
        return score_interval(list(self.scores.values()), list(self.groups.values()))


@dataclass(frozen=True)
class _Scores:
    """Content of scores.json."""

    checkpoints: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    left_out: int = 0


@dataclass(frozen=True)
class Evaluation:
    """The content of a scores artifact.

    Attributes:
        path: Directory of the artifact.
        tasks: Names of the task files.
        temperature: Sampling temperature.
        hashes: Content hash of every evaluated checkpoint by name in the evaluation.
        checkpoints: Slices with scores by name of the model, as in scores.json.
        differences: Paired differences of every two models, as in scores.json.
        speed: Size and speed by name of the model.
        null_models: Content of null_models.json; None for an evaluation by an older version without null models.
        num_left_out: Number of questions left out because nothing could judge the answers.
        settings: All settings of the evaluation.

    Example:
        >>> evaluation = read_evaluation(Path("build/evaluate"), "scores")
        >>> evaluation.answers_of("mine").interval.mean
        0.9
    """

    path: Path
    tasks: list[str]
    temperature: float
    hashes: dict[str, str]
    checkpoints: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    speed: dict[str, Speed]
    null_models: list[dict[str, Any]] | None = None
    num_left_out: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def name_of(self, content: str) -> str | None:
        """Return the evaluation's name for the checkpoint with this content hash; None without a match."""
        return next((name for name, key in self.hashes.items() if key == content), None)

    def answers_of(self, name: str) -> EvaluatedModel:
        """Return the graded answers of a model of this evaluation."""
        rows = list(read_rows(self.path / conversations_name(name)))
        return EvaluatedModel(name, rows, self.speed[name], self.num_left_out)

    def find_model(self, content: str) -> EvaluatedModel | None:
        """Return the graded answers of the checkpoint with this content hash; None without a match."""
        name = self.name_of(content)
        return None if name is None else self.answers_of(name)

    def null_answers(self, candidate: EvaluatedModel) -> list[EvaluatedModel] | None:
        """Return the scores of the null models on the candidate's questions; None for an evaluation without them.

        Raises:
            ArtifactError: The number of scores differs from the number of the candidate's answers.
        """
        if self.null_models is None:
            return None
        if any(len(model["scores"]) != len(candidate.rows) for model in self.null_models):
            expected = f"{len(candidate.rows):,} scores of each null model, one for every answer of {candidate.name}"
            raise ArtifactError(f"{self.path / NULL_MODELS}", expected=expected, hint="Evaluate again")
        return [
            EvaluatedModel(
                model["description"],
                [
                    {**row, "score": score or 0.0, "judged": score is not None}
                    for row, score in zip(candidate.rows, model["scores"], strict=True)
                ],
            )
            for model in self.null_models
        ]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all models of an evaluation, from the point of view of the model `name`.

    Example:
        >>> table = score_table(read_evaluation(Path("build/evaluate"), "scores"), content_hash)
        >>> table.name, table.slices[OVERALL]["n"]
        ('mine', 400)
    """

    name: str
    evaluation: Evaluation

    @property
    def slices(self) -> dict[str, dict[str, float]]:
        """Entries of this model: score, low, high, n, groups by name of the slice."""
        return self.evaluation.checkpoints[self.name]

    def against(self, other: str) -> tuple[float, float, float] | None:
        """Return this model's lead over `other` with the 95 % interval; None without a difference in the file."""
        for entry in self.evaluation.differences:
            part = entry["slices"][OVERALL]
            if (entry["checkpoint"], entry["against"]) == (self.name, other):
                return part["difference"], part["low"], part["high"]
            if (entry["checkpoint"], entry["against"]) == (other, self.name):
                return -part["difference"], -part["high"], -part["low"]
        return None


def read_manifest(path: Path, setting: str) -> Manifest:
    """Read the manifest of a scores artifact.

    Args:
        path: Directory of the artifact.
        setting: Name of the setting for errors.

    Raises:
        ConfigError: The artifact is no evaluation.
    """
    manifest = artifact.read_manifest(path)
    if manifest.kind != "scores":
        raise ConfigError(
            f"{setting} = {path} is an artifact of kind '{manifest.kind}'", expected="an artifact of 'evaluate'"
        )
    return manifest


def read_evaluation(path: Path, setting: str) -> Evaluation:
    """Read a scores artifact. The graded answers stay on disk until `Evaluation.answers_of`.

    Args:
        path: Directory of the artifact.
        setting: Name of the setting for errors.

    Raises:
        ConfigError: The artifact is no evaluation.
        ArtifactError: A file is missing or unreadable.
    """
    manifest = read_manifest(path, setting)
    prefix = "checkpoints."
    hashes = {
        role.removeprefix(prefix): entry["hash"] for role, entry in manifest.inputs.items() if role.startswith(prefix)
    }
    expected = "scores as 'evaluate' writes them"
    try:
        scores = read_record(path / SCORES, _Scores, expected=expected)
        speed = read_record(path / SPEED, dict[str, Speed], expected="speeds as 'evaluate' writes them")
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} does not exist", expected=expected) from None
    try:
        tasks = [Path(task).name for task in manifest.config["tasks"]]
        temperature = float(manifest.config["temperature"])
    except (KeyError, TypeError, ValueError):
        given = f"{path / artifact.MANIFEST}: config.tasks and config.temperature"
        raise ArtifactError(given, expected="the settings of an evaluation") from None
    return Evaluation(
        path,
        tasks,
        temperature,
        hashes,
        scores.checkpoints,
        scores.differences,
        speed,
        _read_null_models(path / NULL_MODELS),
        scores.left_out,
        manifest.config,
    )


def _read_null_models(path: Path) -> list[dict[str, Any]] | None:
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


def score_table(evaluation: Evaluation | None, content: str) -> ScoreTable | None:
    """Return the scores around the checkpoint with this content hash; None if no evaluation has the checkpoint."""
    name = evaluation and evaluation.name_of(content)
    return None if evaluation is None or name is None else ScoreTable(name, evaluation)
