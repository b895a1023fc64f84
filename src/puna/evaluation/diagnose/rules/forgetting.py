"""Loss on the start model's data, and scores of general tasks -> findings about forgetting."""

import math

from puna.evaluation.diagnose.comparison_group import ComparisonGroup
from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A perplexity 10 % higher.
MOST_RISE = math.log(1.1)
REMEDY = "Mix in some of the start model's data, or tune an adapter instead; if that is not enough, lower optim.lr."


def forgot_start(record: Record) -> Finding | None:
    """The loss on the start model's training data rose."""
    before, after = record.facts.get("start_data_loss"), record.facts.get("start_data_loss_after")
    if before is None or after is None or after - before <= MOST_RISE:
        return None
    seen = f"On the data of the start model the loss was {before:.2f} before this run and {after:.2f} after it."
    return Finding("forgot-start", seen, REMEDY, ("lower rate",))


def forgot_general(comparison: ComparisonGroup) -> Finding | None:
    """The student scores below start model or baseline on the general tasks."""
    for other in filter(None, (comparison.start, comparison.baseline)):
        general = comparison.general_difference(comparison.student, other)
        if general is not None and general.high < 0:
            own = comparison.difference(comparison.student, other)
            seen = (
                f"On the general tasks {comparison.student.name} is {general} against {other.name}; on its own {own}."
            )
            return Finding("forgot-general", seen, REMEDY, ("lower rate",))
    return None
