"""Findings of checks: `puna doctor` checks files, diagnose checks records of runs, `puna ingest` checks data.

A table beside every family of checks says why a code matters: KINDS in doctor, REASONS in diagnose.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["warning", "broken"]

# A setting and the direction in which a remedy moves the setting; opposite directions contradict each other.
Change = Literal[
    "lower rate", "raise rate", "fewer steps", "more steps", "lower teacher_weight", "raise teacher_weight"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that a check observed: the code of the problem, the observation with numbers, and the remedy.

    Args:
        code: Kind of problem, as documentation lists the kinds: "stop-missing".
        seen: The observation, with numbers.
        remedy: Advice to the user.
        changes: Settings that the remedy moves; a remedy about data or files moves none.
        where: The file, or part of a file, with the problem; empty for findings about a run.

    Example:
        >>> Finding("steps-few", "The last quarter brought 20% of the fall.", "Train longer.", ("more steps",)).severity
        'warning'
    """

    code: str
    seen: str
    remedy: str
    changes: tuple[Change, ...] = ()
    where: str = ""
    severity: Severity = "warning"
