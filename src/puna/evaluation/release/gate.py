"""Comparisons, receipts, test data in training data, and licences -> GO or NO-GO, with the reasons in words.

The gate applies every rule, also after a failure. Only an override with a reason passes a failed rule, and the record
keeps the override.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from puna.evaluation.release.decision import ComparedModel, Decision
from puna.evaluation.release.overlap.leaks import Leaks
from puna.evaluation.release.paired_comparison import (
    POINTS,
    Outcome,
    PairedComparison,
    amount,
    compare_paired,
    explain,
    suite_title,
)
from puna.evaluation.release.rules.exam import Exam, examine, judge_exam
from puna.evaluation.release.rules.judged import judge_judged
from puna.evaluation.release.rules.verdict import Verdict
from puna.evaluation.release.settings import GateConfig
from puna.evaluation.scores import EvaluatedModel, Evaluation
from puna.pipeline.artifacts.artifact import Receipt

# Rules that may be overridden. Terms of licences have settings of their own (accepted_terms, allow_...).
OVERRIDABLE = ("scores", "comparison", "judged", "exam", "task", "general", "limits", "receipts", "overlap")
ROLES = {
    "start": "the same model without your data",
    "base": "the base model",
    "teacher": "the teacher",
    "in_use": "the model in use",
}
# Comparisons without a threshold: a small model need not keep up with the teacher outside the task.
SHOWN_ONLY = {("general", "teacher"), ("general", "start")}
OPEN_MODEL = "the open model you started from"


def gather(
    evaluations: dict[str, Evaluation],
    paths: dict[str, Path],
    contents: dict[str, str],
    settings: GateConfig,
    *,
    open_roles: Collection[str] = (),
) -> tuple[list[ComparedModel], list[PairedComparison]]:
    """Collect the answers of every model on every suite, and compare the candidate with all other models.

    Args:
        evaluations: Evaluations by suite, "task" and "general".
        paths: Checkpoints by role, the candidate first.
        contents: Content hashes of the checkpoints by role.
        settings: Margins of the comparisons.
        open_roles: Roles whose checkpoint is the open model that the candidate was made from.
    """
    answers = {
        role: {suite: evaluation.find_model(content) for suite, evaluation in evaluations.items()}
        for role, content in contents.items()
    }
    labels = {role: OPEN_MODEL if role == "base" and role in open_roles else ROLES[role] for role in ROLES}
    models: list[ComparedModel] = []
    for role, path in paths.items():
        model = ComparedModel(role, path.name, answers[role].get("task"), answers[role].get("general"))
        usd_per_million = _usd_per_million(model, settings)
        models.append(replace(model, usd_per_million=usd_per_million, label=labels.get(role, model.label)))
    comparisons: list[PairedComparison] = []
    for suite in evaluations:
        candidate = answers["candidate"][suite]
        for role in ROLES:
            other = answers.get(role, {}).get(suite)
            if candidate and other:
                threshold = _thresholds(settings)[suite, role]
                comparisons.append(
                    compare_paired(candidate, other, suite=suite, role=role, threshold=threshold, label=labels[role])
                )
    return models, comparisons


def run_exams(
    evaluations: dict[str, Evaluation], candidate: ComparedModel, settings: GateConfig
) -> dict[str, Exam | None]:
    """Compare the candidate with the null models of every suite; None for a suite without null models."""
    exams: dict[str, Exam | None] = {}
    for suite, evaluation in evaluations.items():
        if answers := getattr(candidate, suite):
            nulls = evaluation.null_answers(answers)
            is_missing = nulls is None
            exams[suite] = None if is_missing else examine(answers, nulls, suite=suite, margin=settings.null_margin)
    return exams


def _thresholds(settings: GateConfig) -> dict[tuple[str, str], float | None]:
    """Return the difference that must be exceeded, by suite and role."""
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


def _usd_per_million(model: ComparedModel, settings: GateConfig) -> float | None:
    measured = model.measured
    if measured is None or settings.usd_per_hour is None or not measured.speed.generated_tokens_per_s:
        return None
    return settings.usd_per_hour / (measured.speed.generated_tokens_per_s * 3600) * 1e6


def judge(
    name: str,
    settings: GateConfig,
    models: list[ComparedModel],
    comparisons: list[PairedComparison],
    *,
    suites: list[str],
    exams: dict[str, Exam | None],
    receipts: list[tuple[str, Receipt]],
    leaks: Leaks | None,
    licence_reasons: list[str],
    overrides: dict[str, str],
    missing_open_model: str = "",
) -> Decision:
    """Apply every rule.

    Args:
        name: Name of the release.
        settings: Settings of the gate.
        models: Compared models, the candidate first.
        comparisons: Comparisons of the candidate with the other models.
        suites: Suites with an evaluation, "task" and "general".
        exams: Comparisons with null models by suite.
        receipts: Receipts of the lineage, with the name of the artifact.
        leaks: Test questions in training data; None without questions.
        licence_reasons: Obstacles by licences.
        overrides: Reason for overriding a rule, by rule.
        missing_open_model: Name of the open model in the candidate's lineage, if no comparison includes the open model.
    """
    answers = {suite: _decisive_answers(models, suite) for suite in exams}
    verdicts = [
        _judge_scores(models, suites),
        _judge_comparison(models, comparisons, missing_open_model),
        judge_judged({suite_title(suite): models for suite, models in answers.items()}, settings.max_unjudged),
        judge_exam({suite_title(suite): exam for suite, exam in exams.items()}),
        *(_judge_suite(suite, comparisons) for suite in suites),
        _judge_limits(models[0], settings),
        _judge_receipts(receipts),
        *([_judge_overlap(leaks, settings)] if leaks else []),
        Verdict("licences", licence_reasons, "its licences allow it"),
    ]
    verdicts = [replace(verdict, override=overrides.get(verdict.rule, "")) for verdict in verdicts]
    unmeasured = list(_unmeasured(models, suites, settings))
    failed = sorted({receipt.claim for _, receipt in receipts if not receipt.held})
    return Decision(name, settings, verdicts, models, comparisons, leaks, exams, unmeasured, failed)


def _decisive_answers(models: list[ComparedModel], suite: str) -> list[EvaluatedModel]:
    """Return the answers of the candidate and of every model with a threshold on a suite."""
    decisive = [model for model in models if model.role == "candidate" or (suite, model.role) not in SHOWN_ONLY]
    return [answers for model in decisive if (answers := getattr(model, suite))]


def _unmeasured(models: list[ComparedModel], suites: list[str], settings: GateConfig) -> Iterator[str]:
    """Return sentences about evidence that the decision lacks."""
    if "task" not in suites:
        yield "Quality on the task."
    if "general" not in suites:
        yield "Forgetting: no general suite was evaluated."
    roles = {model.role for model in models}
    yield from (f"A comparison with {ROLES[role]}: none was named." for role in ROLES if role not in roles)
    if settings.usd_per_hour is None:
        yield "Cost: no price of a machine was given."
    yield "Speed on the machine of later use, and the variation of the speed."
    yield "Safety, bias, truth outside the questions, and languages other than the questions'."


def _judge_scores(models: list[ComparedModel], suites: list[str]) -> Verdict:
    """Require scores of exactly the compared checkpoints."""
    candidate, *others = models
    reasons = [] if "task" in suites else ["no scores were given: quality on the task was not measured"]
    for suite in suites:
        if getattr(candidate, suite) is None:
            reasons.append(
                f"the scores of the {suite_title(suite)} are of other checkpoints: none of them has the content of "
                f"{candidate.name}, which is released"
            )
        reasons += [
            f"{other.label}, {other.name}, is missing from the evaluation of the {suite_title(suite)}"
            for other in others
            if getattr(other, suite) is None and (suite, other.role) not in SHOWN_ONLY
        ]
    return Verdict("scores", reasons, remark="" if reasons else "the evaluations have every model, unchanged")


def _judge_comparison(
    models: list[ComparedModel], comparisons: list[PairedComparison], missing_open_model: str
) -> Verdict:
    is_missing = len(models) == 1 and models[0].task is not None
    reasons = ["it was compared with no other model: name `base`, `teacher` or `in_use`"] if is_missing else []
    if missing_open_model and models[0].task is not None and not is_missing:
        reasons.append(
            f"it was not compared with {OPEN_MODEL}, {missing_open_model}, which one would use otherwise: evaluate it "
            "too and name it as `base`"
        )
    required = [each for each in comparisons if each.suite == "task" and each.threshold is not None]
    remark = "; ".join(_summary(each) for each in required if each.outcome is Outcome.MET)
    return Verdict("comparison", reasons, remark)


def _summary(comparison: PairedComparison) -> str:
    allowed = f" ({-POINTS * (comparison.threshold or 0):.1f} are allowed)" if comparison.difference.mean < 0 else ""
    return f"{amount(comparison)} {comparison.label}{allowed}"


def _judge_suite(suite: str, comparisons: list[PairedComparison]) -> Verdict:
    """Require every comparison on a suite to meet the threshold."""
    failed = [
        each for each in comparisons if each.suite == suite and each.outcome in (Outcome.MISSED, Outcome.UNDECIDED)
    ]
    unknown = [each.label for each in failed if not each.num_questions]
    labels = " and ".join(filter(None, [", ".join(unknown[:-1]), *unknown[-1:]]))
    nothing = [f"nothing is known of {labels} on the {suite_title(suite)}: no answer was judged"] if unknown else []
    return Verdict(suite, nothing + [explain(each) for each in failed if each.num_questions])


def _judge_limits(candidate: ComparedModel, settings: GateConfig) -> Verdict:
    """Require size, speed and cost within the limits that are set."""
    measured = candidate.measured
    limits = (settings.max_megabytes, settings.min_tokens_per_s, settings.max_usd_per_million)
    has_limit = any(limit is not None for limit in limits)
    if measured is None:
        return Verdict("limits", ["its size and speed were not measured, and limits are set"] if has_limit else [])
    remark = "within every limit" if has_limit else ""
    return Verdict("limits", list(_beyond(measured, candidate.usd_per_million, settings)), remark)


def _beyond(measured: EvaluatedModel, usd: float | None, settings: GateConfig) -> Iterator[str]:
    megabytes, tokens_per_s = measured.speed.weight_bytes / 1e6, measured.speed.generated_tokens_per_s
    if settings.max_megabytes is not None and megabytes > settings.max_megabytes:
        yield f"its weights take {megabytes:,.1f} MB, at most {settings.max_megabytes:,.1f} are allowed"
    if settings.min_tokens_per_s is not None and tokens_per_s < settings.min_tokens_per_s:
        yield f"it writes {tokens_per_s:,.0f} tokens/s, at least {settings.min_tokens_per_s:,.0f} are demanded"
    if settings.max_usd_per_million is not None and usd is None:
        yield "a limit on the cost is set, but no price of the machine (gate.usd_per_hour)"
    if settings.max_usd_per_million is not None and usd is not None and usd > settings.max_usd_per_million:
        yield f"a million tokens cost {usd:,.2f} USD, at most {settings.max_usd_per_million:,.2f} are allowed"


def _judge_receipts(receipts: list[tuple[str, Receipt]]) -> Verdict:
    reasons = [
        f"the receipt {receipt.claim} of {name} does not hold: {receipt.value:.4g}, {receipt.limit}"
        for name, receipt in receipts
        if not receipt.held
    ]
    return Verdict("receipts", reasons, f"all {len(receipts):,} receipts of the lineage held" if receipts else "")


def _judge_overlap(leaks: Leaks, settings: GateConfig) -> Verdict:
    report = leaks.report
    reasons = [f"no search for test questions was possible in {name}" for name in leaks.unread]
    if len(report.found) > settings.max_overlaps:
        first = report.found[0]
        number = f"{len(report.found):,} of {report.num_probes:,} test questions and expected answers"
        example = f"as '{first.name}' in {first.place}"
        reasons.append(f"{number} stand in the training data, {example}; {settings.max_overlaps:,} are allowed")
    return Verdict("overlap", reasons, leaks.describe(settings.max_overlaps))
