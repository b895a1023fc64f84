"""Losses on seen and unseen text, the teacher's, and facts of the data -> too small a student, or too little text."""

import math

from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules.learning import LAST, THIRD_QUARTER
from puna.pipeline.finding import Finding

# The student needs a fifth more guesses than the teacher.
LEAST_GAP = math.log(1.2)
# At the pace of the last quarter it would take more than twice the run again to reach the teacher.
SLOWEST = 0.1
MOST_VALIDATION_RISE = 1.03
# Muennighoff et al. (2023, arXiv 2305.16264): four passes are nearly as good as new text, after sixteen little comes.
MOST_EPOCHS = 16
MOST_COPIES = 0.1
# Less than half of a text on which the teacher's words can be laid beside the student's.
LEAST_ALIGNED = 0.5


def capacity(record: Record) -> Finding | None:
    """The loss on the training text itself stopped falling well above the teacher's."""
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
    return Finding("capacity", seen, remedy + "one pruned from the teacher rather than from random weights.")


def overfitting(record: Record) -> Finding | None:
    """The validation loss rose while the training loss fell."""
    found = [(row["validation_loss"], index) for index, row in enumerate(record.rows) if row.get("validation_loss")]
    if len(found) < 3:
        return None
    (best, index), (last, _) = min(found), found[-1]
    there = index / record.num_steps
    fall, _ = record.fall("loss", (max(0.0, there - 0.1), there + 0.01), LAST)
    if last <= MOST_VALIDATION_RISE * best or fall <= 0:
        return None
    seen = (
        f"The validation loss was {best:.3f} after step {record.rows[index]['step']} and {last:.3f} at the end, while "
    )
    seen += f"the training loss fell by another {fall:.3f}."
    remedy = f"Stop after about {record.rows[index]['step']} steps, or take more data."
    return Finding("overfitting", seen, remedy, ("fewer steps",))


def data_small(record: Record) -> Finding | None:
    """Few rows were read many times."""
    epochs, rows = record.facts.get("epochs"), record.facts.get("num_rows")
    if not epochs or epochs <= MOST_EPOCHS:
        return None
    seen = f"The {rows:,} rows of the data were read {epochs:.0f} times."
    remedy = "Take more data (puna synthesize makes some), or train for fewer epochs."
    return Finding("data-small", seen, remedy, ("fewer steps",))


def data_duplicated(record: Record) -> Finding | None:
    """Many rows say what others say."""
    copies = record.facts.get("copies_share")
    if not copies or copies <= MOST_COPIES:
        return None
    seen = f"{copies:.0%} of the rows looked at say, word for word, what another row says."
    return Finding("data-duplicated", seen, 'Keep one of each: drop_duplicates = "exact" at puna ingest.')


def spans_few(record: Record) -> Finding | None:
    """Across tokenizers, few spans of teacher and student could be laid beside each other."""
    aligned = record.mean("aligned_share", 0.0)
    if aligned is None or aligned >= LEAST_ALIGNED:
        return None
    seen = f"{aligned:.0%} of the trained tokens belong to a span that both tokenizers cut alike."
    return Finding("spans-few", seen, "Train on the teacher's answers instead (sequence-level), or take its tokenizer.")
