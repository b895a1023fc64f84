"""Text -> names of people, places and things, by their capital letters. A careful reading rather than a complete one.

A name is a run of capitalized words that does not begin a sentence. German writes every noun with a capital, so there
one word alone is no name; nor is it where the language is not known. Hindi and Thai have no capitals: there a name is
Latin letters with a capital amid another script. A word in capitals alone ("EST", "VAT") is no name.
"""

import re

from puna.evaluation.tasks.grading.extraction.fact import Fact, Scan
from puna.evaluation.tasks.grading.extraction.tables import LETTER

WORD = re.compile(rf"(?<![{LETTER}\d])[A-Za-zÀ-ɏ](?:[A-Za-zÀ-ɏ\d_'&-]*[A-Za-zÀ-ɏ\d])?(?![{LETTER}\d])")
OPENING = re.compile(r"(?:^|[.!?…:;\n|>*#\"“”„«»()\[\]–—•/-]|\x00\.?|['‘]|[.!?]['\"])\s*$")
NOT_NAMES = """
i i'm i'll i'd i've ok okay mr mrs ms dr yes no hi hello thanks thank please sorry sure great tv atm id pm am
sie ihr ihre ihren ihrem ihrer ihnen ihres uhr tel faq pdf url pin sms usa eu du dein
monsieur madame m mme señor señora sr sra signor signora usted lei la vous
"""
NO_NAMES = frozenset(NOT_NAMES.split())
PART_OF_WORD = re.compile(rf"[{LETTER}\d]")
MAX_WORDS = 5
MIN_LETTERS = 3


def read_names(scan: Scan) -> None:
    """Take names.

    Example:
        >>> scan = Scan("Please ask Anna Meier about it.", "en")
        >>> read_names(scan)
        >>> [fact.text for fact in scan.facts]
        ['Anna Meier']
    """
    words = list(WORD.finditer(scan.text))
    inner = [word[0] for word in words if not _begins(scan, word)]
    if len(inner) > 3 and sum(map(_is_capitalized, inner)) > 0.6 * len(inner) and scan.language not in ("hi", "th"):
        return  # A heading, or capitals throughout.
    run: list[re.Match[str]] = []
    for word in (*words, None):
        is_next = bool(run) and word is not None and scan.text[run[-1].end() : word.start()] == " "
        if run and not (is_next and word is not None and _is_capitalized(word[0])):
            _take_name(scan, run)
            run = []
        if word is not None and _is_capitalized(word[0]) and (run or not _begins(scan, word)):
            run.append(word)


def _take_name(scan: Scan, run: list[re.Match[str]]) -> None:
    start, end = run[0].start(), run[-1].end()
    if PART_OF_WORD.fullmatch(scan.source[start - 1 : start]) or PART_OF_WORD.match(scan.source, end):
        return  # Part of a longer word, the rest of which another fact has taken: "Ab0दो".
    text = scan.text[start:end]
    has_case = scan.language in ("en", "fr", "it", "pt", "es", "hi", "th")
    is_long_enough = len(run) > 1 or (has_case and len(text) >= MIN_LETTERS and not text.isupper())
    if is_long_enough and len(run) <= MAX_WORDS:
        name = " ".join(word[0] for word in run).casefold()
        scan.take((start, end), Fact("name", text, frozenset([("name", name)]), is_exclusive=False))


def _is_capitalized(word: str) -> bool:
    return word[0].isupper() and word.casefold().rstrip("'s") not in NO_NAMES and word.casefold() not in NO_NAMES


def _begins(scan: Scan, word: re.Match[str]) -> bool:
    return scan.language not in ("hi", "th") and OPENING.search(scan.before(word.start())) is not None
