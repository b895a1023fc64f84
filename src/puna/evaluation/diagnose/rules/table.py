"""THE RULES, a function each. In which order findings are told, and which are left out, order.py says."""

from collections.abc import Callable

from puna.evaluation.diagnose.comparison_group import ComparisonGroup
from puna.evaluation.diagnose.order import in_order
from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules import answers, chat, comparisons, fit, forgetting, labels, learning, masks
from puna.pipeline.errors import ArtifactError
from puna.pipeline.finding import Finding

# On what one training run recorded.
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

# On the facts that are known before the first step: what a run would learn from, and what it would lose.
START_RULES: tuple[Callable[[Record], Finding | None], ...] = (
    answers.answers_equal,
    answers.answers_empty,
    masks.prompt_differs,
    fit.data_duplicated,
    chat.chat_at_risk,
)

# On scores and records of several checkpoints.
COMPARISON_RULES: tuple[Callable[[ComparisonGroup], Finding | None], ...] = (
    comparisons.teacher_not_better,
    comparisons.budget_differs,
    comparisons.tokenizer_differs,
    comparisons.chat_differs,
    comparisons.questions_differ,
    forgetting.forgot_general,
)


def warn(record: Record) -> list[Finding]:
    """Apply the rules that need no step to the facts of a run that begins."""
    return in_order(finding for rule in START_RULES if (finding := rule(record)))


def examine(record: Record) -> list[Finding]:
    """Apply every rule about a run to its record; what to try first comes first."""
    return in_order(_of_run(record))


def explain(comparison: ComparisonGroup) -> list[Finding]:
    """Apply every rule to a student, those beside it and the record of its run; what to try first comes first.

    Raises:
        ArtifactError: A record that another run left lacks a fact, or has one of another type.
    """
    try:
        found = [finding for rule in COMPARISON_RULES if (finding := rule(comparison))]
        return in_order([*found, *(_of_run(comparison.student.record) if comparison.student.record else [])])
    except (TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError) as error:
        given = f"the records of the run of {comparison.student.name}, or of a checkpoint beside it ({error!r})"
        expected = "run_facts.json, run_config.json and run_metrics.jsonl as a training run writes them"
        raise ArtifactError(given, expected=expected, hint="Train again, or evaluate without compare") from error


def _of_run(record: Record) -> list[Finding]:
    return [finding for rule in RUN_RULES if record.has("loss") and (finding := rule(record))]
