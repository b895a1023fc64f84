"""Token ids of a row -> a copying drill: some tokens of the row, then the same tokens in shuffled pieces.

In `draw_drill` all tokens are distinct. `draw_run_drill` repeats keys with strings over a small alphabet, as in "0182
555 0182": the previous token does not determine the next one, only the whole string since the key does.

A small model copies unseen identifiers, names and prices only after induction heads have formed (Olsson et al., 2022,
arXiv 2209.11895). Ordinary text requires little copying, so induction heads form late; a drill requires nothing else.
"""

import random
from collections.abc import Sequence

from puna.formats.chat.format import Encoded

MIN_LEN, MAX_LEN = 4, 16
MIN_PIECE, MAX_PIECE = 3, 8
MIN_KEYS, MAX_KEYS = 2, 4
MIN_STRING, MAX_STRING = 3, 10
MAX_ALPHABET = 10
REPEAT = 0.4  # probability that a token of a string repeats the previous token


def draw_drill(ids: Sequence[int], source: random.Random) -> Encoded:
    """Return distinct tokens of `ids` in random order, then repeated; the mask covers the predictable tokens only."""
    first, *rest = ids
    known = sorted(set(rest))
    drawn = source.sample(known, min(len(known), source.randint(MIN_LEN, MAX_LEN)))
    piece_len = source.randint(MIN_PIECE, MAX_PIECE)
    pieces = [drawn[start : start + piece_len] for start in range(0, len(drawn), piece_len)]
    source.shuffle(pieces)
    mask = [False] * (1 + len(drawn))
    for piece in pieces:
        mask += [False] + [True] * (len(piece) - 1)
    return Encoded([first, *drawn, *(token for piece in pieces for token in piece)], mask)


def draw_run_drill(ids: Sequence[int], source: random.Random) -> Encoded:
    """Return keys with strings of few distinct tokens, then the same pairs in another order; the mask covers strings.

    Example:
        >>> drill = draw_run_drill([1, 10, 11, 12, 13, 14, 15], random.Random(0))
        >>> len(drill.ids) == len(drill.mask)
        True
    """
    first, *rest = ids
    known = sorted(set(rest))
    num_keys = min(source.randint(MIN_KEYS, MAX_KEYS), max(1, len(known) - 1))
    drawn = source.sample(known, min(len(known), num_keys + source.randint(1, MAX_ALPHABET)))
    keys, alphabet = drawn[:num_keys], drawn[num_keys:] or drawn
    strings = [_draw_string(alphabet, source) for _ in keys]
    pairs = list(zip(keys, strings, strict=True))
    tokens = [first, *(token for key, string in pairs for token in (key, *string))]
    mask = [False] * len(tokens)
    source.shuffle(pairs)
    for key, string in pairs:
        tokens += [key, *string]
        mask += [False] + [True] * len(string)
    return Encoded(tokens, mask)


def _draw_string(alphabet: Sequence[int], source: random.Random) -> list[int]:
    string = [source.choice(alphabet)]
    for _ in range(source.randint(MIN_STRING, MAX_STRING) - 1):
        string.append(string[-1] if source.random() < REPEAT else source.choice(alphabet))
    return string
