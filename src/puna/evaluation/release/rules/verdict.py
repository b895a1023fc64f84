"""The result of one rule of the release gate, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Result of one rule. The rule held if `reasons` is empty; otherwise `reasons` lists the failures.

    `told` is a remark for a rule that held. `override` is the reason for overriding a failed rule. `hint` tells the
    user how to fix a failure; a separate hint keeps the reasons short.

    Example:
        >>> Verdict("limits", ["its weights take 12.0 MB, at most 10.0 are allowed"]).held
        False
    """

    rule: str
    reasons: list[str]
    told: str = ""
    override: str = ""
    hint: str = ""

    @property
    def held(self) -> bool:
        return not self.reasons
