"""Grade `contains`: the answer holds all required strings and no forbidden string."""

import re
from collections.abc import Iterator
from decimal import Decimal

from puna.evaluation.tasks.grading.extraction.extract import normalize
from puna.evaluation.tasks.grading.extraction.numbers import BEFORE, FRACTION, read_number
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message

SAME = str.maketrans(
    {
        **dict.fromkeys("–—―‒", "-"),
        **dict.fromkeys("“”„‟«»‹›″", '"'),
        **dict.fromkeys("`´", "'"),
        "…": "...",
        "⁄": "/",
        "٪": "%",
    }
)
CURRENCY = "$€£¥₹฿"
INNER_SPACE = re.compile("(?<=[«‹]) | (?=[»›])")  # French puts spaces inside of its quotes.
SPACED_UNIT = re.compile(rf"(?<=\d) (?=[%‰°{CURRENCY}])|(?<=[{CURRENCY}]) (?=\d)")
# Digits with their grouping and decimals; not a piece of a time, a version, a power or 5e3. "Rs.5" is 5.
DIGITS = re.compile(
    r"(?<!\d)(?<!\d[.,':])(?:(?:\d{1,3}(?: \d{3})+(?!\d)|\d+(?:[,.']\d+)*)(?:[.,]\d+)?|(?<![a-z])[.,]\d+)"
    r"(?![\d²³¹⁰⁴-⁹¼-¾⅐-⅞]|[.,:']\d|e[-+]?\d)"
)
# A hyphen between words or in a range is no sign: K-4471, 7-9, 5 €-9 €.
SIGN = re.compile(
    rf"(?:(?<![\w)\]%°])(?<!\d[{CURRENCY}])(?<!\d [{CURRENCY}])-[{CURRENCY}]?"
    r"|(?<!\d )\b(?:minus|negative|moins|meno|menos) )$"
)
NUMBER = re.compile(r"[-+]?(?:\d[\d.,' ]*\d|\d|[.,]\d+)")
LATIN = re.compile("[a-zß-ɏ]$")
LOOK_BACK = 20


def contains(question: Question, message: Message) -> Grade:
    """Require every string of `contains` and forbid every string of `distractors`.

    Case, white space, and the shapes of quotes, dashes and digits do not matter. A number matches by value, with
    sign and grouping: 5 is neither in "-5" nor in "4.5", 10 not in "10 000", and 1000 is "1,000". A number with a
    leading zero is an id.

    Example:
        >>> question = Question("1", conversation, {"contains": ["24.90"], "distractors": ["4.90"]})
        >>> contains(question, Message("assistant", "It costs 24.90 euros.")).score
        1.0
    """
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    missing = [text for text in question.expected["contains"] if not _stands_in(text, message.content)]
    wrong = [text for text in question.expected.get("distractors", []) if _stands_in(text, message.content)]
    complaints = [f"lacks {text!r}" for text in missing] + [f"has {text!r}" for text in wrong]
    return Grade(0.0, ", ".join(complaints)) if complaints else Grade(1.0, "has all that was expected")


def fold(text: str) -> str:
    """Return a text with plain quotes, dashes, digits and spaces, and without a space between a number and %, ° or €.

    Example:
        >>> fold("“I don’t  know…”")
        '"I don\\'t know..."'
    """
    plain = INNER_SPACE.sub("", " ".join(normalize(text).split()))
    return SPACED_UNIT.sub("", plain.translate(SAME))


def _stands_in(text: str, answer: str) -> bool:
    needle, answer = fold(text).casefold(), f" {fold(answer).casefold()} "
    values = _values(needle)
    if values:
        # "1,500" is rather 1500 than 1.5, unless the answer leaves both open, too.
        return any(max(values, key=abs) in stated or values == stated for stated in _numbers(answer))
    before = r"(?<!\d)(?<!\d[.,:'])" if needle[:1].isdecimal() else ""
    after = r"(?!\d|[.,:']\d)" if needle[-1:].isdecimal() else ""
    after += r"(?! \d{3}(?!\d))" if re.search(r"(?<![\d:.,'/-])\d{1,3}$", needle) else ""
    matches = re.finditer(before + re.escape(needle) + after, answer)
    is_amount = re.match(rf"[{CURRENCY}]?\d", needle)
    return any(not (is_amount and _is_led(answer, match.start(), needle)) for match in matches)


def _is_led(answer: str, start: int, needle: str) -> bool:
    """Tell whether a sign or a group of thousands precedes the number at `start`."""
    lead = answer[max(0, start - LOOK_BACK) : start]
    is_group = re.match(r"\d{3}(?![\d:/-])", needle) and re.search(r"(?<![\d:.,'/-])\d{1,3} $", lead)
    return bool(is_group) or SIGN.search(lead) is not None


def _values(needle: str) -> set[Decimal]:
    """Return the possible values of a number; empty for a text beyond a single number, and for ids such as 007."""
    is_number = NUMBER.fullmatch(needle) and DIGITS.fullmatch(needle.lstrip("-+"))
    return read_number(needle) if is_number and not re.match(r"[-+]?0\d", needle) else set()


def _numbers(answer: str) -> Iterator[set[Decimal]]:
    """Yield the possible values of every number in an answer."""
    text = FRACTION.sub(lambda match: "/" * len(match[0]), answer)
    for match in DIGITS.finditer(text):
        lead = text[max(0, match.start() - LOOK_BACK) : match.start()]
        is_name = LATIN.search(lead) and not BEFORE.search(lead)  # A5, but neither EUR5 nor 第5.
        if not is_name and not re.match(r"0\d", match[0]):
            yield {-value if SIGN.search(lead) else value for value in read_number(match[0])}
