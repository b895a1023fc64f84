"""The result of a rule of the release gate, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Result of a rule. The rule held if `reasons` is empty; otherwise `reasons` lists the failures.

    Attributes:
        rule: Name of the rule in settings and reports.
        reasons: Failures in words.
        remark: Statement for the report if the rule held.
        override: Reason for overriding a failed rule.
        hint: Advice on how to fix a failure.

    Example:
        >>> Verdict("limits", ["its weights take 12.0 MB, at most 10.0 are allowed"]).held
        False
    """

    rule: str
    reasons: list[str]
    remark: str = ""
    override: str = ""
    hint: str = ""

    @property
    def held(self) -> bool:
        return not self.reasons
