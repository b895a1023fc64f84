"""Words of many rows -> pairs of rows with nearly equal sets of word 3-grams, in time linear in the words.

MinHash with banding (Broder, 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4) proposes
pairs; the Jaccard similarity of the 3-grams decides. A row is compared with the first row of every bucket.

Shapes: N rows, W words of some rows, H hash functions.
"""

from collections.abc import Iterator, Sequence

import numpy as np

GRAM = 3
# Pairs at the threshold of 0.8 are proposed with a probability of 1 - (1 - 0.8^4)^16 = 0.9998.
BANDS, ROWS_IN_BAND = 16, 4
THRESHOLD = 0.8
# Two signatures of 64 hashes agree in so many at least, four standard deviations below the threshold.
LEAST_AGREEMENT = 0.6
BATCH_WORDS = 500_000


class NearDuplicates:
    """Signatures of rows. Deterministic: words are numbered in order of appearance, and hash functions are fixed.

    Example:
        near = NearDuplicates()
        near.add(0, ["where", "is", "my", "order"])
        list(near.pairs())
    """

    def __init__(self) -> None:
        source = np.random.default_rng(0)
        self._numbers: dict[str, int] = {}
        self._factors_H = source.integers(0, 2**32, BANDS * ROWS_IN_BAND, dtype=np.uint32) | np.uint32(1)
        self._offsets_H = source.integers(0, 2**32, BANDS * ROWS_IN_BAND, dtype=np.uint32)
        self._rows: list[int] = []
        self._signatures: list[np.ndarray] = []
        self._waiting: list[int] = []
        self._lengths: list[int] = []

    def add(self, row: int, words: Sequence[str]) -> None:
        """Add the words of a row; a row without words is similar to no row."""
        if not words:
            return
        numbers = self._numbers
        self._waiting += [numbers.setdefault(word, len(numbers) + 1) for word in words]
        self._waiting += [0] * (GRAM - 1)
        self._lengths.append(len(words) + GRAM - 1)
        self._rows.append(row)
        if len(self._waiting) >= BATCH_WORDS:
            self._flush()

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield (row, earlier row) for pairs that may be nearly the same, in the order of the rows."""
        self._flush()
        if not self._signatures:
            return
        signatures_NH = np.concatenate(self._signatures)
        found = set[tuple[int, int]]()
        for band in range(BANDS):
            keys_N = np.zeros(len(signatures_NH), dtype=np.uint64)
            for column in range(band * ROWS_IN_BAND, (band + 1) * ROWS_IN_BAND):
                keys_N = _mix(keys_N + signatures_NH[:, column])
            _, first, place_N = np.unique(keys_N, return_index=True, return_inverse=True)
            earlier_N = first[place_N]
            later = np.flatnonzero(earlier_N < np.arange(len(earlier_N)))
            found |= set(zip(later.tolist(), earlier_N[later].tolist(), strict=True))
        for later, earlier in sorted(found):
            if (signatures_NH[later] == signatures_NH[earlier]).mean() >= LEAST_AGREEMENT:
                yield self._rows[later], self._rows[earlier]

    def _flush(self) -> None:
        """Turn waiting words into signatures: the minimum of every hash function over the 3-grams of a row."""
        if not self._lengths:
            return
        words_W = np.array(self._waiting, dtype=np.uint64)
        grams_W = _mix(words_W)
        for step in range(1, GRAM):
            grams_W = grams_W * np.uint64(0x9E3779B97F4A7C15)
            grams_W[:-step] += _mix(words_W[step:])
        hashes_W = (_mix(grams_W) >> np.uint64(32)).astype(np.uint32)
        ends = np.cumsum(self._lengths)
        starts = ends - np.array(self._lengths)
        is_start_W = words_W != 0
        kept = np.cumsum(is_start_W) - 1
        columns = [
            np.minimum.reduceat(hashes_W[is_start_W] * factor + offset, kept[starts])
            for factor, offset in zip(self._factors_H, self._offsets_H, strict=True)
        ]
        self._signatures.append(np.stack(columns, axis=1))
        self._waiting, self._lengths = [], []


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the Jaccard similarity of two texts' 3-grams of words: shared 3-grams over all; 1 for two empty texts.

    Example:
        >>> similarity("where is my order".split(), "where is my parcel".split())
        0.14285714285714285
    """
    grams, others = _grams(one), _grams(other)
    return len(grams & others) / len(grams | others) if grams or others else 1.0


def _grams(words: Sequence[str]) -> set[tuple[str, ...]]:
    padded = [*words, *[""] * (GRAM - 1)]
    return {tuple(padded[start : start + GRAM]) for start in range(len(words))}


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread numbers over 64 bits (the finalizer of SplitMix64; Steele, Lea and Flood, 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
