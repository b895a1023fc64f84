"""What a training run knows of itself -> its record, and a report in words: run_facts.json and run_report.md.

The facts are gathered before the first step and kept in a journal of the run, since a run that goes on after an
interruption has no start model any more. What the figures mean, the rules of diagnose/ say.
"""

import json
from typing import Any

from puna.data.dataset import Dataset
from puna.evaluation.diagnose.record import FACTS, Record
from puna.evaluation.diagnose.report import REPORT, run_report
from puna.evaluation.diagnose.rules.table import examine, warn
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.run import Run
from puna.training.objectives.objective import Objective
from puna.training.reports.chat_probes import measure_chat
from puna.training.reports.facts import gather_facts
from puna.training.reports.forgetting import start_data_loss
from puna.training.settings import TrainConfig


def open_record(
    config: TrainConfig,
    run: Run,
    objective: Objective,
    model: Llama,
    tokenizer: Tokenizer,
    dataset: Dataset,
    *,
    step: int = 0,
) -> dict[str, Any]:
    """Gather the facts of a run that begins, or read those of one that goes on after `step`."""
    return run.remember("facts", lambda: _gather(config, run, objective, model, tokenizer, dataset, step == 0))


def _gather(
    config: TrainConfig,
    run: Run,
    objective: Objective,
    model: Llama,
    tokenizer: Tokenizer,
    dataset: Dataset,
    is_start: bool,
) -> dict[str, Any]:
    facts = gather_facts(objective, model, tokenizer, dataset)
    # Of a network that several processes hold none can compute alone; one that was trained is no start any more.
    can_measure = run.num_ranks == 1 and is_start
    facts["start_data_loss"] = start_data_loss(config, model, tokenizer) if can_measure else None
    facts["chat"] = measure_chat(model, tokenizer, config.dtype) if can_measure and config.start is not None else None
    for finding in warn(Record(run.stage, config.model_dump(mode="json"), [], facts)):
        run.log(f"before the first step: {finding.code}: {finding.seen} {finding.remedy}")
    return facts


def close_record(
    facts: dict[str, Any], config: TrainConfig, run: Run, model: Llama, tokenizer: Tokenizer, **ended: float
) -> None:
    """Add how the run ended, write its report and say in the log what the rules found."""
    if facts["start_data_loss"] is not None:
        facts["start_data_loss_after"] = start_data_loss(config, model, tokenizer)
    if facts.get("chat") is not None:
        facts["chat_after"] = measure_chat(model, tokenizer, config.dtype)
    facts |= ended
    artifact.write_text(run.output / FACTS, json.dumps(facts, indent=2) + "\n")
    record = Record(run.stage, config.model_dump(mode="json"), run.read_metrics(), facts)
    findings = examine(record)
    artifact.write_text(run.output / REPORT, run_report(record, findings))
    for finding in findings:
        run.log(f"{finding.code}: {finding.seen} {finding.remedy}")
