"""A student and those beside it, with their scores and records, as rules look at them. Computes no interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from puna.evaluation.diagnose.record import Record


class Difference(NamedTuple):
    """A paired difference of mean scores, with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def reversed(self) -> "Difference":
        return Difference(-self.mean, -self.high, -self.low)

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True)
class GroupMember:
    """One checkpoint: its name, the record of the run that trained it, and what its tokenizer and template are."""

    name: str
    record: Record | None
    tokenizer: str
    template: str


# (name, name) -> score of the first - score of the second, in one of the two orders.
Differences = Mapping[tuple[str, str], Difference]


@dataclass(frozen=True)
class ComparisonGroup:
    """A student, the same model trained without the teacher, the model it began as, its teacher, and the questions."""

    student: GroupMember
    baseline: GroupMember | None
    start: GroupMember | None
    teacher: GroupMember | None
    differences: Differences
    general_differences: Differences
    questions: Mapping[str, float] = field(default_factory=dict)

    def difference(self, one: GroupMember, other: GroupMember) -> Difference:
        found = _find(self.differences, one, other)
        assert found is not None, "every two checkpoints answered the same questions"
        return found

    def general_difference(self, one: GroupMember, other: GroupMember) -> Difference | None:
        """Return the difference on the general tasks, None if none was named."""
        return _find(self.general_differences, one, other)


def _find(differences: Differences, one: GroupMember, other: GroupMember) -> Difference | None:
    if (one.name, other.name) in differences:
        return differences[one.name, other.name]
    found = differences.get((other.name, one.name))
    return found.reversed() if found else None
