"""Answers of several checkpoints, and the records of the runs that made them -> why a student ends where it does.

The judgements are the rules of diagnose/; here they get the paired differences, and their findings become text.
"""

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.evaluation.diagnose.comparison import Comparison, Difference, Differences, Side
from puna.evaluation.diagnose.reasons import REASONS, to_json
from puna.evaluation.diagnose.report import tell
from puna.evaluation.diagnose.rules.table import explain
from puna.evaluation.evaluate.roles import Cast, side
from puna.evaluation.evaluate.scores import Answers, paired_difference
from puna.formats.chat.conversation import Conversation
from puna.pipeline.finding import Finding


class Diagnosis(NamedTuple):
    """A student beside the others, and what the rules found."""

    comparison: Comparison
    findings: list[Finding]

    @property
    def references(self) -> list[Side]:
        """Those that the student is to be better than."""
        return [each for each in (self.comparison.plain, self.comparison.start) if each]

    @property
    def is_below(self) -> bool:
        """Whether the student is shown to be worse than one of these."""
        student = self.comparison.student
        return any(self.comparison.difference(student, other).high < 0 for other in self.references)

    def to_json(self) -> dict[str, Any]:
        sides = {role: getattr(self.comparison, role) for role in ("student", "plain", "start", "teacher")}
        return {
            **{role: each.name if each else None for role, each in sides.items()},
            "is_below": self.is_below,
            "findings": [to_json(finding) for finding in self.findings],
        }


def diagnose(
    found: Sequence[Cast],
    everyone: Sequence[Answers],
    checkpoints: Mapping[str, Path],
    general: Collection[str],
    questions: Mapping[str, float],
) -> list[Diagnosis]:
    """Apply the rules to every student; `general` names the tasks that are not its own."""
    sides = {name: side(name, checkpoints[name]) for cast in found for name in cast if name}
    own, others = _differences(everyone, general, is_general=False), _differences(everyone, general, is_general=True)
    diagnoses: list[Diagnosis] = []
    for cast in found:
        plain, start, teacher = (sides[name] if name else None for name in cast[1:])
        comparison = Comparison(sides[cast.student], plain, start, teacher, own, others, questions)
        diagnoses.append(Diagnosis(comparison, explain(comparison)))
    return diagnoses


def describe_questions(conversations: Sequence[Conversation], num_tokens: Sequence[int]) -> dict[str, float]:
    """Return the share of questions with a system message and with tools, and the median length of the prompts."""
    count = len(conversations)
    return {
        "system": sum(each.messages[0].role == "system" for each in conversations) / count,
        "tools": sum(bool(each.tools or each.environment) for each in conversations) / count,
        "median": int(statistics.median(num_tokens)),
    }


def _differences(everyone: Sequence[Answers], general: Collection[str], *, is_general: bool) -> Differences:
    found: dict[tuple[str, str], Difference] = {}
    for one, other in itertools.permutations(everyone, 2):
        chosen = [i for i, row in enumerate(one.rows) if (row["task"] in general) == is_general]
        if chosen:
            pair = [[answers.rows[i] for i in chosen] for answers in (one, other)]
            found[one.name, other.name] = Difference(*paired_difference(*pair))
    return found


def section(diagnosis: Diagnosis) -> str:
    """Return the part of report.md about one student."""
    name = diagnosis.comparison.student.name
    against = [f"- {line}" for line in _verdicts(diagnosis)]
    title = f"## Why {name} is below" if diagnosis.is_below else f"## What stands out about {name}"
    nothing = "No rule found a cause in the scores and the records of the runs."
    return "\n\n".join([title, "\n".join(against), *(tell(diagnosis.findings) or [nothing])])


def lines(diagnosis: Diagnosis) -> list[str]:
    """Return what the terminal shows: the verdict, then what was seen and what to do."""
    said = _verdicts(diagnosis)
    for finding in diagnosis.findings:
        said += [f"  {finding.code}: {finding.seen}", f"    {REASONS[finding.code]}", f"    -> {finding.remedy}"]
    return said if diagnosis.findings else [*said, "  no rule found a cause in the scores and the records of the runs"]


def _verdicts(diagnosis: Diagnosis) -> list[str]:
    student, told = diagnosis.comparison.student, []
    for other in diagnosis.references:
        difference = diagnosis.comparison.difference(student, other)
        verdict = "worse" if difference.high < 0 else "better" if difference.low > 0 else "no difference is shown"
        told.append(f"{student.name} against {other.name}: {difference}, {verdict}")
    return told
