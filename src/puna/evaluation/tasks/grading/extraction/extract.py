"""Text -> its facts, in the order of the text."""

import re
import unicodedata
from collections.abc import Sequence

from puna.evaluation.tasks.grading.extraction.codes import read_addresses, read_ids, read_phones
from puna.evaluation.tasks.grading.extraction.dates import read_dates, read_weekdays
from puna.evaluation.tasks.grading.extraction.fact import Fact, Scan
from puna.evaluation.tasks.grading.extraction.names import read_names
from puna.evaluation.tasks.grading.extraction.numbers import read_number_words, read_numbers
from puna.evaluation.tasks.grading.extraction.tables import guess_language
from puna.evaluation.tasks.grading.extraction.times import read_times

# Spellings of one character.
SAME = str.maketrans(
    {
        **dict.fromkeys("’‘‛ʼ′＇", "'"),
        **dict.fromkeys("−‑‐﹣", "-"),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # Full-width forms of ASCII.
        **dict.fromkeys(
            "\u00ad\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069", ""
        ),
        "٫": ".",
        "٬": ",",
    }
)


# AB–48213; a dash between words or numbers is one of a range.
DASH_IN_ID = re.compile(r"(?<=[A-Za-z])[–—](?=\d)|(?<=\d)[–—](?=[A-Za-z]+[-–—]?\d)")


def normalize(text: str) -> str:
    """Return a text in NFC with ASCII digits, plain spaces, apostrophes and minus signs; lines are kept.

    Example:
        >>> normalize("nine o’clock")
        "nine o'clock"
    """
    text = unicodedata.normalize("NFC", text).translate(SAME)
    text = DASH_IN_ID.sub("-", text)
    return "".join(map(_plain, text))


def extract(text: str, language: str = "") -> Sequence[Fact]:
    """Return the facts of a text.

    Args:
        text: Any text.
        language: ISO 639-1 code of the text's language; "" guesses among the eight.

    Example:
        >>> [fact.text for fact in extract("Order AB-48213 costs 24.90 € and comes on 3 March.")]
        ['AB-48213', '24.90 €', '3 March']
    """
    text = normalize(text)
    scan = Scan(text, language or guess_language(text))
    # Each reader blanks out what it takes: the most particular forms come first.
    for read in (read_addresses, read_dates, read_times, read_phones, read_ids, read_weekdays):
        read(scan)
    read_numbers(scan)
    read_number_words(scan)
    read_names(scan)
    return scan.facts


def _plain(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    return " " if char.isspace() and char not in "\n" else char
