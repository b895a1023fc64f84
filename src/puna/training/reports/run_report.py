"""A training run -> run_facts.json and run_report.md: facts about data and model, and the findings of diagnose.

The facts are gathered before the first step and kept in a journal: a resumed run has no initial model any more.
"""

import json
from typing import Any

from puna.evaluation.diagnose.record import FACTS, Record
from puna.evaluation.diagnose.report import REPORT, run_report
from puna.evaluation.diagnose.rules.table import examine, warn
from puna.pipeline.artifacts import artifact
from puna.training.loop.defaults import chosen_values
from puna.training.loop.observer import Observer
from puna.training.loop.training import Training
from puna.training.reports.chat_probes import measure_chat
from puna.training.reports.facts import gather_facts
from puna.training.reports.forgetting import start_data_loss


class RunReport(Observer):
    """Observer of the training loop: warns before the first step and reports after the last step.

    Example: `puna sft` writes run_facts.json and run_report.md beside the checkpoint.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def begin(self, training: Training) -> None:
        self.facts = training.run.remember("facts", lambda: _gather(training))

    def end(self, training: Training) -> None:
        config, run, model, facts = training.config, training.run, training.model, self.facts
        facts["chosen"] = chosen_values(run)
        if facts["start_data_loss"] is not None:
            facts["start_data_loss_after"] = start_data_loss(config, model, training.tokenizer)
        if facts.get("chat") is not None:
            facts["chat_after"] = measure_chat(model, training.tokenizer, config.dtype)
        facts |= {"num_too_long": training.state.num_too_long, "epochs": training.epochs}
        artifact.write_text(run.output / FACTS, json.dumps(facts, indent=2) + "\n")
        record = Record(run.stage, config.record(), run.read_metrics(), facts)
        findings = examine(record)
        artifact.write_text(run.output / REPORT, run_report(record, findings))
        for finding in findings:
            run.log(f"{finding.code}: {finding.seen} {finding.remedy}")


def _gather(training: Training) -> dict[str, Any]:
    config, run, model, tokenizer = training.config, training.run, training.model, training.tokenizer
    facts = gather_facts(training.objective, model, tokenizer, training.packer.dataset)
    # A single rank of several cannot compute a loss alone; after the first step the model is no initial model any more.
    can_measure = run.num_ranks == 1 and training.state.step == 0
    facts["start_data_loss"] = start_data_loss(config, model, tokenizer) if can_measure else None
    facts["chat"] = (
        measure_chat(model, tokenizer, config.dtype) if can_measure and config.init_from is not None else None
    )
    for finding in warn(Record(run.stage, config.record(), [], facts)):
        run.log(f"before the first step: {finding.code}: {finding.seen} {finding.remedy}")
    return facts
