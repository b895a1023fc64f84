"""Tables of all diagnosis rules, and the functions that apply the rules. order.py sorts the findings."""

from collections.abc import Callable

from puna.evaluation.diagnose.comparison_group import ComparisonGroup
from puna.evaluation.diagnose.order import in_order
from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules import answers, chat, comparisons, fit, forgetting, labels, learning, masks
from puna.pipeline.errors import ArtifactError
from puna.pipeline.finding import Finding

# Rules on the record of one training run.
RUN_RULES: tuple[Callable[[Record], Finding | None], ...] = (
    masks.mask_empty,
    masks.mask_thin,
    masks.mask_formatting,
    masks.mask_no_end,
    masks.prompt_differs,
    masks.rows_dropped,
    answers.answers_equal,
    answers.answers_empty,
    labels.labels_cut,
    labels.labels_flat,
    labels.teacher_foresees_worse,
    labels.entropy_gap,
    learning.steps_skipped,
    learning.loss_diverged,
    learning.rate_high,
    learning.loss_jumps,
    learning.loss_stuck,
    learning.gradient_clipped,
    learning.warmup_long,
    learning.steps_few,
    fit.capacity,
    fit.overfitting,
    fit.data_small,
    fit.data_duplicated,
    fit.spans_few,
    forgetting.forgot_start,
    chat.chat_lost,
)

# Rules on facts that are known before the first step.
START_RULES: tuple[Callable[[Record], Finding | None], ...] = (
    answers.answers_equal,
    answers.answers_empty,
    masks.prompt_differs,
    fit.data_duplicated,
    chat.chat_at_risk,
)

# Rules on scores and records of a comparison group.
COMPARISON_RULES: tuple[Callable[[ComparisonGroup], Finding | None], ...] = (
    comparisons.teacher_not_better,
    comparisons.budget_differs,
    comparisons.tokenizer_differs,
    comparisons.chat_differs,
    comparisons.questions_differ,
    forgetting.forgot_general,
)


def warn(record: Record) -> list[Finding]:
    """Apply the rules on facts before the first step; the first finding is the first to try."""
    return in_order(finding for rule in START_RULES if (finding := rule(record)))


def examine(record: Record) -> list[Finding]:
    """Apply the rules on a training run; the first finding is the first to try."""
    return in_order(_of_run(record))


def explain(comparison: ComparisonGroup) -> list[Finding]:
    """Apply the rules on a comparison group and on the student's training run; the first finding is the first to try.

    Raises:
        ArtifactError: A record lacks a fact, or a fact has another type.
    """
    try:
        findings = [finding for rule in COMPARISON_RULES if (finding := rule(comparison))]
        return in_order([*findings, *(_of_run(comparison.student.record) if comparison.student.record else [])])
    except (TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError) as error:
        given = f"the training records of {comparison.student.name}, or of a model to compare with ({error!r})"
        expected = "run_facts.json, run_config.json and run_metrics.jsonl as a training run writes them"
        raise ArtifactError(given, expected=expected, hint="Train again, or evaluate without compare") from error


def _of_run(record: Record) -> list[Finding]:
    return [finding for rule in RUN_RULES if record.has("loss") and (finding := rule(record))]
