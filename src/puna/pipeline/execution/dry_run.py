"""A recipe -> state, time and memory of every step, and settings that do not fit the data. Writes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ArtifactError, PunaError
from puna.pipeline.estimate import Estimate, Known, NotKnownYetError
from puna.pipeline.execution.changes import Status, status_of
from puna.pipeline.execution.executor import COST
from puna.pipeline.execution.recipe import Recipe, Step
from puna.pipeline.storage.records import read_record

# Finished steps scale the forecasts of other stages once the finished steps have this many forecast seconds in total.
ENOUGH_SECONDS = 60.0


@dataclass(frozen=True)
class Cost:
    """Time of a finished step, and the forecast made before the run; None without a forecast.

    Example:
        >>> Cost(seconds=300.0, foreseen_seconds=100.0).seconds
        300.0
    """

    seconds: float
    foreseen_seconds: float | None


@dataclass(frozen=True)
class ForeseenStep:
    """A step of a recipe in a dry run.

    Attributes:
        unknown: Reason for a missing estimate: "known once ingest.train has run".
        earlier: Cost of the run that made the artifact at the step's path, regardless of the settings of the run.

    Example:
        >>> ForeseenStep(step, Status("would run"), Estimate(seconds=90.0)).runs
        True
    """

    step: Step
    status: Status
    estimate: Estimate
    unknown: str = ""
    earlier: Cost | None = None

    @property
    def runs(self) -> bool:
        """Whether the step may have work to do; "may run" counts, since the outcome depends on earlier steps."""
        return self.status.state != "there already"

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about obstacles that would stop the step, then about settings that do not fit the data."""
        return (*self.status.problems, *self.estimate.misfits)


class Pace:
    """Finished steps -> the factor by which the machine is slower than forecast.

    The factor of a stage is measured time / forecast time, summed over the finished steps of the stage. A stage without
    finished steps takes the factor of all finished steps if their forecast time is at least 60 s, else 1.

    Example:
        >>> pace = Pace()
        >>> pace.add("sft", Cost(seconds=300.0, foreseen_seconds=100.0))
        >>> pace.factor("sft")
        3.0
    """

    def __init__(self) -> None:
        self._costs: list[tuple[str, Cost]] = []

    def add(self, verb: str, cost: Cost) -> None:
        """Count a finished step that had a forecast."""
        if cost.foreseen_seconds:
            self._costs.append((verb, cost))

    def factor(self, verb: str) -> float:
        """Return the factor for the steps of a stage."""
        own = [cost for name, cost in self._costs if name == verb]
        if own:
            return _ratio(own)
        every = [cost for _, cost in self._costs]
        foreseen = sum(cost.foreseen_seconds or 0.0 for cost in every)
        return _ratio(every) if foreseen >= ENOUGH_SECONDS else 1.0

    def seconds(self, foreseen: ForeseenStep) -> float | None:
        """Return forecast time x factor, else the time of the earlier run, else None; 0 for a step without work."""
        if not foreseen.runs:
            return 0.0
        if foreseen.estimate.seconds is None:
            return foreseen.earlier.seconds if foreseen.earlier else None
        return foreseen.estimate.seconds * self.factor(foreseen.step.stage.verb)


def _ratio(costs: Sequence[Cost]) -> float:
    return sum(cost.seconds for cost in costs) / sum(cost.foreseen_seconds or 0.0 for cost in costs)


def foresee(recipe: Recipe, configs: Sequence[StageConfig]) -> list[ForeseenStep]:
    """Walk the steps in order; estimate steps with work from the inputs, or from sketches of pending inputs."""
    known, steps = Known(), list[ForeseenStep]()
    for step, config in zip(recipe.steps[: len(configs)], configs, strict=True):
        path = recipe.out / step.name
        status = status_of(step.stage, config, path, _pending_roles(recipe, config, known))
        foreseen = ForeseenStep(step, status, Estimate(), earlier=read_cost(path))
        if foreseen.runs:
            foreseen = _estimated(recipe, foreseen, config, known)
            known.pending[path] = foreseen.estimate.sketch
        steps.append(foreseen)
    return steps


def pace_of(steps: Sequence[ForeseenStep]) -> Pace:
    """Return the pace of the artifacts on the disk, regardless of the machine that made the artifacts.

    Example:
        >>> steps = [ForeseenStep(step, Status("there already"), Estimate(), earlier=Cost(300.0, 100.0))]
        >>> pace_of(steps).factor("sft")
        3.0
    """
    pace = Pace()
    for each in steps:
        if each.earlier:
            pace.add(each.step.stage.verb, each.earlier)
    return pace


def read_cost(path: Path) -> Cost | None:
    """Read the cost of the run that made an artifact; None for an artifact without a readable cost.

    Example:
        >>> read_cost(Path("build/not-made-yet")) is None
        True
    """
    try:
        return read_record(path / COST, Cost, expected="seconds as a run writes them")
    except (FileNotFoundError, ArtifactError):
        return None


def _pending_roles(recipe: Recipe, config: StageConfig, known: Known) -> dict[str, str]:
    pending = {role: known.pending_artifact(source) for role, source in config.inputs().items()}
    return {role: str(path.relative_to(recipe.out)) for role, path in pending.items() if path}


def _estimated(recipe: Recipe, foreseen: ForeseenStep, config: StageConfig, known: Known) -> ForeseenStep:
    if foreseen.status.problems:
        return replace(foreseen, unknown="something is missing")
    try:
        estimate = config.estimate(known)
    except NotKnownYetError as error:
        pending = known.pending_artifact(error.path)
        assert pending is not None, "only a pending artifact is not known yet"
        return replace(foreseen, unknown=f"known once {pending.relative_to(recipe.out)} has run")
    except (PunaError, OSError) as error:
        return replace(foreseen, status=replace(foreseen.status, problems=(f"would stop: {error}",)))
    return replace(foreseen, estimate=estimate, unknown="" if estimate.seconds is not None else "no estimate")


def as_json(recipe: Recipe, steps: Sequence[ForeseenStep], pace: Pace, machine_bytes: int) -> dict[str, Any]:
    """Return the dry run as data: a list of steps and the totals; seconds and bytes are numbers or null.

    Example:
        >>> steps = [ForeseenStep(step, Status("would run"), Estimate(seconds=90.0))]
        >>> as_json(recipe, steps, Pace(), machine_bytes=2**34)["steps"][0]["seconds"]
        90.0
    """
    rows = [
        {
            "step": each.step.name,
            "stage": each.step.stage.verb,
            "state": each.status.state,
            "reasons": list(each.status.reasons),
            "problems": list(each.problems),
            "seconds": pace.seconds(each),
            "memory_bytes": each.estimate.memory_bytes,
            "work": each.estimate.note,
            "unknown": each.unknown,
            "artifact": str(recipe.out / each.step.name),
        }
        for each in steps
    ]
    total = total_of(steps, pace)
    return {"recipe": str(recipe.path), "out": str(recipe.out), "steps": rows, **total, "machine_bytes": machine_bytes}


def total_of(steps: Sequence[ForeseenStep], pace: Pace) -> dict[str, Any]:
    """Return the total time of all steps, the largest memory of a step, and the steps without an estimate.

    Example:
        >>> steps = [ForeseenStep(step, Status("would run"), Estimate(seconds=90.0, memory_bytes=2**30))]
        >>> total_of(steps, Pace())
        {'seconds': 90.0, 'memory_bytes': 1073741824, 'without_estimate': []}
    """
    seconds = [pace.seconds(each) for each in steps]
    without = [each.step.name for each, time in zip(steps, seconds, strict=True) if time is None]
    memory = max((each.estimate.memory_bytes or 0 for each in steps), default=0)
    return {
        "seconds": sum(time or 0.0 for time in seconds),
        "memory_bytes": memory or None,
        "without_estimate": without,
    }
