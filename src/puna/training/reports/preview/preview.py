"""A run that begins -> its preview, shown and kept in its directory; a run that ends -> the same with what it took.

Changes no weight. A run that goes on after an interruption keeps the preview that it began with.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from puna.data.packing import Batch, Packer, Position
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import DataError
from puna.pipeline.run import EndOfPreview, Run
from puna.training.objectives.objective import Objective
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
from puna.training.settings import TrainConfig

PAGE, DATA = "preview.md", "preview.json"
_FORECAST_NAMES = {field.name for field in fields(Forecast)}


class Preview(NamedTuple):
    """What was seen and foreseen before the first step."""

    found: Survey
    made: Forecast


def look_ahead(
    config: TrainConfig,
    run: Run,
    objective: Objective,
    model: Llama,
    tokenizer: Tokenizer,
    packer: Packer,
    backward: Callable[[Batch], None],
) -> Preview:
    """Show what a run will train on and take; DataError if nothing would be trained.

    `backward` computes a batch forth and back. Raises EndOfPreview where no more was asked for.
    """
    journal = run.journal("preview")
    kept = _read(journal.records[-1]) if journal.records else None
    if kept is not None and not run.is_preview:
        forget_peak(model.device)
        return kept
    found = survey(packer, tokenizer, steps=config.steps, epochs=config.epochs, accumulate=config.accumulate)
    for line in [*data_lines(found), *histogram_lines(found)]:
        run.console.print(line, markup=False, highlight=False)
    for example in found.shown:
        run.console.print(f"\n{example.place}", style="bold", markup=False, highlight=False)
        run.console.print(render_example(example), soft_wrap=True)
    _require_trained(found, packer)
    passed_over = packer.num_too_long
    batch, _ = packer.next(Position())
    made = forecast(config, model, objective, found, batch, backward)
    packer.num_too_long = passed_over
    run.console.print()
    for line in forecast_lines(made):
        run.log(line)
    told = as_json(found, made)
    journal.append(json.loads(told))
    artifact.write_text(run.directory / DATA, told)
    artifact.write_text(run.directory / PAGE, markdown(run.stage, found, made))
    if run.is_preview:
        raise EndOfPreview
    forget_peak(model.device)
    return Preview(found, made)


def look_back(preview: Preview, run: Run, model: Llama) -> None:
    """Compare with what the run took, in the log and in the artifact: run_preview.md and run_preview.json."""
    taken = outcome(run.read_metrics(), peak_bytes(model.device))
    for line in outcome_lines(preview.made, taken):
        run.log(line)
    texts = {DATA: as_json(*preview, taken), PAGE: markdown(run.stage, *preview, taken)}
    for name, text in texts.items():
        artifact.write_text(run.output / (artifact.RECORD_PREFIX + name), text)


def _require_trained(found: Survey, packer: Packer) -> None:
    if found.num_looked_at and found.num_too_long == found.num_looked_at == found.num_rows:
        raise DataError("every conversation is longer than the context", expected=f"at most {packer.context} tokens")
    if not found.num_trained:
        raise DataError(
            f"none of {sum(found.lengths):,} tokens in {found.num_looked_at:,} rows would be trained",
            expected="tokens that count in the loss",
            hint="The examples above show what is read: look for the part that the model should have learned",
        )


def _read(told: dict[str, Any]) -> Preview | None:
    if {field.name for field in fields(Survey)} - told["survey"].keys() or told["forecast"].keys() != _FORECAST_NAMES:
        return None  # of another version: looked at anew
    surveyed = {field.name: told["survey"][field.name] for field in fields(Survey)}
    surveyed["lengths"] = tuple(surveyed["lengths"])
    surveyed["batch"] = _planned(surveyed["batch"])
    surveyed["batches"] = tuple(map(_planned, surveyed["batches"]))
    shown = [(each["place"], tuple(Piece(**piece) for piece in each["pieces"])) for each in surveyed["shown"]]
    surveyed["shown"] = tuple(ShownExample(*each) for each in shown)
    return Preview(Survey(**surveyed), Forecast(**told["forecast"]))


def _planned(told: dict[str, Any]) -> PlannedBatch:
    return PlannedBatch(tuple(told["lengths"]), told["num_trained"])
