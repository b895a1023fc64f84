"""Losses of student and teacher, and facts about the data -> findings about model size and amount of data."""

import math

from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules.learning import LAST, THIRD_QUARTER
from puna.pipeline.finding import Finding

# A perplexity 20 % above the teacher's.
LEAST_GAP = math.log(1.2)
# At the pace of the last quarter, the student would need more than two further runs to reach the teacher.
SLOWEST = 0.1
MOST_VALIDATION_RISE = 1.03
# Muennighoff et al. (2023, arXiv 2305.16264): four epochs are nearly as good as new text, beyond 16 little is gained.
MOST_EPOCHS = 16
MOST_COPIES = 0.1
# Share of tokens in spans that both tokenizers split alike.
LEAST_ALIGNED = 0.5


def capacity(record: Record) -> Finding | None:
    """The loss on the training text stopped falling well above the teacher's loss."""
    teacher, student = record.mean("teacher_loss", 0.5), record.mean(record.token_loss)
    if teacher is None or student is None or student - teacher <= LEAST_GAP:
        return None
    fall, _ = record.fall(record.token_loss, THIRD_QUARTER, LAST)
    if fall > SLOWEST * (student - teacher):
        return None
    seen = f"On the training text the student's loss ended at {student:.2f}, the teacher's is {teacher:.2f}; the last "
    seen += f"quarter brought {max(0.0, fall):.2f} of these {student - teacher:.2f}."
    size = record.facts.get("num_parameters")
    remedy = f"Take a larger student than {size:,} parameters, " if size else "Take a larger student, "
    return Finding("capacity", seen, remedy + "pruned from the teacher rather than with random weights.")


def overfitting(record: Record) -> Finding | None:
    """The validation loss rose while the training loss fell."""
    losses = [(row["validation_loss"], index) for index, row in enumerate(record.rows) if row.get("validation_loss")]
    if len(losses) < 3:
        return None
    (best, index), (last, _) = min(losses), losses[-1]
    there = index / record.num_steps
    fall, _ = record.fall("loss", (max(0.0, there - 0.1), there + 0.01), LAST)
    if last <= MOST_VALIDATION_RISE * best or fall <= 0:
        return None
    seen = (
        f"The validation loss was {best:.3f} after step {record.rows[index]['step']} and {last:.3f} at the end, while "
    )
    seen += f"the training loss fell by another {fall:.3f}."
    remedy = f"Stop after about {record.rows[index]['step']} steps, or add data."
    return Finding("overfitting", seen, remedy, ("fewer steps",))


def data_small(record: Record) -> Finding | None:
    """Every row was read many times."""
    epochs, rows = record.facts.get("epochs"), record.facts.get("num_rows")
    if not epochs or epochs <= MOST_EPOCHS:
        return None
    seen = f"The {rows:,} rows of the data were read {epochs:.0f} times."
    remedy = "Add data (for example with puna synthesize), or train for fewer epochs."
    return Finding("data-small", seen, remedy, ("fewer steps",))


def data_duplicated(record: Record) -> Finding | None:
    """Many rows repeat another row."""
    copies = record.facts.get("copies_share")
    if not copies or copies <= MOST_COPIES:
        return None
    seen = f"{copies:.0%} of the examined rows repeat another row word for word."
    return Finding("data-duplicated", seen, 'Drop the copies: drop_duplicates = "exact" at puna ingest.')


def spans_few(record: Record) -> Finding | None:
    """Few spans of teacher and student could be aligned across the two tokenizers."""
    aligned = record.mean("aligned_share", 0.0)
    if aligned is None or aligned >= LEAST_ALIGNED:
        return None
    seen = f"{aligned:.0%} of the trained tokens belong to a span that both tokenizers split alike."
    return Finding(
        "spans-few", seen, "Train on the teacher's answers instead (sequence-level), or take the teacher's tokenizer."
    )
