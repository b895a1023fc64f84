"""Findings of many rules -> an ordered list for a reader: the remedy to try first on top, no contradicting remedies.

Three steps: sort findings by ORDER; leave out a finding explained by a second finding (EXPLAINS); leave out findings
with a remedy opposite to the remedy of a finding above (OPPOSITES).
"""

from collections.abc import Iterable, Mapping

from puna.pipeline.finding import Change, Finding

# Faults of the data come before settings: no learning rate mends data. Inside a group the surer cause comes first.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "the data": (
        "mask-empty", "mask-no-end", "mask-formatting", "answers-equal", "answers-empty", "prompt-differs",
        "rows-rejected", "rows-dropped", "data-duplicated", "data-near-duplicated", "answers-differ", "mask-thin",
    ),
    "the comparison": ("tokenizer-differs", "chat-differs", "questions-differ", "budget-differs"),
    "the teacher": ("teacher-not-better", "labels-flat", "labels-cut", "spans-few", "teacher-foresees-worse"),
    "forgetting": ("chat-at-risk", "chat-lost", "forgot-start", "forgot-general"),
    "the learning rate": (
        "steps-skipped", "loss-diverged", "rate-high", "loss-jumps", "loss-stuck", "gradient-clipped", "warmup-long",
    ),
    "length and size": ("overfitting", "data-small", "entropy-gap", "capacity", "steps-few"),
}  # fmt: skip
ORDER = tuple(code for codes in GROUPS.values() for code in codes)

# A finding -> the findings explained by the first one. Mending the cause likely removes the explained findings.
EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "mask-empty": ("mask-thin", "loss-stuck", "capacity", "steps-few"),
    "labels-flat": ("capacity",),
    "chat-lost": ("forgot-start",),
    "loss-diverged": ("loss-stuck", "capacity", "steps-few"),
    "rate-high": ("capacity", "steps-few"),
    "loss-stuck": ("capacity",),
}

OPPOSITES: Mapping[Change, Change] = {
    "lower rate": "raise rate",
    "raise rate": "lower rate",
    "fewer steps": "more steps",
    "more steps": "fewer steps",
    "lower teacher_weight": "raise teacher_weight",
    "raise teacher_weight": "lower teacher_weight",
}


def place_of(code: str) -> int:
    """Return the index of a finding code in ORDER, from 0.

    Example:
        >>> place_of("mask-empty")
        0
    """
    return ORDER.index(code)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the first to try first; leave out findings explained or contradicted by a second finding.

    Example:
        in_order([steps_few, overfitting])  # [overfitting]: fewer steps, and no advice to train longer
    """
    ordered = sorted(findings, key=lambda finding: place_of(finding.code))
    explained = {code for finding in ordered for code in EXPLAINS.get(finding.code, ())}
    chosen: list[Finding] = []
    for finding in ordered:
        opposed = {OPPOSITES[change] for each in chosen for change in each.changes}
        if finding.code not in explained and opposed.isdisjoint(finding.changes):
            chosen.append(finding)
    return chosen
