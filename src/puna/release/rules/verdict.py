"""The result of one rule of the gate, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Result of one rule: it held, or the reasons why not; `override` is the reason for passing it over nevertheless.

    `hint` says what to do where the rule did not hold; it stands apart from the reasons, so that these stay short.

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
