"""Facts about the answers in the training data -> findings about repeated or empty answers."""

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# Three balanced classes give a share of one third; the most frequent answer in human dialogues has a few percent.
MOST_EQUAL = 0.35
# A share of fewer answers says little.
LEAST_ANSWERS = 10
MOST_EMPTY = 0.01


def answers_equal(record: Record) -> Finding | None:
    """More than a third of the answers are the same words."""
    facts = record.facts.get("answers", {})
    total, count = facts.get("num_spoken", 0), facts.get("num_equal", 0)
    if total < LEAST_ANSWERS or count <= MOST_EQUAL * total:
        return None
    seen = f"{count:,} of {total:,} answers looked at ({count / total:.1%}) are {facts['most_frequent']!r}."
    remedy = (
        "Set max_equal_answers at puna ingest, or correct the answers. Change nothing if the task has so few answers."
    )
    return Finding("answers-equal", seen, remedy)


def answers_empty(record: Record) -> Finding | None:
    """Many answers have neither words nor a tool call."""
    facts = record.facts.get("answers", {})
    empty = facts.get("num_empty", 0)
    if not empty or empty <= MOST_EMPTY * (empty + facts["num_spoken"]):
        return None
    seen = f"{empty:,} of {empty + facts['num_spoken']:,} answers looked at are empty."
    return Finding(
        "answers-empty", seen, "Read the rows with puna ingest, which drops empty answers, or write the answers."
    )
