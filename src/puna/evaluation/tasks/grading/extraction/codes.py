"""Text -> URLs, e-mail addresses, phone numbers and ids. Ids are compared letter by letter, without case."""

import re
from decimal import Decimal

from puna.evaluation.tasks.grading.extraction.fact import Fact, Reading, Scan
from puna.evaluation.tasks.grading.extraction.numbers import AFTER
from puna.evaluation.tasks.grading.extraction.tables import CURRENCIES, UNITS

URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'`|\x00]+", re.IGNORECASE)
DOMAINS = (
    "com|org|net|edu|gov|io|app|dev|info|eu|de|fr|it|es|pt|br|in|th|uk|at|ch|shop|store|online|site|cloud|tech|blog|news|"
    "nl|pl|se|dk|fi|cz|jp|cn|ca|au|nz|us|mx|ar|cl|biz|xyz|ai|tv|example|test"
)
# A host under another domain is one where a path follows.
HOST = re.compile(
    rf"(?<![\w@.-])(?:[a-z0-9-]+\.)*[a-z0-9-]{{3,}}\.(?:(?:{DOMAINS})(?:/[^\s<>\"'`|\x00]*)?(?![\w-])|[a-z]{{2,12}}/[\w%~][^\s<>\"'`|\x00]*)"
)
# Begins where a word begins, so that a long run of letters is read once; "_" around an address is Markdown.
EMAIL = re.compile(r"(?<![^\W_])(?<![.+-])[^\W_][\w.+-]*+@[\w-]++(?:\.[\w-]++)+")
PHONE = re.compile(r"(?<![\w.,:+/-])(?:\+|\()?\d(?:(?:\.| ?[/-] ?|\) ?| ?\(| )?\d){5,}(?![\w])")
GROUPED = re.compile(r"\(?\d{3}\)?[ .-]?\d{3}[.-]\d{4}|\d{3}-\d{4}")
PHONE_WORD = re.compile(
    r"(?:\btel|phone|\bcall|fon\b|téléphone|tel[eé]fono|telefone|fax|hotline|whatsapp|mobile|handy|फ़ोन|फोन|โทร)"
    r"[^\d]{0,20}$",
    re.IGNORECASE,
)
COUNTRY_CODES = ("351", "44", "49", "33", "39", "55", "91", "34", "66", "43", "41", "52", "1")
ID = re.compile(
    r"(?<![\w./-])#?(?=[\w/.#-]*\d)(?=[\w/.#-]*[A-Za-z#])[A-Za-z0-9_]+(?:[-_/.]+[A-Za-z0-9_]+)*(?!\w)"
    r"|(?<![\w.,/-])#\d+(?!\w)"
)
# ISO 13616 writes an IBAN in groups of four; people and machines leave the spaces out.
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
# Flights, trains, courses: LH 441 is LH441. Beside that the number is read, since "EU 27" is no code.
SPACED = re.compile(r"(?<![\w./-])([A-Z]{2,3}) (\d{2,4})(?![\w./:-]|[.,:]\d| \d)")
# "30-day", "5kg", "3rd", "10am", "90s": numbers with a word, no ids.
NUMBER_WITH_WORD = re.compile(
    r"\d+(?:[.,]\d+)*(?:-[a-z]{2,}(?:-[a-z]+)*|st|nd|rd|th|er|ère|ème|e|s|x|k)", re.IGNORECASE
)
DIGIT_GROUPS = re.compile(r"(?<![\w.,:/-])\d+(?:-\d+){2,}(?![\w-])|(?<![\w.,:/+-])(?<!\d )0\d+(?![\w.,:-]\d|\w)")
MIN_DIGITS = 7


def read_addresses(scan: Scan) -> None:
    """Take URLs and e-mail addresses.

    Example:
        >>> scan = Scan("Write to help@shop.example.", "en")
        >>> read_addresses(scan)
        >>> [fact.text for fact in scan.facts]
        ['help@shop.example']
    """
    for pattern, kind in ((EMAIL, "e-mail"), (URL, "URL"), (HOST, "URL")):
        for match in pattern.finditer(scan.text):
            text = match[0].rstrip(".,;:!?*_'\"»”’)]}" if "(" not in match[0] else ".,;:!?*_'\"»”’]}")
            value = text.casefold() if kind == "e-mail" else _normalize_url(text)
            scan.take((match.start(), match.start() + len(text)), Fact(kind, text, frozenset([(kind, value)])))


def read_phones(scan: Scan) -> None:
    """Take phone numbers: an international prefix, a leading 0, groups of digits, or a word for phone before them.

    Example:
        >>> scan = Scan("Call 0555 123 4567.", "en")
        >>> read_phones(scan)
        >>> [fact.text for fact in scan.facts]
        ['0555 123 4567']
    """
    for match in PHONE.finditer(scan.text):
        digits = "".join(char for char in match[0] if char.isdigit())
        is_phone = (
            match[0].startswith(("+", "0", "(0"))
            or GROUPED.fullmatch(match[0])
            or PHONE_WORD.search(scan.before(match.start()))
        )
        if is_phone and MIN_DIGITS <= len(digits) <= 15:
            readings: set[Reading] = {_read_phone(match[0])}
            if not match[0].startswith(("+", "(", "00")) and digits == match[0]:
                readings.add(("code", digits))
            scan.take(match.span(), Fact("phone number", match[0], frozenset(readings)))


def read_ids(scan: Scan) -> None:
    """Take ids: letters with digits, digits after "#", and digits in three groups or with a leading 0.

    Example:
        >>> scan = Scan("Your order is AB-48213.", "en")
        >>> read_ids(scan)
        >>> [fact.text for fact in scan.facts]
        ['AB-48213']
    """
    for match in IBAN.finditer(scan.text):
        scan.take(match.span(), Fact("id", match[0], frozenset([("code", match[0].casefold().replace(" ", ""))])))
    for match in SPACED.finditer(scan.text):
        after = AFTER.match(scan.text, match.end())
        if match[1].casefold() not in CURRENCIES and not (after and after["unit"]):
            readings = {("code", f"{match[1]}{match[2]}".casefold()), ("number", None, Decimal(match[2]))}
            scan.take(match.span(), Fact("id", match[0], frozenset(readings)))
    for match in ID.finditer(scan.text):
        is_number = NUMBER_WITH_WORD.fullmatch(match[0]) or _is_number_with_unit(match[0])
        if not is_number:
            _take_code(scan, match)
    for match in DIGIT_GROUPS.finditer(scan.text):
        _take_code(scan, match)


def _take_code(scan: Scan, match: re.Match[str]) -> None:
    code = match[0].casefold().removeprefix("#")
    digits = code.replace("-", "")
    phone = [("phone", None, digits.lstrip("0"))] if digits.isdigit() and len(digits) >= MIN_DIGITS else []
    readings: set[Reading] = {("code", code)}
    if code.isdigit() and not code.startswith("0"):
        readings.add(("number", None, Decimal(code)))
    scan.take(match.span(), Fact("id", match[0], frozenset(readings), loose=frozenset(phone)))


def _is_number_with_unit(text: str) -> bool:
    number = re.match(r"\d+(?:[.,]\d+)*", text)
    return number is not None and text[number.end() :].casefold() in {*UNITS, "am", "pm", "eur", "usd", "thb", "inr"}


def _normalize_url(text: str) -> str:
    text = re.sub(r"^https?://", "", text, flags=re.IGNORECASE)
    host, slash, path = text.partition("/")
    return f"{host.casefold().removeprefix('www.')}{slash}{path}".rstrip("/")


def _read_phone(text: str) -> tuple[str, str | None, str]:
    """Return ("phone", country code or None, national number without the leading 0)."""
    text = text.replace("(0)", "")
    digits = "".join(char for char in text if char.isdigit())
    if text.startswith(("+", "00")):
        digits = digits.lstrip("0")
        code = next((code for code in COUNTRY_CODES if digits.startswith(code)), digits[:2])
        return "phone", code, digits[len(code) :].lstrip("0")
    return "phone", None, digits.lstrip("0")
