"""Figures of the teacher on the trained tokens -> findings about the labels of a distillation.

`tail_mass` is the teacher's probability outside the stored tokens. `label_entropy` is the entropy of the labels at the
distillation temperature. `teacher_entropy`, `entropy` and the losses are at temperature 1.
"""

import math

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A total variation of 0.05 from the teacher equals one wrong label in twenty.
MOST_TAIL = 0.05
# Half the entropy of a uniform distribution: 45 equally likely tokens of 2,048, or 358 of 128,256.
MOST_ENTROPY_SHARE = 0.5
# A factor of two in the number of equally likely tokens.
MOST_ENTROPY_GAP = math.log(2)
LEAST_TEACHER_EXCESS = 1.1


def labels_cut(record: Record) -> Finding | None:
    """The stored top k tokens miss much of the teacher's probability."""
    tail = record.mean("tail_mass", 0.0)
    if tail is None or tail <= MOST_TAIL:
        return None
    seen = f"{tail:.1%} of the teacher's probability lies outside the stored tokens."
    return Finding("labels-cut", seen, "Label again with a larger top_k, or at a lower temperature.")


def labels_flat(record: Record) -> Finding | None:
    """The labels are nearly uniform: the temperature is too high, or the teacher cannot predict the text."""
    name = "label_entropy" if record.has("label_entropy") else "teacher_entropy"
    entropy, vocab_size = record.mean(name, 0.0), record.facts.get("vocab_size")
    if entropy is None or not vocab_size or entropy <= MOST_ENTROPY_SHARE * math.log(vocab_size):
        return None
    temperature = record.config.get("temperature", 1.0)
    seen = (
        f"At temperature {temperature:g} the labels have {entropy:.1f} nats of entropy, as if {math.exp(entropy):,.0f} "
    )
    seen += f"of {vocab_size:,} tokens were equally likely at every position."
    known = record.mean("teacher_entropy", 0.0)
    is_softened = known is not None and known <= MOST_ENTROPY_SHARE * math.log(vocab_size)
    remedy = (
        f"Lower the temperature: at 1 the teacher has {known:.1f} nats." if is_softened else "Take another teacher."
    )
    return Finding("labels-flat", seen, remedy)


def entropy_gap(record: Record) -> Finding | None:
    """At the end the student is far more certain, or far less certain, than the teacher."""
    student, teacher = record.mean("entropy"), record.mean("teacher_entropy", 0.5)
    if student is None or teacher is None or abs(student - teacher) <= MOST_ENTROPY_GAP:
        return None
    seen = f"On the trained tokens the student has {student:.2f} nats of entropy at the end, the teacher {teacher:.2f}."
    if student < teacher:
        remedy = "The student is overconfident: raise teacher_weight, or lower the number of epochs."
        return Finding("entropy-gap", seen, remedy, ("raise teacher_weight", "fewer steps"))
    if record.config.get("temperature", 1.0) > 1:
        remedy = "Lower the temperature to 1: above 1 the student learns to be less certain than the teacher."
        return Finding("entropy-gap", seen, remedy)
    remedy = "The student is still less certain than the teacher: train longer, or take a larger student."
    return Finding("entropy-gap", seen, remedy, ("more steps",))


def teacher_foresees_worse(record: Record) -> Finding | None:
    """At the end the student predicts the training text better than the teacher does."""
    teacher, name = record.mean("teacher_loss", 0.5), record.token_loss
    if teacher is None:
        return None
    student, worst = record.mean(name), sum(record.fall(name, (0.9, 1.0), (0.9, 1.0))) * 3
    if student is None or teacher <= LEAST_TEACHER_EXCESS * student + worst:
        return None
    weight = record.config.get("teacher_weight")
    seen = f"On the trained tokens the teacher's loss is {teacher:.3f}, the student's at the end {student:.3f}"
    seen += f", with {weight:.0%} of the weight on the teacher." if weight is not None else "."
    remedy = (
        "Lower teacher_weight, or tune the teacher on these data first; compare with a run without a teacher (sft)."
    )
    return Finding("teacher-foresees-worse", seen, remedy, ("lower teacher_weight",))
