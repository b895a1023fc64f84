"""Comparisons, receipts, overlaps and licences -> GO or NO-GO, with the reasons in words.

Every rule that applies is judged, whatever the others say. A rule that does not hold is passed over only by an override
with its reason, which stays on record.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from puna.evaluation.release.compare import POINTS, Comparison, Gate, Outcome, compare
from puna.evaluation.release.evaluations import Answered, Evaluation
from puna.evaluation.release.leaks import Leaks
from puna.evaluation.release.page.plain import shorten_ids
from puna.evaluation.release.rules.exam import Exam, examine, judge_exam
from puna.evaluation.release.rules.judged import judge_judged
from puna.evaluation.release.rules.verdict import Verdict
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.registry.registry import GATE

# Rules that may be overridden. Terms of licences have settings of their own (accepted_terms, allow_...).
OVERRIDABLE = ("scores", "comparison", "judged", "exam", "task", "general", "limits", "receipts", "overlap")
ROLES = {
    "start": "the same model without your data",
    "base": "the base model",
    "teacher": "the teacher",
    "in_use": "the model in use",
}
# Comparisons of which nothing is demanded: a small model owes its teacher nothing beyond its task.
SHOWN_ONLY = {("general", "teacher"), ("general", "start")}
OPEN_MODEL = "the open model you started from"
REASONS_SHOWN = 5


@dataclass(frozen=True)
class Model:
    """One row of the table of models."""

    role: str
    name: str
    task: Answered | None
    general: Answered | None
    usd_per_million: float | None = None
    label: str = "this model"

    @property
    def measured(self) -> Answered | None:
        """Where size and speed were measured."""
        return self.task or self.general


# Rules whose result the first line of a GO tells; all others are told below it.
HEADLINE_RULES = ("comparison", "judged", "exam", "limits", "overlap")


@dataclass(frozen=True)
class Decision:
    """GO or NO-GO, and all that it rests on."""

    name: str
    settings: Gate
    verdicts: list[Verdict]
    models: list[Model]
    comparisons: list[Comparison]
    leaks: Leaks | None
    exams: dict[str, Exam | None] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    failed_claims: list[str] = field(default_factory=list)

    @property
    def is_go(self) -> bool:
        return all(verdict.held or verdict.override for verdict in self.verdicts)

    @property
    def reasons(self) -> list[str]:
        """Why it is a NO-GO: what did not hold and was not overridden."""
        return [reason for verdict in self.verdicts if not verdict.override for reason in verdict.reasons]

    @property
    def hints(self) -> list[str]:
        """What to do about the rules that did not hold and were not overridden."""
        return [each.hint for each in self.verdicts if each.hint and not each.override]

    @property
    def overrides(self) -> list[str]:
        """What was passed over on somebody's word."""
        return [
            f"The rule '{each.rule}' did not hold ({'; '.join(each.reasons)}) and was overridden: {each.override}"
            for each in self.verdicts
            if each.override and not each.held
        ]

    @property
    def headline(self) -> str:
        """One line: GO or NO-GO, and why, without hashes and other ids."""
        return shorten_ids(self._headline)

    @property
    def _headline(self) -> str:
        if not self.is_go:
            more = len(self.reasons) - REASONS_SHOWN
            told = [*self.reasons[:REASONS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            return f"NO-GO: {'; '.join(told)}"
        if self.overrides:
            rules = ", ".join(f"'{each.rule}'" for each in self.verdicts if each.override and not each.held)
            return f"GO, on somebody's word: {rules} did not hold and was overridden"
        return f"GO: {'; '.join(each.told for each in self.verdicts if each.told and each.rule in HEADLINE_RULES)}"

    @property
    def receipt(self) -> Receipt:
        """The decision as a receipt: the number of reasons against it, of which there may be none."""
        details: dict[str, Any] = {"overrides": self.overrides, "passes_over": self.failed_claims}
        if not self.is_go:
            page = (
                "The page decision.html beside it says more; docs/stages/release.md lists the ways to override a rule"
            )
            hint = ". ".join([*self.hints, page])
            details |= {"reasons": [f"NO-GO: {self.reasons[0]}", *self.reasons[1:]], "hint": hint}
        return Receipt(GATE, self.name, len(self.reasons), 0, self.is_go, details)


def gather(
    evaluations: dict[str, Evaluation],
    paths: dict[str, Path],
    contents: dict[str, str],
    settings: Gate,
    *,
    open_roles: Collection[str] = (),
) -> tuple[list[Model], list[Comparison]]:
    """Collect the answers of each model in each suite, and compare the candidate with all others.

    Args:
        evaluations: Evaluations by suite, "task" and "general".
        paths: Checkpoints by role, the candidate first.
        contents: Content hashes of the checkpoints by role.
        settings: Margins of the comparisons.
        open_roles: Roles whose checkpoint is the open model that the candidate was made from.
    """
    answered = {
        role: {suite: evaluation.answered(content) for suite, evaluation in evaluations.items()}
        for role, content in contents.items()
    }
    labels = {role: OPEN_MODEL if role == "base" and role in open_roles else ROLES[role] for role in ROLES}
    models: list[Model] = []
    for role, path in paths.items():
        model = Model(role, path.name, answered[role].get("task"), answered[role].get("general"))
        usd_per_million = _usd_per_million(model, settings)
        models.append(replace(model, usd_per_million=usd_per_million, label=labels.get(role, model.label)))
    comparisons: list[Comparison] = []
    for suite in evaluations:
        ours = answered["candidate"][suite]
        for role in ROLES:
            theirs = answered.get(role, {}).get(suite)
            if ours and theirs:
                least = _demands(settings)[suite, role]
                comparisons.append(compare(ours, theirs, suite=suite, role=role, least=least, label=labels[role]))
    return models, comparisons


def run_exams(evaluations: dict[str, Evaluation], candidate: Model, settings: Gate) -> dict[str, Exam | None]:
    """Compare the candidate with the null models of each suite that it was asked in; None for a suite without any."""
    exams: dict[str, Exam | None] = {}
    for suite, evaluation in evaluations.items():
        if answered := getattr(candidate, suite):
            nulls = evaluation.null_answers(answered)
            is_missing = nulls is None
            exams[suite] = None if is_missing else examine(answered, nulls, suite=suite, margin=settings.null_margin)
    return exams


def _demands(settings: Gate) -> dict[tuple[str, str], float | None]:
    """Return the least difference by suite and role; a small model owes its teacher nothing beyond its task."""
    return {
        ("task", "start"): 0.0,
        ("task", "base"): settings.base_gain,
        ("task", "teacher"): -settings.teacher_margin,
        ("task", "in_use"): -settings.in_use_margin,
        ("general", "start"): None,
        ("general", "base"): -settings.general_margin,
        ("general", "teacher"): None,
        ("general", "in_use"): -settings.general_margin,
    }


def _usd_per_million(model: Model, settings: Gate) -> float | None:
    measured = model.measured
    if measured is None or settings.usd_per_hour is None or not measured.tokens_per_s:
        return None
    return settings.usd_per_hour / (measured.tokens_per_s * 3600) * 1e6


def judge(
    name: str,
    settings: Gate,
    models: list[Model],
    comparisons: list[Comparison],
    *,
    suites: list[str],
    exams: dict[str, Exam | None],
    receipts: list[tuple[str, Receipt]],
    leaks: Leaks | None,
    licence_reasons: list[str],
    overrides: dict[str, str],
    missing_open_model: str = "",
) -> Decision:
    """Apply every rule; what was not measured is told beside what did not hold.

    `missing_open_model` names the open model in the candidate's lineage if the candidate was not compared with it.
    """
    answers = {suite: _decisive_answers(models, suite) for suite in exams}
    verdicts = [
        _judge_scores(models, suites),
        _judge_comparison(models, comparisons, missing_open_model),
        judge_judged({_named(suite): each for suite, each in answers.items()}, settings.max_unjudged),
        judge_exam({_named(suite): exam for suite, exam in exams.items()}),
        *(_judge_suite(suite, comparisons) for suite in suites),
        _judge_limits(models[0], settings),
        _judge_receipts(receipts),
        *([_judge_overlap(leaks, settings)] if leaks else []),
        Verdict("licences", licence_reasons, "its licences allow it"),
    ]
    given = [replace(each, override=overrides.get(each.rule, "")) for each in verdicts]
    unmeasured = list(_unmeasured(models, suites, settings))
    failed = sorted({receipt.claim for _, receipt in receipts if not receipt.held})
    return Decision(name, settings, given, models, comparisons, leaks, exams, unmeasured, failed)


def _decisive_answers(models: list[Model], suite: str) -> list[Answered]:
    """Return the candidate's answers on a suite, and those of every model that a demand compares it with."""
    decisive = [model for model in models if model.role == "candidate" or (suite, model.role) not in SHOWN_ONLY]
    return [answered for model in decisive if (answered := getattr(model, suite))]


def _unmeasured(models: list[Model], suites: list[str], settings: Gate) -> Iterator[str]:
    """Say in sentences what the decision does not rest on."""
    if "task" not in suites:
        yield "How well it does its task."
    if "general" not in suites:
        yield "What it has forgotten: no general suite was asked."
    told = {model.role for model in models}
    yield from (f"How it compares with {ROLES[role]}: none was named." for role in ROLES if role not in told)
    if settings.usd_per_hour is None:
        yield "What it costs: no price of a machine was given."
    yield "Speed on the machine it will be used on, and how far it varies."
    yield "Safety, bias, truth outside the questions, and other languages than the questions'."


def _judge_scores(models: list[Model], suites: list[str]) -> Verdict:
    """Scores are there, and are those of the very checkpoints that are compared."""
    candidate, *others = models
    reasons = [] if "task" in suites else ["no scores were given: how well it does its task was not measured"]
    for suite in suites:
        if getattr(candidate, suite) is None:
            reasons.append(
                f"the scores of the {_named(suite)} are of other checkpoints: none of them has the content of "
                f"{candidate.name}, which is released"
            )
        reasons += [
            f"{other.label}, {other.name}, was not asked in the evaluation of the {_named(suite)}"
            for other in others
            if getattr(other, suite) is None and (suite, other.role) not in SHOWN_ONLY
        ]
    return Verdict("scores", reasons, told="" if reasons else "all were asked as they are")


def _judge_comparison(models: list[Model], comparisons: list[Comparison], missing_open_model: str) -> Verdict:
    is_missing = len(models) == 1 and models[0].task is not None
    reasons = ["it was compared with no other model: name `base`, `teacher` or `in_use`"] if is_missing else []
    if missing_open_model and models[0].task is not None and not is_missing:
        reasons.append(
            f"it was not compared with {OPEN_MODEL}, {missing_open_model}, which one would use otherwise: evaluate it "
            "too and name it as `base`"
        )
    demanded = [each for each in comparisons if each.suite == "task" and each.least is not None]
    told = "; ".join(_summary(each) for each in demanded if each.outcome is Outcome.MET)
    return Verdict("comparison", reasons, told)


def _summary(comparison: Comparison) -> str:
    allowed = f" ({-POINTS * (comparison.least or 0):.1f} are allowed)" if comparison.difference.mean < 0 else ""
    return f"{_amount(comparison)} {comparison.label}{allowed}"


def _judge_suite(suite: str, comparisons: list[Comparison]) -> Verdict:
    judged = [each for each in comparisons if each.suite == suite]
    wrong = [each for each in judged if each.outcome in (Outcome.MISSED, Outcome.UNDECIDED)]
    unknown = [each.label for each in wrong if not each.num_questions]
    everyone = " and ".join(filter(None, [", ".join(unknown[:-1]), *unknown[-1:]]))
    nothing = [f"nothing is known of {everyone} on the {_named(suite)}: no answer was judged"] if unknown else []
    return Verdict(suite, nothing + [explain(each) for each in wrong if each.num_questions])


def explain(comparison: Comparison) -> str:
    """Say in words what a comparison shows of its demand."""
    low, high = (f"{POINTS * bound:+.1f}" for bound in comparison.difference[1:])
    seen = f"{_amount(comparison)} {comparison.label} on the {_named(comparison.suite)} (between {low} and {high})"
    if not comparison.num_questions:
        return f"nothing is known of {comparison.label} on the {_named(comparison.suite)}: no answer was judged"
    if comparison.least is None:
        return seen
    if comparison.least >= 0:
        demand = f"{seen}, where it has to be better by more than {POINTS * comparison.least:.1f}"
    else:
        demand = f"{seen}, where at most {-POINTS * comparison.least:.1f} below is allowed"
    if comparison.outcome is Outcome.UNDECIDED:
        few = f"{comparison.num_questions:,} questions are too few to tell"
        return f"{demand}: {few}, about {comparison.num_needed:,} of this kind would do"
    return demand


def _amount(comparison: Comparison) -> str:
    points = round(POINTS * comparison.difference.mean, 1)
    if points == 0:
        return "as good as"
    return f"{abs(points):.1f} points {'better than' if points > 0 else 'below'}"


def _named(suite: str) -> str:
    return {"task": "task", "general": "general suite"}[suite]


def _judge_limits(candidate: Model, settings: Gate) -> Verdict:
    """Size, speed and cost, where a limit is set."""
    measured = candidate.measured
    wanted = (settings.max_megabytes, settings.min_tokens_per_s, settings.max_usd_per_million)
    if measured is None:
        is_wanted = any(limit is not None for limit in wanted)
        return Verdict("limits", ["its size and speed were not measured, and limits are set"] if is_wanted else [])
    told = "within every limit" if any(limit is not None for limit in wanted) else ""
    return Verdict("limits", list(_beyond(measured, candidate.usd_per_million, settings)), told)


def _beyond(measured: Answered, usd: float | None, settings: Gate) -> Iterator[str]:
    megabytes = measured.weight_bytes / 1e6
    if settings.max_megabytes is not None and megabytes > settings.max_megabytes:
        yield f"its weights take {megabytes:,.1f} MB, at most {settings.max_megabytes:,.1f} are allowed"
    if settings.min_tokens_per_s is not None and measured.tokens_per_s < settings.min_tokens_per_s:
        yield f"it writes {measured.tokens_per_s:,.0f} tokens/s, at least {settings.min_tokens_per_s:,.0f} are demanded"
    if settings.max_usd_per_million is not None and usd is None:
        yield "a limit on the cost is set, but no price of the machine (gate.usd_per_hour)"
    if settings.max_usd_per_million is not None and usd is not None and usd > settings.max_usd_per_million:
        yield f"a million tokens cost {usd:,.2f} USD, at most {settings.max_usd_per_million:,.2f} are allowed"


def _judge_receipts(receipts: list[tuple[str, Receipt]]) -> Verdict:
    reasons = [
        f"the receipt {receipt.claim} of {of} does not hold: {receipt.value:.4g}, {receipt.limit}"
        for of, receipt in receipts
        if not receipt.held
    ]
    told = f"every measurement while it was made held ({len(receipts):,})" if receipts else ""
    return Verdict("receipts", reasons, told)


def _judge_overlap(leaks: Leaks, settings: Gate) -> Verdict:
    report = leaks.report
    reasons = [f"whether test questions stand in {each}, cannot be told" for each in leaks.unread]
    if len(report.found) > settings.max_overlaps:
        first = report.found[0]
        number = f"{len(report.found):,} of {report.num_probes:,} test questions and expected answers"
        example = f"as '{first.name}' in {first.place}"
        reasons.append(f"{number} stand in the training data, {example}; {settings.max_overlaps:,} are allowed")
    return Verdict("overlap", reasons, leaks.describe(settings.max_overlaps))


def record(decision: Decision) -> dict[str, Any]:
    """Return the decision as release.json holds it."""
    return {
        "decision": "GO" if decision.is_go else "NO-GO",
        "reasons": decision.reasons,
        "overrides": decision.overrides,
        "rules": [
            {"rule": each.rule, "held": each.held, "reasons": each.reasons, "override": each.override}
            for each in decision.verdicts
        ],
        "settings": decision.settings.model_dump(mode="json"),
        "comparisons": [
            {
                "suite": each.suite,
                "against": each.role,
                "name": each.name,
                "difference": each.difference._asdict(),
                "least": each.least,
                "outcome": each.outcome.value,
                "questions": each.num_questions,
                "questions_needed": each.num_needed,
            }
            for each in decision.comparisons
        ],
        "null_models": {
            suite: exam
            and [
                {"model": each.comparison.name, "score": each.score, **each.comparison.difference._asdict()}
                for each in exam
            ]
            for suite, exam in decision.exams.items()
        },
        "not_measured": decision.unmeasured,
    }
