"""A random source -> values in people's spellings: identifiers, phone numbers, amounts, dates, addresses.

Runs of equal digits ("0182", "7777", "1001001") occur on purpose: small models learn last to copy such runs.
"""

from collections.abc import Callable
from random import Random

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DIGITS = "0123456789"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWER = UPPER.lower()
MIN_IDENTIFIER, MAX_IDENTIFIER = 3, 14


def draw_digits(rng: Random, count: int, *, leading_zero: bool = True) -> str:
    """Draw digits: two draws in five have runs of equal digits, one in ten is a single run.

    Example:
        >>> draw_digits(Random(0), 7)
        '6604876'
    """
    first = rng.choice(DIGITS if leading_zero else DIGITS[1:])
    style = rng.random()
    digits = first
    while len(digits) < count:
        repeats = style < 0.1 or (style < 0.4 and rng.random() < 0.55)
        digits += digits[-1] if repeats else rng.choice(digits + "0" if style < 0.2 else DIGITS)
    return digits


def draw_identifier(rng: Random) -> str:
    """Draw an identifier of 3 to 14 characters with at least one digit: "AB-48213", "INV/2024/0071", "x7Q-99-b".

    Example:
        >>> draw_identifier(Random(0))
        '64759382'
    """
    while True:
        text = _common_identifier(rng) if rng.random() < 0.5 else _free_identifier(rng)
        if MIN_IDENTIFIER <= len(text) <= MAX_IDENTIFIER and any(letter in DIGITS for letter in text):
            return text


def _common_identifier(rng: Random) -> str:
    letters = "".join(rng.choices(UPPER, k=rng.choice((1, 2, 2, 3))))
    separator = rng.choice(("-", "-", "-", "/", ""))
    digits = draw_digits(rng, rng.randrange(3, 8))
    if rng.random() < 0.2:
        return f"{letters}{separator}20{draw_digits(rng, 2)}{separator}{digits[:5]}"
    return f"{letters}{separator}{digits}"


def _free_identifier(rng: Random) -> str:
    separator = rng.choice(("-", "/", "_", "."))
    return separator.join(_segment(rng) for _ in range(rng.choice((1, 2, 2, 3))))


def _segment(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return draw_digits(rng, rng.randrange(1, 9))
    letters = UPPER if kind < 0.65 else LOWER if kind < 0.75 else UPPER + LOWER + DIGITS
    return "".join(rng.choices(letters, k=rng.randrange(1, 6)))


def draw_phone(rng: Random) -> str:
    """Draw a phone number; six in ten have 555, the exchange of invented numbers, in the middle.

    Example:
        >>> draw_phone(Random(0))
        '660-555-8475'
    """
    area, middle, last = draw_digits(rng, 3), "555" if rng.random() < 0.6 else draw_digits(rng, 3), draw_digits(rng, 4)
    form = rng.choice(
        (
            "0{a} {m} {e}",
            "0{a} {m} {e}",
            "0{a} {m} {e}",
            "({a}) {m}-{e}",
            "{a}-{m}-{e}",
            "+{c} {a} {m} {e}",
            "0{a}/{m}{e}",
        )
    )
    return form.format(a=area, m=middle, e=last, c=rng.randrange(20, 99))


def draw_price(rng: Random, low: int, high: int) -> str:
    """Draw an amount of money without currency: "24.90", "77.70", "120".

    Example:
        >>> draw_price(Random(0), 3, 900)
        '760.95'
    """
    whole = draw_digits(rng, len(str(rng.randrange(low, high))), leading_zero=False)
    return f"{whole}.{rng.choice(('00', '50', '90', '95', '99', draw_digits(rng, 2)))}" if rng.random() < 0.7 else whole


def draw_amount_of_money(rng: Random) -> str:
    """Draw an amount of money with a currency.

    Example:
        >>> draw_amount_of_money(Random(0))
        '$7,604'
    """
    amount = draw_price(rng, 3, 2000)
    whole, point, cents = amount.partition(".")
    grouped = f"{int(whole):,}" + point + cents
    return rng.choice(("{} euros", "€{}", "${}", "${}", "£{}", "{} francs")).format(grouped)


def draw_date(rng: Random) -> str:
    """Draw a date in a common spelling.

    Example:
        >>> draw_date(Random(0))
        '28 July 2016'
    """
    day, month, year = rng.randrange(1, 29), rng.choice(MONTHS), rng.randrange(1990, 2031)
    number = MONTHS.index(month) + 1
    forms = (f"{day} {month} {year}", f"{month} {day}, {year}", f"{day} {month}", f"{month} {day}")
    return rng.choice((*forms, f"{year}-{number:02}-{day:02}", f"{day:02}/{number:02}/{year}"))


def draw_time(rng: Random) -> str:
    """Draw a time of the day.

    Example:
        >>> draw_time(Random(0))
        '7:45 am'
    """
    minutes = rng.choice(("00", "15", "30", "45"))
    twelve = f"{rng.randrange(1, 13)}:{minutes} {rng.choice(('am', 'pm'))}"
    return rng.choice(
        (f"{rng.randrange(7, 22)}:{minutes}", twelve, f"{rng.randrange(1, 13)} {rng.choice(('am', 'pm'))}")
    )


def draw_duration(rng: Random) -> str:
    """Draw a length of time.

    Example:
        >>> draw_duration(Random(0))
        '50 minutes'
    """
    unit = rng.choice(("days", "days", "working days", "weeks", "months", "hours", "minutes", "years"))
    return f"{rng.randrange(2, 60)} {unit}"


def draw_web_address(rng: Random, name: str) -> str:
    """Draw an address of an invented site.

    Example:
        >>> draw_web_address(Random(0), "Belmar")
        'www.belmar.example/help'
    """
    host = f"{name.lower()}.example"
    path = rng.choice(("", "/forms", "/help", "/rules", f"/{draw_digits(rng, 3)}", "/news", "/apply"))
    return rng.choice(("https://{}", "https://www.{}", "www.{}")).format(host + path)


def draw_email(rng: Random, name: str) -> str:
    """Draw an e-mail address at an invented host.

    Example:
        >>> draw_email(Random(0), "Belmar")
        'service@belmar.example'
    """
    box = rng.choice(("help", "hello", "info", "post", "office", "team", "service", "contact"))
    return f"{box}@{name.lower()}.example"


def draw_other(draw: Callable[[], str], taken: list[str]) -> str:
    """Draw a value that neither contains nor is part of a taken value.

    Example:
        >>> rng = Random(0)
        >>> draw_other(lambda: draw_digits(rng, 3), taken=["12"])
        '660'
    """
    while True:
        value = draw()
        if not any(value in other or other in value for other in taken):
            return value
