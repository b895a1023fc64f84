"""The preview of a run: data summary and estimate before the first step, compared with measurements after the last."""

import copy
import json
from dataclasses import fields
from typing import Any, NamedTuple

from puna.data.packing import Packer, Position
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import DataError
from puna.pipeline.storage.journal import Journal
from puna.training.loop.observer import Observer
from puna.training.loop.training import Training
from puna.training.reports.preview.data_summary import Piece, PlannedBatch, ShownExample, Survey, survey
from puna.training.reports.preview.estimate import Forecast, forecast, outcome
from puna.training.reports.preview.process_memory import forget_peak, peak_bytes
from puna.training.reports.preview.render import (
    as_json,
    data_lines,
    forecast_lines,
    histogram_lines,
    markdown,
    outcome_lines,
    render_example,
)

PAGE, DATA = "preview.md", "preview.json"
_FORECAST_NAMES = {field.name for field in fields(Forecast)}


class BeforeAndAhead(NamedTuple):
    """Data summary and estimate of a run, both made before the first step."""

    found: Survey
    made: Forecast


class Preview(Observer):
    """Observer that shows data summary and estimate before the first step, and compares the estimate after the last.

    Writes preview.md and preview.json into the run directory, run_preview.md and run_preview.json into the artifact.
    No weight changes. A resumed run keeps its first preview.

    Example: `puna sft --preview-only` prints it and stops there.
    """

    def __init__(self) -> None:
        self._made: BeforeAndAhead | None = None

    def begin(self, training: Training) -> None:
        """Show what the run will train on and take.

        Raises:
            DataError: Nothing would be trained.
        """
        run = training.run
        journal = run.journal("preview")
        earlier = _read(journal.records[-1]) if journal.records and not run.is_preview else None
        self._made = earlier or _look_ahead(training, journal)
        forget_peak(training.model.device)

    def end(self, training: Training) -> None:
        """Compare the estimate with the measured time and memory, in the log and in the artifact."""
        run = training.run
        assert self._made is not None, "begin comes before end"
        taken = outcome(run.read_metrics(), peak_bytes(training.model.device))
        for line in outcome_lines(self._made.made, taken):
            run.log(line)
        texts = {DATA: as_json(*self._made, taken), PAGE: markdown(run.stage, *self._made, taken)}
        for name, text in texts.items():
            artifact.write_text(run.output / (artifact.RECORD_PREFIX + name), text)


def _look_ahead(training: Training, journal: Journal) -> BeforeAndAhead:
    config, run, packer = training.config, training.run, training.packer
    found = survey(
        packer, training.tokenizer, steps=config.steps, epochs=config.epochs, accumulate=config.grad_accumulation
    )
    for line in [*data_lines(found), *histogram_lines(found)]:
        run.console.print(line, markup=False, highlight=False)
    for example in found.shown:
        run.console.print(f"\n{example.place}", style="bold", markup=False, highlight=False)
        run.console.print(render_example(example), soft_wrap=True)
    _require_trained(found, packer)
    batch, _ = copy.copy(packer).next(Position())  # a copy: the run's own packer counts the rows that it skips
    made = forecast(training, found, batch)
    run.console.print()
    for line in forecast_lines(made):
        run.log(line)
    text = as_json(found, made)
    journal.append(json.loads(text))
    artifact.write_text(run.directory / DATA, text)
    artifact.write_text(run.directory / PAGE, markdown(run.stage, found, made))
    return BeforeAndAhead(found, made)


def _require_trained(found: Survey, packer: Packer) -> None:
    if found.num_looked_at and found.num_too_long == found.num_looked_at == found.num_rows:
        raise DataError("every conversation is longer than the context", expected=f"at most {packer.context} tokens")
    if not found.num_trained:
        raise DataError(
            f"none of {sum(found.lengths):,} tokens in {found.num_looked_at:,} rows would be trained",
            expected="tokens that count in the loss",
            hint="The examples above show what is read: look for the part that the model should have learned",
        )


def _read(record: dict[str, Any]) -> BeforeAndAhead | None:
    names = {field.name for field in fields(Survey)}
    if names - record["survey"].keys() or record["forecast"].keys() != _FORECAST_NAMES:
        return None  # written by another version of Puna
    surveyed = {name: record["survey"][name] for name in names}
    surveyed["lengths"] = tuple(surveyed["lengths"])
    surveyed["batch"] = _planned(surveyed["batch"])
    surveyed["batches"] = tuple(map(_planned, surveyed["batches"]))
    shown = [(each["place"], tuple(Piece(**piece) for piece in each["pieces"])) for each in surveyed["shown"]]
    surveyed["shown"] = tuple(ShownExample(*each) for each in shown)
    return BeforeAndAhead(Survey(**surveyed), Forecast(**record["forecast"]))


def _planned(record: dict[str, Any]) -> PlannedBatch:
    return PlannedBatch(tuple(record["lengths"]), record["num_trained"])
