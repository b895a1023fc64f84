"""A fact of a text with normalized readings, and the comparison of two facts."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# A kind and its parts: ("number", "EUR", Decimal("24.9")), ("date", 2026, 3, 3), ("code", "ab-48213").
Reading = tuple[Any, ...]


class Fact(NamedTuple):
    """A piece of text with a value, such as "24.90 euros".

    Attributes:
        kind: Kind of value: "number", "date", "name" and so forth.
        text: The piece of text.
        readings: Possible values: "1.234" is 1234 and 1.234. The first part is unit, country code or year, optional in
            an answer; None stands for an open part.
        loose: Further values, valid only beside a clearer fact: the "9" of "from 9 to 5" for 9:00.
        is_required: Whether an answer must state the fact, for a fact of the reference.
        is_exclusive: Whether the reference must state the fact, for a fact of the answer.

    Example:
        >>> Fact("number", "nine", frozenset([("number", None, 9)])).is_required
        True
    """

    kind: str
    text: str
    readings: frozenset[Reading]
    loose: frozenset[Reading] = frozenset()
    is_required: bool = True
    is_exclusive: bool = True


def covers(answer: Fact, required: Fact) -> bool:
    """Tell whether a fact of an answer states a required fact.

    Example:
        >>> covers(fact_of("1.234,56 €"), fact_of("€1,234.56"))
        True
    """
    return any(_is_stated(wanted, read) for wanted in required.readings for read in answer.readings | answer.loose)


def is_compatible(answer: Fact, known: Iterable[Fact]) -> bool:
    """Tell whether a fact of an answer can match a known fact.

    Example:
        >>> is_compatible(extract("It costs 5 euros.")[0], extract("5 euros or 7 euros"))
        True
    """
    return any(
        any(_can_be_equal(a, b) for a in answer.readings for b in fact.readings)
        or any(_can_stand_for(a, b) for a in answer.loose for b in fact.readings)
        # The other way round numbers alone: "9" for 9:00 or "2026" for a date, but not "9 pm" for an open 9:00.
        or any(_can_stand_for(b, a) for a in answer.readings for b in fact.loose if b[0] == "number")
        for fact in known
    )


def _is_stated(wanted: Reading, read: Reading) -> bool:
    if wanted[0] != read[0]:
        return False
    pairs = list(zip(wanted[1:], read[1:], strict=True))
    return all(a is None or a == b or (b is None and at == 0 and len(pairs) > 1) for at, (a, b) in enumerate(pairs))


def _can_stand_for(loose: Reading, clear: Reading) -> bool:
    """Compare a loose reading with a clear reading; numbers with different units are different values."""
    return loose[0] == clear[0] and clear[1] in (None, loose[1]) and loose[2:] == clear[2:]


def _can_be_equal(a: Reading, b: Reading) -> bool:
    return a[0] == b[0] and all(x is None or y is None or x == y for x, y in zip(a[1:], b[1:], strict=True))


class Scan:
    """A text under extraction: `take` blanks out the characters of a fact, so no second fact uses the characters.

    Example:
        >>> scan = Scan("It costs 5.", "en")
        >>> scan.take((9, 10), Fact("number", "5", frozenset([("number", None, 5)])))
        >>> [fact.text for fact in scan.facts]
        ['5']
    """

    def __init__(self, text: str, language: str):
        self.source, self.text, self.language = text, text, language
        self._found: list[tuple[int, Fact]] = []

    def take(self, span: tuple[int, int], *facts: Fact) -> None:
        """Add the facts at `span`, and blank out the characters."""
        start, end = span
        self._found += [(start, fact) for fact in facts]
        self.text = f"{self.text[:start]}{BLANK * (end - start)}{self.text[end:]}"

    def before(self, start: int) -> str:
        """Return the characters before a place, as many as any pattern looks back at."""
        return self.text[max(0, start - LOOK_BACK) : start]

    @property
    def facts(self) -> Sequence[Fact]:
        """The facts in the order of the text."""
        return [fact for _, fact in sorted(self._found, key=lambda each: each[0])]


LOOK_BACK = 40
# Stands for characters that belong to a fact: no letter, no digit, no space, no punctuation of a sentence.
BLANK = "\x00"
