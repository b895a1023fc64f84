"""Text -> times of day, in minutes after midnight. A time without am or pm is read on the 24-hour clock.

An English or Hindi answer may leave out am and pm: "5:00" is 17:00 as well, where the reference says 17:00.
"""

import re

from puna.evaluation.tasks.grading.extraction.dates import RANGE
from puna.evaluation.tasks.grading.extraction.fact import Fact, Reading, Scan
from puna.evaluation.tasks.grading.extraction.tables import EVENING, LETTER, MORNING, any_of

AM, PM = any_of(MORNING.split("|")), any_of(EVENING.split("|"))
HALF = rf"(?:\s*(?:(?P<am>{AM})|(?P<pm>{PM})))"
BEFORE = rf"(?:(?P<am0>{AM})|(?P<pm0>{PM}))?\s*(?:में|को|के|เวลา|โมง)?\s*"
MARK = rf"(?:\s*(?:uhr|o'clock|hrs|h(?![{LETTER}])|น\.|นาฬิกา|बजे|โมง))"
HOUR = r"(?<![\d.,:/-])(?P<hour>\d{1,2})"
COLON = re.compile(rf"{BEFORE}{HOUR}:(?P<minute>\d\d)(?::\d\d)?(?![\d:])(?:{MARK})?{HALF}?", re.IGNORECASE)
CLOCK = rf"{BEFORE}{HOUR}(?:[.:](?P<minute>\d\d))?"
MARKED = re.compile(rf"{CLOCK}{MARK}{HALF}?(?![{LETTER}])", re.IGNORECASE)
HALVED = re.compile(rf"{CLOCK}{HALF}(?![{LETTER}])", re.IGNORECASE)
WITH_H = re.compile(rf"{HOUR}\s?h\s?(?P<minute>\d\d)(?![\d\w]){HALF}?", re.IGNORECASE)
AFTER_MARK = re.compile(
    rf"(?:à|a las|às|das|alle|dalle|desde las|hasta las|até às|ore)\s+{HOUR}\.(?P<minute>\d\d)(?!\d)"
)
SPAN = re.compile(r"(?<![\d.,:/-])(\d\d)\.(\d\d)\s*[-–]\s*(\d\d)\.(\d\d)(?![\d.,]\d|\d)")
START_OF_RANGE = re.compile(rf"(?<![\d.,:/-])(?P<hour>\d{{1,2}})[.:](?P<minute>\d\d){RANGE}$", re.IGNORECASE)
THAI_NIGHT = re.compile(r"(?<!\d)(?P<hour>[1-5])\s*ทุ่ม")
NAMED = re.compile(
    any_of(["noon", "midday", "midnight", "mitternacht", "minuit", "mezzanotte", "medianoche", "เที่ยงคืน"]), re.IGNORECASE
)
MIDDAY = {"noon", "midday"}
DAY = 24 * 60


def read_times(scan: Scan) -> None:
    """Take all times of day from the text.

    Example:
        >>> scan = Scan("We open at 9:30 am.", "en")
        >>> read_times(scan)
        >>> [fact.text for fact in scan.facts]
        ['9:30 am']
    """
    for match in SPAN.finditer(scan.text):
        ends = [(int(match[1]), int(match[2])), (int(match[3]), int(match[4]))]
        if all(hour <= 24 and minute < 60 for hour, minute in ends):
            scan.take(match.span(), *(_fact(match[0], hour, minute) for hour, minute in ends))
    for pattern in (COLON, WITH_H, AFTER_MARK, MARKED, HALVED):
        for match in pattern.finditer(scan.text):
            _take_time(scan, match)
    for match in THAI_NIGHT.finditer(scan.text):
        scan.take(match.span(), _fact(match[0], int(match["hour"]) + 18, 0))
    for match in NAMED.finditer(scan.text):
        minutes = DAY // 2 if match[0].casefold() in MIDDAY else 0
        scan.take(match.span(), Fact("time", match[0], frozenset([("time", minutes)]), frozenset([("time", DAY)])))


def _take_time(scan: Scan, match: re.Match[str]) -> None:
    groups = match.groupdict()
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if hour > 24 or minute > 59:
        return
    is_am = bool(groups.get("am") or groups.get("am0"))
    is_pm = bool(groups.get("pm") or groups.get("pm0"))
    is_open = not (is_am or is_pm) and scan.language in ("en", "hi", "") and not match["hour"].startswith("0")
    before = scan.before(match.start())
    begin = START_OF_RANGE.search(before)
    fact = _fact(match[0].strip(), _on_24(hour, is_am=is_am, is_pm=is_pm), minute, is_open=is_open)
    if match[0].endswith("h"):  # "9 h" is a duration as well.
        fact = fact._replace(readings=fact.readings | {("number", "hour", hour)})
    scan.take(match.span(), fact)
    if begin and int(begin["hour"]) <= 24 and int(begin["minute"]) < 60:
        start = match.start() - len(before) + begin.start()
        scan.take(
            (start, match.start()), _fact(begin[0].strip(), int(begin["hour"]), int(begin["minute"]), is_open=is_open)
        )


def _on_24(hour: int, *, is_am: bool, is_pm: bool) -> int:
    if is_pm and hour < 12:
        return hour + 12
    return 0 if is_am and hour == 12 else hour


def _fact(text: str, hour: int, minute: int, *, is_open: bool = False) -> Fact:
    """Return a time; the number of a full hour reads as the time, too, as in "from 9 to 5"."""
    minutes = (60 * hour + minute) % DAY
    loose: set[Reading] = {("time", minutes + DAY // 2)} if is_open and 1 <= hour < 12 else set()
    if minute == 0:
        loose |= {("number", "o'clock", hour), ("number", "o'clock", hour % 12 or 12)}
    return Fact("time", text, frozenset([("time", minutes)]), frozenset(loose))
