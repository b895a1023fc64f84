"""Text -> numbers, amounts and shares. An ambiguous separator keeps two readings: "1.234" is 1234 and 1.234."""

import re
from decimal import Decimal
from itertools import pairwise

from puna.evaluation.tasks.grading.extraction.fact import Fact, Reading, Scan
from puna.evaluation.tasks.grading.extraction.number_words import HUNDREDS
from puna.evaluation.tasks.grading.extraction.tables import (
    AFTER_ONLY,
    AMBIGUOUS_NUMBERS,
    CURRENCIES,
    LETTER,
    MAGNITUDES,
    NUMBER_WORDS,
    PERCENT,
    UNITS,
    any_of,
)

SIGN = r"(?:(?<![^\s(\[:])[-+])?"
DIGITS = r"\d{1,3}(?:[ ]\d{3})+(?:[.,]\d+)?(?![\d]|[.,]\d)|\d+(?:[.,']\d+)*|[.,]\d+"
NUMBER = re.compile(rf"{SIGN}(?<![A-Za-zÀ-ɏ\d])(?<!\d[.,'])(?<!\d/)(?:{DIGITS})(?!\d)")
FRACTION = re.compile(r"(?<![\w./-])\d{1,3}/\d{1,3}(?![\w/])")
BEFORE = re.compile(rf"(?:{any_of(CURRENCIES.keys() - AFTER_ONLY)})\s?$", re.IGNORECASE)
ALL_UNITS = PERCENT | CURRENCIES | UNITS
AFTER = re.compile(
    rf"(?:[\s-]?(?P<magnitude>{any_of(MAGNITUDES)}|k(?![{LETTER}])))?(?:\s?(?:de|d'|di)\s)?(?:[\s-]?(?P<unit>{any_of(ALL_UNITS)}))?",
    re.IGNORECASE,
)
# Letters right after a number, but for ordinals and plurals: "3rd", "1980s", "2x".
PART_OF_WORD = re.compile(rf"(?!(?:st|nd|rd|th|er|ère|ème|e|º|ª|s|x)(?![{LETTER}]))[A-Za-zÀ-ɏ]", re.IGNORECASE)
LIST_MARK = re.compile(r"^[ \t]*(?:\(?\d{1,2}[.)](?=\s)|#{1,6}\s)", re.MULTILINE)
HOURS_OF_A_DAY = 24


def _larger_numbers(language: str) -> re.Pattern[str]:
    """Return a pattern with the group "larger" for numbers of several words other than thousands ("two hundred")."""
    # Atomic groups keep "twenty two" whole; "per cent" is no hundred.
    word, power = rf"(?>{any_of(NUMBER_WORDS[language])})", rf"(?>{any_of(MAGNITUDES)})"
    hundred = rf"(?<!per )(?<!por )(?<!pour )(?>{any_of(HUNDREDS.split())})"
    gap, after = ("", "(?:)") if language == "th" else (r"[\s-]", r"(?:\s(?:and|und|et|y|e)\s|[\s-])")
    begin = "|".join(
        (
            rf"{hundred}{after}(?={word}|{power})",
            rf"{word}{gap}{hundred}",
            rf"{word}{gap}{power}{after}(?={word}|{hundred})",
            rf"{word}{gap}(?={word})",
        )
    )
    # A plain word is matched, too, so that no larger number begins within it.
    rest = rf"(?:{after}?(?:{word}|{hundred}|{power}))*"
    return re.compile(rf"(?P<larger>(?:{begin}){rest})|{word}", re.IGNORECASE)


NUMBER_WORD = {language: re.compile(any_of(words), re.IGNORECASE) for language, words in NUMBER_WORDS.items()}
LARGER_NUMBERS = {language: _larger_numbers(language) for language in NUMBER_WORDS}


def read_numbers(scan: Scan) -> None:
    """Take fractions, then numbers with units.

    Example:
        >>> scan = Scan("It costs 24.90 euros.", "en")
        >>> read_numbers(scan)
        >>> [fact.text for fact in scan.facts]
        ['24.90 euros']
    """
    for match in LIST_MARK.finditer(scan.text):
        scan.take(match.span())
    for match in FRACTION.finditer(scan.text):
        scan.take(match.span(), Fact("fraction", match[0], frozenset([("code", match[0])])))
    for match in NUMBER.finditer(scan.text):
        after = AFTER.match(scan.text, match.end())
        before = BEFORE.search(scan.before(match.start()))
        assert after is not None
        if not (after["unit"] or after["magnitude"]) and PART_OF_WORD.match(scan.text, match.end()):
            continue
        unit = after["unit"] or (before[0].strip() if before else "")
        start = match.start() - len(before[0]) if before else match.start()
        end = after.end() if after["unit"] else match.end()
        values = {value * _factor(after["magnitude"]) for value in read_number(match[0])}
        if after["magnitude"]:
            end = max(end, after.end("magnitude"))
        text = scan.text[start:end].strip()
        scan.take((start, end), _fact(text, values, unit) if values else _code(match[0]))


def read_number_words(scan: Scan) -> None:
    """Take number words of the text's language. "one" may be a pronoun, and is never required.

    Example:
        >>> scan = Scan("It takes three days.", "en")
        >>> read_number_words(scan)
        >>> [fact.text for fact in scan.facts]
        ['three days']
    """
    words = NUMBER_WORDS.get(scan.language, {})
    if not words:
        return
    for match in LARGER_NUMBERS[scan.language].finditer(scan.text):
        if match["larger"]:
            scan.take(match.span())  # "two hundred and five" is neither 2 nor 5.
    for match in NUMBER_WORD[scan.language].finditer(scan.text):
        value = words[match[0].casefold()]
        after = AFTER.match(scan.text, match.end())
        assert after is not None
        unit = after["unit"] or ""
        if scan.language == "th" and not unit:
            continue  # The word may be a piece of another: three (สาม) of can (สามารถ).
        value *= _factor(after["magnitude"])
        end = max(match.end(), after.end() if unit else after.end("magnitude"))
        is_clear = value > 1 and (unit != "" or match[0].casefold() not in AMBIGUOUS_NUMBERS)
        fact = _fact(scan.text[match.start() : end], {Decimal(value)}, unit)
        scan.take((match.start(), end), fact._replace(is_required=is_clear, is_exclusive=value > 1 and unit != ""))


def read_number(text: str) -> set[Decimal]:
    """Return all possible values of a number in digits; empty for digits without a numeric reading ("3.11.2").

    Example:
        >>> read_number("1.234,50")
        {Decimal('1234.50')}
    """
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-").replace(" ", "'")
    if digits[0] in ".,":
        return {sign * Decimal(f"0.{digits[1:]}")}
    groups, marks = re.split(r"[.,']", digits), re.findall(r"[.,']", digits)
    values: set[Decimal] = set()
    if _are_groups(groups, marks):
        values.add(Decimal("".join(groups)))
    decimals, mark = groups[-1], marks[-1] if marks else ""
    if decimals == "000" and values:
        return {sign * value for value in values}  # "12.000" is no 12.
    if mark in (".", ",") and mark not in marks[:-1] and _are_groups(groups[:-1], marks[:-1]):
        values.add(Decimal(f"{''.join(groups[:-1])}.{decimals}"))
    return {sign * value for value in values}


def _are_groups(groups: list[str], marks: list[str]) -> bool:
    """Tell whether digits are grouped by thousands, or by lakh and crore as in India."""
    if not marks:
        return True
    if any(a != b for a, b in pairwise(marks)) or groups[0].startswith("0") or len(groups[-1]) != 3:
        return False
    middle = {len(group) for group in groups[1:-1]}
    return (middle <= {3} and len(groups[0]) <= 3) or (middle == {2} and len(groups[0]) <= 2 and marks[0] == ",")


def _fact(text: str, values: set[Decimal], word: str) -> Fact:
    word = word.casefold()
    unit = PERCENT.get(word) or CURRENCIES.get(word) or UNITS.get(word)
    if unit == "%":
        return Fact("percentage", text, frozenset(("percentage", value) for value in values))
    readings: set[Reading] = {("number", unit, value) for value in values}
    hours = {value for value in values if value == int(value) and 0 < value <= HOURS_OF_A_DAY}
    loose: set[Reading] = set()
    if unit is None:
        loose = {("time", 60 * int(hour) % 1440) for hour in hours} | {
            ("time", 60 * int(hour) + 720) for hour in hours if hour < 12
        }
    elif unit == "hour" and word in ("h", "heure", "heures", "ore", "horas", "hora"):
        readings |= {("time", 60 * int(hour) % 1440) for hour in hours}
    return Fact("amount" if word in CURRENCIES else "number", text, frozenset(readings), frozenset(loose))


def _code(text: str) -> Fact:
    return Fact("number", text, frozenset([("code", text)]))


def _factor(word: str | None) -> int:
    return 1 if not word else 1000 if word.casefold() == "k" else MAGNITUDES[word.casefold()]
