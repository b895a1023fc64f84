"""Names and codes -> splits, by a stable hash: a name belongs to the same split in every version."""

import hashlib
from collections.abc import Callable
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]

HELD_OUT_ONE_IN = 8

# fmt: off
STARTS = (
    "ba", "bel", "bran", "cal", "cor", "dal", "del", "dor", "fen", "fil", "gal", "gor", "hal", "har", "il", "jor",
    "kal", "kel", "lan", "lor", "mar", "mel", "mir", "nar", "nel", "nor", "o", "pel", "per", "quin", "ral", "ren",
    "ros", "sal", "sel", "sor", "tal", "tam", "tor", "tur", "ul", "val", "ven", "vin", "wel", "wil", "yar", "zan",
    "zel",
)
MIDDLES = (
    "a", "be", "da", "do", "e", "ga", "go", "i", "ka", "ki", "la", "li", "ma", "mo", "na", "ni", "o", "ra", "ri", "sa",
    "ta", "ti", "va", "vi",
)
ENDS = (
    "bry", "con", "den", "der", "dis", "fa", "gan", "gris", "ka", "lan", "len", "lis", "lo", "min", "mond", "na", "nor",
    "ra", "rin", "ros", "sen", "ta", "tan", "thas", "vey", "wen", "zo",
)
ONSETS = (
    "b", "br", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pr", "qu", "r",
    "s", "sh", "sl", "st", "str", "t", "th", "tr", "v", "w", "wh", "y", "z",
)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oo", "ou", "y")
CODAS = (
    "b", "ck", "d", "ff", "g", "l", "ll", "m", "n", "nd", "ng", "p", "r", "rd", "rt", "s", "ss", "st", "t", "x", "y",
)
# fmt: on


def split_of(name: str) -> Split:
    """Return the split of a name or code, the same in every version.

    Example:
        >>> split_of("Belmar")
        'train'
    """
    digest = hashlib.sha256(name.lower().encode()).digest()
    return "held_out" if int.from_bytes(digest[:8]) % HELD_OUT_ONE_IN == 0 else "train"


def draw_name(rng: Random, split: Split) -> str:
    """Draw a pronounceable name of the split.

    Example:
        >>> draw_name(Random(0), "train")
        'Lormana'
    """

    def draw() -> str:
        if rng.random() < 0.25:
            syllables = (
                rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2)))
            )
            return "".join(syllables).capitalize()
        middle = rng.choice(MIDDLES) if rng.random() < 0.6 else ""
        return (rng.choice(STARTS) + middle + rng.choice(ENDS)).capitalize()

    return draw_of_split(draw, split)


def draw_of_split(draw: Callable[[], str], split: Split) -> str:
    """Draw until a name or code belongs to the split.

    Example:
        >>> rng = Random(0)
        >>> split_of(draw_of_split(lambda: f"AB-{rng.randrange(10_000)}", "held_out"))
        'held_out'
    """
    while split_of(name := draw()) != split:
        pass
    return name
