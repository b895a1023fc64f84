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
from puna.training.reports.preview.data_summary import DataSummary, Piece, PlannedBatch, ShownExample, summarize
from puna.training.reports.preview.estimate import RunEstimate, estimate_run, measured_outcome
from puna.training.reports.preview.process_memory import forget_peak, peak_bytes
from puna.training.reports.preview.render import (
    as_json,
    data_lines,
    estimate_lines,
    histogram_lines,
    markdown,
    outcome_lines,
    render_example,
)

PAGE, DATA = "preview.md", "preview.json"
_ESTIMATE_FIELDS = {field.name for field in fields(RunEstimate)}


class Expectation(NamedTuple):
    """Data summary and estimate of a run before the first step."""

    summary: DataSummary
    estimate: RunEstimate


class Preview(Observer):
    """Observer that shows data summary and estimate before the first step, and compares the estimate after the last.

    Writes preview.md and preview.json into the run directory, run_preview.md and run_preview.json into the artifact.
    No weight changes. A resumed run keeps its first preview.

    Example: `puna sft --preview-only` prints the preview and stops before the first step.
    """

    def __init__(self) -> None:
        self._expected: Expectation | None = None

    def begin(self, training: Training) -> None:
        """Show the training data, memory and time of the run.

        Raises:
            DataError: No token would be trained.
        """
        run = training.run
        journal = run.journal("preview")
        earlier = _read(journal.records[-1]) if journal.records and not run.is_preview else None
        self._expected = earlier or _estimate(training, journal)
        forget_peak(training.model.device)

    def end(self, training: Training) -> None:
        """Compare the estimate with the measured time and memory, in the log and in the artifact."""
        run = training.run
        assert self._expected is not None, "begin comes before end"
        measured = measured_outcome(run.read_metrics(), peak_bytes(training.model.device))
        for line in outcome_lines(self._expected.estimate, measured):
            run.log(line)
        texts = {DATA: as_json(*self._expected, measured), PAGE: markdown(run.stage, *self._expected, measured)}
        for name, text in texts.items():
            artifact.write_text(run.output / (artifact.RECORD_PREFIX + name), text)


def _estimate(training: Training, journal: Journal) -> Expectation:
    config, run, packer = training.config, training.run, training.packer
    summary = summarize(
        packer, training.tokenizer, steps=config.steps, epochs=config.epochs, accumulate=config.grad_accumulation
    )
    for line in [*data_lines(summary), *histogram_lines(summary)]:
        run.console.print(line, markup=False, highlight=False)
    for example in summary.shown:
        run.console.print(f"\n{example.place}", style="bold", markup=False, highlight=False)
        run.console.print(render_example(example), soft_wrap=True)
    _require_trained(summary, packer)
    batch, _ = copy.copy(packer).next(Position())  # a copy: the run's own packer counts the rows that it skips
    estimate = estimate_run(training, summary, batch)
    run.console.print()
    for line in estimate_lines(estimate):
        run.log(line)
    text = as_json(summary, estimate)
    journal.append(json.loads(text))
    artifact.write_text(run.directory / DATA, text)
    artifact.write_text(run.directory / PAGE, markdown(run.stage, summary, estimate))
    return Expectation(summary, estimate)


def _require_trained(summary: DataSummary, packer: Packer) -> None:
    if summary.num_looked_at and summary.num_too_long == summary.num_looked_at == summary.num_rows:
        raise DataError("every conversation is longer than the context", expected=f"at most {packer.context} tokens")
    if not summary.num_trained:
        raise DataError(
            f"none of {sum(summary.lengths):,} tokens in {summary.num_looked_at:,} rows would be trained",
            expected="at least one token in the loss mask",
            hint="The examples above show the text that is read: look for the part that the model should learn",
        )


def _read(record: dict[str, Any]) -> Expectation | None:
    names = {field.name for field in fields(DataSummary)}
    if names - record["survey"].keys() or record["forecast"].keys() != _ESTIMATE_FIELDS:
        return None  # written by another version of Puna
    surveyed = {name: record["survey"][name] for name in names}
    surveyed["lengths"] = tuple(surveyed["lengths"])
    surveyed["batch"] = _planned(surveyed["batch"])
    surveyed["batches"] = tuple(map(_planned, surveyed["batches"]))
    shown = [(each["place"], tuple(Piece(**piece) for piece in each["pieces"])) for each in surveyed["shown"]]
    surveyed["shown"] = tuple(ShownExample(*each) for each in shown)
    return Expectation(DataSummary(**surveyed), RunEstimate(**record["forecast"]))


def _planned(record: dict[str, Any]) -> PlannedBatch:
    return PlannedBatch(tuple(record["lengths"]), record["num_trained"])
