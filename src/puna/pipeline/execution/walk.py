"""A recipe -> all artifacts, step by step, with the remaining time; or a table of the forecast."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from puna.pipeline.config import StageConfig, parse_config, suggestion
from puna.pipeline.errors import ConfigError
from puna.pipeline.execution.dry_run import ForeseenStep, Pace, as_json, foresee, pace_of, read_cost, total_of
from puna.pipeline.execution.executor import perform
from puna.pipeline.execution.recipe import Recipe, config_class, override, resolve
from puna.pipeline.machine import machine_memory
from puna.pipeline.run import elapsed, ranks
from puna.pipeline.units import show_bytes, show_duration


def configs_of(recipe: Recipe) -> list[StageConfig]:
    """Return the config of every step; ConfigError for the first invalid setting.

    Example:
        >>> configs_of(recipe)[1].steps
        100
    """
    return [parse_config(config_class(step.stage), resolve(step, recipe), where=step.name) for step in recipe.steps]


def end_at(recipe: Recipe, until: str) -> Recipe:
    """Return the recipe up to the step named `until`, with all steps for an empty name.

    Raises:
        ConfigError: No step has the name.

    Example:
        >>> [step.name for step in end_at(recipe, "ingest.train").steps]
        ['ingest.train']
    """
    if not until:
        return recipe
    names = [step.name for step in recipe.steps]
    if until not in names:
        raise ConfigError(
            f"--until {until} names no step of {recipe.path}",
            expected=", ".join(names),
            hint=suggestion(until, names),
        )
    return replace(recipe, steps=recipe.steps[: names.index(until) + 1])


def run_recipe(
    recipe: Recipe | Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    until: str = "",
    ignore_receipts: bool = False,
    console: Console | None = None,
) -> dict[str, Path]:
    """Run a recipe, reuse up-to-date artifacts, and return the artifact of every step by the step's name.

    Args:
        recipe: A recipe or the path of its TOML file.
        settings: Settings that win over the file, as in `{"sft.optim.lr": 1e-4}`.
        until: Name of the last step to run; empty runs all steps.
        ignore_receipts: Continue after a receipt that did not hold.
        console: Terminal for the log, progress bars and the table of steps; None prints nothing.

    Raises:
        PunaError: A setting is invalid, an input was altered, or a receipt did not hold.

    Example:
        >>> artifacts = run_recipe("recipes/shop.toml", {"sft.steps": 200}, until="sft")
        >>> artifacts["sft"].as_posix()
        'build/shop/sft'
    """
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.read(Path(recipe))
    loaded = override(loaded, dict(settings or {}))
    raise_recipe(loaded, console or Console(quiet=True), ignore_receipts=ignore_receipts, until=until)
    return {step.name: loaded.out / step.name for step in end_at(loaded, until).steps}


def raise_recipe(recipe: Recipe, console: Console, *, ignore_receipts: bool = False, until: str = "") -> None:
    """Run every step without an up-to-date artifact, in order; print a table of steps, times and artifacts.

    Args:
        until: Name of the last step to run; empty runs all steps. The whole file is checked in both cases.
    """
    configs = configs_of(recipe)
    part = end_at(recipe, until)
    clock = _Clock(part, configs[: len(part.steps)])
    _print_problems(clock.steps, console)
    table = Table("step", "time", "artifact", title=f"{recipe.path.name}")
    start = time.monotonic()
    for index, (step, config) in enumerate(zip(part.steps, configs, strict=False)):
        begun = time.monotonic()
        path = part.out / step.name
        console.print(
            f"Step {index + 1} of {len(part.steps)}: {step.name}{clock.left(index)}",
            style="bold",
            markup=False,
            highlight=False,
        )
        options = {"ignore_receipts": ignore_receipts, "foreseen_seconds": clock.foreseen_seconds(index)}
        done = perform(step.stage, config, path, console, **options)
        clock.finish(index, done)
        table.add_row(step.name, elapsed(begun) if done else "there already", str(path))
    table.caption = f"{elapsed(start)} in all"
    console.print(table)


class _Clock:
    """Forecasts of the steps, corrected by the cost of finished steps. Missing estimates follow once inputs exist.

    Forecasts hold for one process. Several processes divide the work of a step, so the clock then has no forecasts.
    """

    def __init__(self, recipe: Recipe, configs: Sequence[StageConfig]):
        self._recipe, self._configs = recipe, configs
        self.steps = foresee(recipe, configs) if ranks() == (0, 1) else []
        self._pace = pace_of(self.steps)

    def foreseen_seconds(self, index: int) -> float | None:
        """Return the forecast of a step without the pace factor."""
        return self.steps[index].estimate.seconds if self.steps else None

    def left(self, index: int) -> str:
        """Describe the total time of a step and all later steps: " (about 3.1 min left)"."""
        if not self.steps:
            return ""
        if not self.steps[index].runs:
            return ", there already"
        return f" ({time_left(self.steps[index:], self._pace)})"

    def finish(self, index: int, done: bool) -> None:
        """Count the cost of a finished step; repeat the forecast if a later step waits for an artifact."""
        if not self.steps or not done:
            return
        step = self._recipe.steps[index]
        cost = read_cost(self._recipe.out / step.name)
        if cost:
            self._pace.add(step.stage.verb, cost)
        if any(each.unknown.startswith("known once") for each in self.steps[index + 1 :]):
            self.steps = foresee(self._recipe, self._configs)


def time_left(steps: Sequence[ForeseenStep], pace: Pace) -> str:
    """Describe the time of steps, and count steps without an estimate: "about 3.1 min left, 2 steps not counted".

    Example:
        >>> time_left([ForeseenStep(step, Status("would run"), Estimate(seconds=90.0))], Pace())
        'about 90.0 s left'
    """
    total = total_of(steps, pace)
    without = len(total["without_estimate"])
    named = f", {without} step{'s' if without > 1 else ''} not counted" if without else ""
    return f"about {show_duration(total['seconds'])} left{named}"


def dry_run(recipe: Recipe, console: Console, *, until: str = "", is_json: bool = False) -> None:
    """Print the plan of `raise_recipe`: steps, time, memory, settings that do not fit the data. Writes nothing."""
    configs = configs_of(recipe)
    part = end_at(recipe, until)
    steps = foresee(part, configs[: len(part.steps)])
    pace, memory = pace_of(steps), machine_memory()
    if is_json:
        print(json.dumps(as_json(part, steps, pace, memory), indent=2, ensure_ascii=False))
        return
    console.print(_table(recipe, steps, pace))
    _print_problems(steps, console)
    console.print(_summary(steps, pace, memory), markup=False, highlight=False)


def _print_problems(steps: Sequence[ForeseenStep], console: Console) -> None:
    for each in steps:
        for problem in each.problems:
            console.print(f"{each.step.name}: {problem}", style="yellow", markup=False, highlight=False)


def _table(recipe: Recipe, steps: Sequence[ForeseenStep], pace: Pace) -> Table:
    table = Table("step", "state", "time", "memory", "why, and how much", title=f"{recipe.path.name}: nothing is run")
    for each in steps:
        seconds, memory = pace.seconds(each), each.estimate.memory_bytes
        reason = f"{'because ' if each.status.state == 'would run' else ''}{'; '.join(each.status.reasons)}"
        notes = [reason if each.status.reasons else "", each.estimate.note, each.unknown]
        table.add_row(
            each.step.name,
            each.status.state,
            "" if not each.runs else "?" if seconds is None else show_duration(seconds),
            show_bytes(memory) if memory else "" if not each.runs else "?",
            ". ".join(filter(None, notes)),
        )
    return table


def _summary(steps: Sequence[ForeseenStep], pace: Pace, machine_bytes: int) -> str:
    total = total_of(steps, pace)
    running = [each for each in steps if each.runs]
    if not running:
        return "all steps are there already"
    memory = f"at most {show_bytes(total['memory_bytes'])}" if total["memory_bytes"] else "memory not known"
    machine = f"{memory} of this machine's {show_bytes(machine_bytes)}"
    if len(total["without_estimate"]) == len(running):
        return f"{len(running)} of {len(steps)} steps would run: none of them has an estimate of its time, {machine}."
    lines = [
        f"{len(running)} of {len(steps)} steps would run: about {show_duration(total['seconds'])}, {machine}. Times "
        "are right within a factor of two where nothing else runs."
    ]
    if total["without_estimate"]:
        lines.append(f"Without an estimate: {', '.join(total['without_estimate'])}.")
    return " ".join(lines)
