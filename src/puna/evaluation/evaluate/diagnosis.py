"""Answers of several checkpoints and records of their training runs -> reasons why a student scores below a baseline.

The rules of diagnose/ judge. This file gives the rules paired differences of scores, and renders the findings as text.
"""

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.evaluation.diagnose.comparison_group import ComparisonGroup, Difference, Differences, GroupMember
from puna.evaluation.diagnose.reasons import REASONS, to_json
from puna.evaluation.diagnose.report import tell
from puna.evaluation.diagnose.rules.table import explain
from puna.evaluation.evaluate.comparison_groups import GroupNames, read_member
from puna.evaluation.evaluate.slices import paired_difference
from puna.evaluation.scores import EvaluatedModel
from puna.formats.chat.conversation import Conversation
from puna.pipeline.finding import Finding


class Diagnosis(NamedTuple):
    """A student with its comparison group, and the findings of the rules.

    Example:
        >>> Diagnosis(group, explain(group)).is_below
        True
    """

    group: ComparisonGroup
    findings: list[Finding]

    @property
    def references(self) -> list[GroupMember]:
        """Models that the student should surpass: the baseline and the start model."""
        return [member for member in (self.group.baseline, self.group.start) if member]

    @property
    def is_below(self) -> bool:
        """Whether the student is shown to be worse than a reference: the whole interval lies below 0."""
        student = self.group.student
        return any(self.group.difference(student, reference).high < 0 for reference in self.references)

    def to_json(self) -> dict[str, Any]:
        """Return an entry of diagnosis.json."""
        group = self.group
        members = {"student": group.student, "plain": group.baseline, "start": group.start, "teacher": group.teacher}
        return {
            **{role: member.name if member else None for role, member in members.items()},
            "is_below": self.is_below,
            "findings": [to_json(finding) for finding in self.findings],
        }


def diagnose(
    groups: Sequence[GroupNames],
    everyone: Sequence[EvaluatedModel],
    checkpoints: Mapping[str, Path],
    general: Collection[str],
    questions: Mapping[str, float],
) -> list[Diagnosis]:
    """Apply the rules to every student.

    Args:
        groups: Students with the names of teacher, baseline and start model.
        everyone: Graded answers of all checkpoints to the same questions.
        checkpoints: Directories of the checkpoints by name.
        general: Names of the tasks that measure forgetting; all other tasks are the student's own.
        questions: Description of the student's own questions, by `describe_questions`.
    """
    members = {name: read_member(name, checkpoints[name]) for group in groups for name in group if name}
    own = _differences(everyone, general, is_general=False)
    forgetting = _differences(everyone, general, is_general=True)
    diagnoses: list[Diagnosis] = []
    for names in groups:
        baseline, start, teacher = (members[name] if name else None for name in names[1:])
        group = ComparisonGroup(members[names.student], baseline, start, teacher, own, forgetting, questions)
        diagnoses.append(Diagnosis(group, explain(group)))
    return diagnoses


def describe_questions(conversations: Sequence[Conversation], num_tokens: Sequence[int]) -> dict[str, float]:
    """Return the shares of questions with a system message and with tools, and the median prompt length in tokens."""
    count = len(conversations)
    return {
        "system": sum(each.messages[0].role == "system" for each in conversations) / count,
        "tools": sum(bool(each.tools or each.environment) for each in conversations) / count,
        "median": int(statistics.median(num_tokens)),
    }


def _differences(everyone: Sequence[EvaluatedModel], general: Collection[str], *, is_general: bool) -> Differences:
    differences: dict[tuple[str, str], Difference] = {}
    for one, other in itertools.permutations(everyone, 2):
        chosen = [i for i, row in enumerate(one.rows) if (row["task"] in general) == is_general]
        if chosen:
            pair = [[model.rows[i] for i in chosen] for model in (one, other)]
            differences[one.name, other.name] = Difference(*paired_difference(*pair))
    return differences


def section(diagnosis: Diagnosis) -> str:
    """Return the section of report.md about one student."""
    name = diagnosis.group.student.name
    verdicts = "\n".join(f"- {line}" for line in _verdicts(diagnosis))
    title = f"## Why {name} is below" if diagnosis.is_below else f"## What stands out about {name}"
    nothing = "No rule found a cause in the scores and the records of the runs."
    return "\n\n".join([title, verdicts, *(tell(diagnosis.findings) or [nothing])])


def lines(diagnosis: Diagnosis) -> list[str]:
    """Return the lines for the terminal: verdicts, then observation, reason and remedy of every finding."""
    text = _verdicts(diagnosis)
    for finding in diagnosis.findings:
        text += [f"  {finding.code}: {finding.seen}", f"    {REASONS[finding.code]}", f"    -> {finding.remedy}"]
    return text if diagnosis.findings else [*text, "  no rule found a cause in the scores and the records of the runs"]


def _verdicts(diagnosis: Diagnosis) -> list[str]:
    student, verdicts = diagnosis.group.student, list[str]()
    for reference in diagnosis.references:
        difference = diagnosis.group.difference(student, reference)
        verdict = "worse" if difference.high < 0 else "better" if difference.low > 0 else "no difference is shown"
        verdicts.append(f"{student.name} against {reference.name}: {difference}, {verdict}")
    return verdicts
