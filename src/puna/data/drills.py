"""An encoded row -> a copying drill: some of the row's tokens, then the same tokens in shuffled pieces.

A small model learns to copy what it never saw (identifiers, names, prices) only once it has formed induction heads
(Olsson et al., 2022, arXiv 2209.11895). Text teaches that late, because little of it has to be copied; a drill is
nothing else.
"""

import random
from collections.abc import Sequence

from puna.chat.format import Encoded

MIN_LEN, MAX_LEN = 4, 16
MIN_PIECE, MAX_PIECE = 3, 8


def draw_drill(ids: Sequence[int], source: random.Random) -> Encoded:
    """Return different tokens of `ids` in random order, and their repetition; only what can be known is trained."""
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
