"""THE RULES, in the order in which causes are told: what was trained on, what was shown, how it was learned."""

from collections.abc import Callable

from puna.diagnose.comparison import Comparison
from puna.diagnose.finding import Finding
from puna.diagnose.record import Record
from puna.diagnose.rules import fit, forgetting, labels, learning, masks, sides

# On what one training run recorded.
RUN_RULES: tuple[Callable[[Record], Finding | None], ...] = (
    masks.mask_empty,
    masks.mask_thin,
    masks.mask_formatting,
    masks.mask_no_end,
    masks.prompt_differs,
    masks.rows_dropped,
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
)

# On scores and records of several checkpoints.
COMPARISON_RULES: tuple[Callable[[Comparison], Finding | None], ...] = (
    sides.teacher_not_better,
    sides.budget_differs,
    sides.tokenizer_differs,
    sides.chat_differs,
    sides.questions_differ,
    forgetting.forgot_general,
)


def examine(record: Record) -> list[Finding]:
    """Apply every rule about a run to its record."""
    return [finding for rule in RUN_RULES if record.has("loss") and (finding := rule(record))]


def explain(comparison: Comparison) -> list[Finding]:
    """Apply every rule to a student and those beside it: first what the scores show, then its run's record."""
    found = [finding for rule in COMPARISON_RULES if (finding := rule(comparison))]
    return [*found, *(examine(comparison.student.record) if comparison.student.record else [])]
