"""The result of the release gate as a value: GO or NO-GO, with reasons, compared models and a record for programs."""

from dataclasses import dataclass, field
from typing import Any

from puna.evaluation.release.overlap.leaks import Leaks
from puna.evaluation.release.paired_comparison import PairedComparison
from puna.evaluation.release.rules.exam import Exam
from puna.evaluation.release.rules.verdict import Verdict
from puna.evaluation.release.settings import GateConfig
from puna.evaluation.release.short_ids import shorten_ids
from puna.evaluation.scores import EvaluatedModel
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.registry.registry import GATE

# Rules with a remark in the headline of a GO; the remarks of other rules stand below.
HEADLINE_RULES = ("comparison", "judged", "exam", "limits", "overlap")
REASONS_SHOWN = 5


@dataclass(frozen=True)
class ComparedModel:
    """A model of the decision, candidate included, with the graded answers of task and general suite.

    Attributes:
        role: "candidate", "start", "base", "teacher" or "in_use".
        name: Name of the checkpoint's folder.
        task: Answers on the task; None if the evaluation lacks the checkpoint.
        general: Answers on the general suite; None if the evaluation lacks the checkpoint.
        usd_per_million: Cost of a million generated tokens in USD; None without a price.
        label: The model in a sentence ("the teacher").

    Example:
        >>> ComparedModel("base", "Llama-3.2-1B", task=answers, general=None, label="the base model").measured.name
        'base'
    """

    role: str
    name: str
    task: EvaluatedModel | None
    general: EvaluatedModel | None
    usd_per_million: float | None = None
    label: str = "this model"

    @property
    def measured(self) -> EvaluatedModel | None:
        """Evaluation with size and speed of the model: the task's, else the general suite's."""
        return self.task or self.general


@dataclass(frozen=True)
class Decision:
    """GO or NO-GO with the complete evidence.

    Attributes:
        name: Name of the release.
        settings: Settings of the gate.
        verdicts: Results of all rules.
        models: Compared models, the candidate first.
        comparisons: Paired comparisons of the candidate with every compared model on every suite.
        leaks: Test questions in training data; None if no evaluation has questions of the candidate.
        exams: Comparisons with null models by suite; None for an evaluation without null models.
        unmeasured: Sentences about unmeasured properties.
        failed_claims: Claims of failed receipts in the lineage.

    Example:
        >>> Decision("Feather", GateConfig(), [Verdict("limits", [])], [], [], None).is_go
        True
    """

    name: str
    settings: GateConfig
    verdicts: list[Verdict]
    models: list[ComparedModel]
    comparisons: list[PairedComparison]
    leaks: Leaks | None
    exams: dict[str, Exam | None] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    failed_claims: list[str] = field(default_factory=list)

    @property
    def is_go(self) -> bool:
        """Whether every rule held or was overridden."""
        return all(verdict.held or verdict.override for verdict in self.verdicts)

    @property
    def reasons(self) -> list[str]:
        """Reasons of a NO-GO: failures of rules without an override."""
        return [reason for verdict in self.verdicts if not verdict.override for reason in verdict.reasons]

    @property
    def hints(self) -> list[str]:
        """Advice on the failed rules without an override."""
        return [verdict.hint for verdict in self.verdicts if verdict.hint and not verdict.override]

    @property
    def overrides(self) -> list[str]:
        """Sentences about failed rules overridden by the user."""
        return [
            f"The rule '{verdict.rule}' did not hold ({'; '.join(verdict.reasons)}) and was overridden: "
            f"{verdict.override}"
            for verdict in self.verdicts
            if verdict.override and not verdict.held
        ]

    @property
    def headline(self) -> str:
        """A single line: GO or NO-GO with the grounds, ids shortened."""
        return shorten_ids(self._headline)

    @property
    def _headline(self) -> str:
        if not self.is_go:
            more = len(self.reasons) - REASONS_SHOWN
            shown = [*self.reasons[:REASONS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            return f"NO-GO: {'; '.join(shown)}"
        if self.overrides:
            rules = ", ".join(f"'{each.rule}'" for each in self.verdicts if each.override and not each.held)
            return f"GO, by an override: {rules} did not hold"
        remarks = [verdict.remark for verdict in self.verdicts if verdict.remark and verdict.rule in HEADLINE_RULES]
        return f"GO: {'; '.join(remarks)}"

    @property
    def receipt(self) -> Receipt:
        """The decision as a receipt: number of reasons against a GO, with limit 0."""
        details: dict[str, Any] = {"overrides": self.overrides, "passes_over": self.failed_claims}
        if not self.is_go:
            page = "decision.html beside the receipt has the details; docs/stages/release.md explains overrides"
            hint = ". ".join([*self.hints, page])
            details |= {"reasons": [f"NO-GO: {self.reasons[0]}", *self.reasons[1:]], "hint": hint}
        return Receipt(GATE, self.name, len(self.reasons), 0, self.is_go, details)

    def to_json(self) -> dict[str, Any]:
        """Return the entry "gate" of release.json."""
        return {
            "decision": "GO" if self.is_go else "NO-GO",
            "reasons": self.reasons,
            "overrides": self.overrides,
            "rules": [
                {"rule": each.rule, "held": each.held, "reasons": each.reasons, "override": each.override}
                for each in self.verdicts
            ],
            "settings": self.settings.model_dump(mode="json"),
            "comparisons": [
                {
                    "suite": each.suite,
                    "against": each.role,
                    "name": each.name,
                    "difference": each.difference._asdict(),
                    "least": each.threshold,
                    "outcome": each.outcome.value,
                    "questions": each.num_questions,
                    "questions_needed": each.num_needed,
                }
                for each in self.comparisons
            ],
            "null_models": {
                suite: exam
                and [
                    {"model": null.comparison.name, "score": null.score, **null.comparison.difference._asdict()}
                    for null in exam
                ]
                for suite, exam in self.exams.items()
            },
            "not_measured": self.unmeasured,
        }
