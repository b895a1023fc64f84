"""A student with teacher, start model and baseline: records and paired differences of scores, for the rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from puna.evaluation.diagnose.record import Record


class Difference(NamedTuple):
    """A paired difference of mean scores, with the bounds of the 95 % interval.

    Example:
        >>> str(Difference(-0.3, -0.4, -0.2))
        '-30.0 points (-40.0 to -20.0)'
    """

    mean: float
    low: float
    high: float

    def reversed(self) -> "Difference":
        """Return the difference with the two models exchanged."""
        return Difference(-self.mean, -self.high, -self.low)

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True)
class GroupMember:
    """A checkpoint of a comparison group.

    Attributes:
        name: Name of the checkpoint in the evaluation.
        record: Record of the training run; None without training by Puna.
        tokenizer: Fingerprint of the tokenizer.
        template: Text of the chat template; "" without a template.

    Example:
        >>> GroupMember("base", None, "0a1b", "").record is None
        True
    """

    name: str
    record: Record | None
    tokenizer: str
    template: str


# Names of two members -> score of the first member minus score of the second; one of the two orders is enough.
Differences = Mapping[tuple[str, str], Difference]


@dataclass(frozen=True)
class ComparisonGroup:
    """A student and the models to compare with, on the questions of an evaluation.

    Attributes:
        student: The diagnosed model.
        baseline: The same network, trained without the teacher.
        start: The initial model of the student's training.
        teacher: The teacher.
        differences: Paired differences on the student's own tasks.
        general_differences: Paired differences on the general tasks, a measure of forgetting.
        questions: Shares of questions with a system message ("system") and tools ("tools"), and the median prompt
            length in tokens ("median").

    Example:
        >>> group = ComparisonGroup(student, baseline, None, None, {("mine", "sft"): Difference(0.3, 0.2, 0.4)}, {})
        >>> group.difference(baseline, student).mean
        -0.3
    """

    student: GroupMember
    baseline: GroupMember | None
    start: GroupMember | None
    teacher: GroupMember | None
    differences: Differences
    general_differences: Differences
    questions: Mapping[str, float] = field(default_factory=dict)

    def difference(self, one: GroupMember, other: GroupMember) -> Difference:
        """Return the difference on the student's own tasks."""
        difference = _find(self.differences, one, other)
        assert difference is not None, "every two checkpoints answered the same questions"
        return difference

    def general_difference(self, one: GroupMember, other: GroupMember) -> Difference | None:
        """Return the difference on the general tasks; None without general tasks."""
        return _find(self.general_differences, one, other)


def _find(differences: Differences, one: GroupMember, other: GroupMember) -> Difference | None:
    if (one.name, other.name) in differences:
        return differences[one.name, other.name]
    difference = differences.get((other.name, one.name))
    return difference.reversed() if difference else None
