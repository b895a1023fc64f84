"""Text -> dates and weekdays. An ambiguous order of day and month keeps two readings."""

import re
from collections.abc import Sequence

from puna.evaluation.tasks.grading.extraction.fact import Fact, Reading, Scan
from puna.evaluation.tasks.grading.extraction.tables import (
    AMBIGUOUS_MONTHS,
    LETTER,
    MONTHS,
    SHORT_WEEKDAYS,
    WEEKDAYS,
    any_of,
)

DAY = r"(?<![\d.,:/-])(?P<day>\d{1,2})(?:st|nd|rd|th|er|\.|º|°)?"
MONTH = rf"(?P<month>{any_of(MONTHS)})\.?"
YEAR = r"(?P<year>\d{4})(?![\d.,]*\d)"
JOIN = r"\s*(?:of|de|do|del|d'|,|พ\.ศ\.)?\s*"
RANGE = r"\s*(?:-|–|—|to|till|until|and|through|bis|und|à|au|et|a|al|e|às|até|y|से|और|ถึง|และ)\s*"
NO_NUMBER = r"(?![\d:]|[.,]\d)"

ISO = re.compile(r"(?<![\w-])(?P<year>\d{4})([-/])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?![\w-])")
NUMERIC = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)")
DAY_MONTH = re.compile(
    rf"(?:(?<![\d.,:/-])(?P<first>\d{{1,2}})(?:st|nd|rd|th|\.)?{RANGE})?{DAY}{JOIN}{MONTH}(?:{JOIN}{YEAR})?",
    re.IGNORECASE,
)
MONTH_DAY = re.compile(
    rf"{MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?{NO_NUMBER}(?:{RANGE}(?P<last>\d{{1,2}})(?:st|nd|rd|th)?{NO_NUMBER})?"
    rf"(?:,?\s+{YEAR})?",
    re.IGNORECASE,
)
MONTH_YEAR = re.compile(rf"{MONTH}{JOIN}{YEAR}", re.IGNORECASE)
SHORT_DATE = re.compile(r"\b(?:am|ab|bis|vom|zum|den|dem|der) (\d{1,2})\.(\d{1,2})\.(?!\d)", re.IGNORECASE)
CLEAR_MONTH = re.compile(any_of(MONTHS.keys() - AMBIGUOUS_MONTHS), re.IGNORECASE)
SAID_MONTH = re.compile(rf"(?<![{LETTER}])(?:in|since|until|by|early|late|en|em|im|seit)\s+{MONTH}", re.IGNORECASE)
DAYS = re.compile(any_of(WEEKDAYS), re.IGNORECASE)
SHORT_DAYS = re.compile(any_of(SHORT_WEEKDAYS))
SHORT_NAMES = "|".join(SHORT_WEEKDAYS)
SHORT_RANGE = re.compile(rf"(?<![\w])({SHORT_NAMES})\.?\s*[-–—]\s*({SHORT_NAMES})(?!\w)")
# Short forms that are words of no other kind, in English.
ENGLISH_DAYS = {"Mon", "Tues", "Tue", "Wed", "Thurs", "Thur", "Thu", "Fri"}
BUDDHIST_YEARS = range(2400, 2700)
BUDDHIST_ERA = 543


def read_dates(scan: Scan) -> None:
    """Take dates: first numeric dates, then months with a day or a year, then months alone.

    Example:
        >>> scan = Scan("It comes on 3 March 2026.", "en")
        >>> read_dates(scan)
        >>> [fact.text for fact in scan.facts]
        ['3 March 2026']
    """
    for match in ISO.finditer(scan.text):
        _take_date(scan, match, [(_year(match["year"]), int(match["month"]), int(match["day"]))])
    for match in NUMERIC.finditer(scan.text):
        a, b, year = int(match[1]), int(match[3]), _year(match[4])
        orders = [(year, b, a)] if match[2] == "." or scan.language not in ("en", "") else [(year, b, a), (year, a, b)]
        _take_date(scan, match, [each for each in orders if each[1] <= 12] or [(year, a, b)])
    for pattern in (DAY_MONTH, MONTH_DAY):
        for match in pattern.finditer(scan.text):
            groups = match.groupdict()
            year, month = _year(match["year"]) if match["year"] else None, _month(match["month"])
            days = [int(day) for day in (groups.get("first"), match["day"], groups.get("last")) if day]
            _take_date(scan, match, *([(year, month, day)] for day in days))
    for match in MONTH_YEAR.finditer(scan.text):
        _take_date(scan, match, [(_year(match["year"]), _month(match["month"]), None)])
    for match in SHORT_DATE.finditer(scan.text):
        _take_date(scan, match, [(None, int(match[2]), int(match[1]))])
    for match in SAID_MONTH.finditer(scan.text):
        _take_date(scan, match, [(None, _month(match["month"]), None)])
    for match in CLEAR_MONTH.finditer(scan.text):
        _take_date(scan, match, [(None, MONTHS[match[0].casefold()], None)])


def read_weekdays(scan: Scan) -> None:
    """Take weekdays; days inside a range are optional facts.

    Example:
        >>> scan = Scan("We are closed on Sunday.", "en")
        >>> read_weekdays(scan)
        >>> [fact.text for fact in scan.facts]
        ['Sunday']
    """
    days: list[tuple[int, int, int]] = []
    for match in SHORT_RANGE.finditer(scan.text):
        days += [(*match.span(group), SHORT_WEEKDAYS[match[group]]) for group in (1, 2)]
    for match in DAYS.finditer(scan.text):
        days.append((*match.span(), WEEKDAYS[match[0].casefold()]))
    taken = {start for start, _, _ in days}
    for match in SHORT_DAYS.finditer(scan.text):
        if match.start() not in taken and match[0] in ENGLISH_DAYS:
            days.append((*match.span(), SHORT_WEEKDAYS[match[0]]))
    days.sort()
    text = scan.text
    for at, (start, end, day) in enumerate(days):
        facts = [Fact("weekday", text[start:end], frozenset([("weekday", day)]))]
        if at and re.fullmatch(rf"\.?{RANGE}", text[days[at - 1][1] : start], re.IGNORECASE):
            between = range(days[at - 1][2] + 1, day) if days[at - 1][2] < day else ()
            facts += [
                Fact("weekday", text[start:end], frozenset([("weekday", each)]), is_required=False) for each in between
            ]
        scan.take((start, end), *facts)


def _take_date(scan: Scan, match: re.Match[str], *dates: Sequence[tuple[int | None, int, int | None]]) -> None:
    """Take a fact per date, with a single reading or several."""
    if not all(1 <= month <= 12 and (day is None or 1 <= day <= 31) for orders in dates for _, month, day in orders):
        return
    facts: list[Fact] = []
    for orders in dates:
        readings: set[Reading] = {("date", *order) for order in orders}
        parts = {part for year, _, day in orders for part in (year, day) if part is not None}
        facts.append(Fact("date", match[0].strip(), frozenset(readings), frozenset(("number", None, n) for n in parts)))
    scan.take(match.span(), *facts)


def _month(word: str) -> int:
    return MONTHS.get(word.casefold()) or MONTHS[word.casefold().rstrip(".")]


def _year(text: str) -> int:
    year = int(text) + (2000 if len(text) == 2 else 0)
    return year - BUDDHIST_ERA if year in BUDDHIST_YEARS else year
