"""Test texts (probes) and training rows -> the probes that a training row contains.

A row contains a probe if the row holds at least a threshold share of the probe's word n-grams, and the probe's whole
question. Case, punctuation and markup are ignored. N-grams shared by many probes are templates and do not count.
Paraphrases and translations are not detected.

Shapes: N words of several rows, G n-grams of the probes, M matches.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Scripts without spaces between words: every character counts as a word.
ALONE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
# Optional marks: Hebrew points, Arabic and Syriac vowels, stress accents, variation selectors.
OPTIONAL = re.compile(
    "[\u0300\u0301\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e8\u06ea-\u06ed\u0730-\u074a\u08d3-\u08ff\ufb1e\ufe00-\ufe0f]"
)
# Words of an ASCII text, in half the time of the general path.
ASCII_WORD = re.compile("[a-z0-9]+")
# Fields of a row without text.
SKIPPED = {"id", "role", "group", "type", "source", "language", "licence", "metadata", "tools", "environment", "today"}
MIN_WORDS = 8
# An n-gram in more than this share of the groups (and in more than two) is a template of the test, not evidence.
TEMPLATE_SHARE = 0.1
BATCH_WORDS = 500_000
NORMALIZATION = "NFKC, no case, words of letters with their marks and digits; scripts without spaces by character"


@dataclass(frozen=True)
class Probe:
    """A text that training data must not contain.

    Attributes:
        question: Part of the text that a matching row contains whole.
        answers: Texts that a matching row contains too, if the probe is shorter than one n-gram.
        group: Name of a set of probes that may share text.

    Example: see `find_rows`.
    """

    name: str
    text: str
    question: str = ""
    answers: tuple[str, ...] = ()
    group: str = ""


class Overlap(NamedTuple):
    """A contaminated probe: the share of the probe's n-grams in the row at `place`."""

    name: str
    share: float
    place: str


@dataclass(frozen=True)
class OverlapReport:
    """The result of a contamination check.

    Attributes:
        too_short: Probes without enough words for any n-gram; matches would be chance.
        beside_answers: Probes that match only rows with their answers.
    """

    found: list[Overlap]
    too_short: list[str]
    beside_answers: list[str]
    num_probes: int
    num_rows: int


def split_words(text: str) -> list[str]:
    """Return the normalized words of a text.

    A letter keeps combining marks, which are vowels in the scripts of India. Optional marks (Hebrew points, Arabic
    vowels) and characters without width are removed.

    Example:
        >>> split_words("Déjà vu: दुकान")
        ['déjà', 'vu', 'दुकान']
    """
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPELLED).split()


class _Spelled(dict[int, str]):
    """A cache from characters to their normalized spelling: a letter, a space, or nothing."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if OPTIONAL.match(char) or category in ("Cf", "Me"):
            spelled = ""
        elif ALONE.match(char):
            spelled = f" {char} "
        else:
            spelled = char if char.isalnum() or category[0] == "M" else " "
        self[code] = spelled
        return spelled


_SPELLED = _Spelled()


def row_text(value: Any) -> str:
    """Join the texts of a row in order, without ids, roles and metadata."""
    if isinstance(value, dict):
        return "\n".join(row_text(item) for key, item in value.items() if key not in SKIPPED)
    if isinstance(value, list):
        return "\n".join(row_text(item) for item in value)
    return "" if value is None or isinstance(value, bool) else str(value)


def find_overlaps(
    probes: Sequence[Probe], rows: Iterable[tuple[str, str]], *, n: int = 13, threshold: float = 0.5
) -> OverlapReport:
    """Report the best matching row of every contaminated probe; `rows` are pairs of place and text."""
    sought = _Sought(probes, n)
    best: dict[int, Overlap] = {}
    num_rows = 0
    for batch in _batches(rows):
        num_rows += len(batch)
        for row, index, share in sought.shares(batch, threshold):
            place, words = batch[row]
            known = best.get(index)
            if (known is None or known.share < share) and sought.is_held(index, words, threshold):
                best[index] = Overlap(probes[index].name, share, place)
    return OverlapReport([best[index] for index in sorted(best)], *sought.reach(probes), len(probes), num_rows)


def find_rows(
    probes: Sequence[Probe], rows: Iterable[tuple[str, str]], *, n: int = 13, threshold: float = 0.5
) -> Iterator[Overlap]:
    """Yield every row that contains a probe, once, with the first matching probe.

    `find_overlaps` lists contaminated probes; this function lists the rows to remove.

    Example:
        probe = Probe("held-out row 1", "where is my parcel with the green ribbon", answers=("at the station",))
        list(find_rows([probe], [("row 1", "Where is my parcel with the green ribbon? At the station.")], n=5))
    """
    sought = _Sought(probes, n)
    for batch in _batches(rows):
        known = set[int]()
        for row, index, share in sought.shares(batch, threshold):
            place, words = batch[row]
            if row not in known and sought.is_held(index, words, threshold):
                known.add(row)
                yield Overlap(probes[index].name, share, place)


class Reach(NamedTuple):
    """Names of probes with limited detection: no detection at all, or only in rows with their answers."""

    too_short: list[str]
    beside_answers: list[str]


def reach(probes: Sequence[Probe], *, n: int = 13) -> Reach:
    """Name the probes with limited detection.

    Example:
        >>> reach([Probe("shop/1", "Are you open?")])
        Reach(too_short=['shop/1'], beside_answers=[])
    """
    return _Sought(probes, n).reach(probes)


def too_short(probes: Sequence[Probe], *, n: int = 13) -> list[str]:
    """Name the probes with too few words for n-grams, which `find_rows` never matches.

    Example:
        >>> too_short([Probe("shop/1", "Are you open?")])
        ['shop/1']
    """
    return reach(probes, n=n).too_short


def _batches(rows: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, list[str]]]]:
    batch: list[tuple[str, list[str]]] = []
    size = 0
    for place, text in rows:
        batch.append((place, split_words(text)))
        size += len(batch[-1][1])
        if size >= BATCH_WORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Sought:
    """Hash tables of the probes' n-grams, with the probes of every n-gram."""

    def __init__(self, probes: Sequence[Probe], n: int):
        self.n = n
        self.probes = probes
        self.words = [split_words(probe.text) for probe in probes]
        self.questions = [split_words(probe.question) for probe in probes]
        self.answers = [[split_words(text) for text in probe.answers] for probe in probes]
        self.ids = {word: number for number, word in enumerate(sorted(set().union(*self.words)), start=1)}
        # A random 64-bit code per word, for polynomial hashes of windows. Id 0 stands for all other words.
        self.codes = np.random.default_rng(0).integers(0, 2**64, len(self.ids) + 1, dtype=np.uint64)
        own = _own_grams(self.words, [probe.group or probe.name for probe in probes], n)
        self.num_own = [len(grams) for grams, _ in own]
        self.num_own_words = [num_words for _, num_words in own]
        self.tables = dict(self._tables([grams for grams, _ in own]))

    def is_too_short(self, index: int) -> bool:
        is_short = self.num_own_words[index] < self.n
        return is_short and (self.num_own_words[index] < MIN_WORDS or not any(self.answers[index]))

    def needs_answers(self, index: int) -> bool:
        return self.num_own_words[index] < self.n and not self.is_too_short(index)

    def reach(self, probes: Sequence[Probe]) -> Reach:
        names = [probe.name for probe in probes]
        short = [name for index, name in enumerate(names) if self.is_too_short(index)]
        return Reach(short, [name for index, name in enumerate(names) if self.needs_answers(index)])

    def is_held(self, index: int, row: list[str], threshold: float) -> bool:
        """Return whether a row with enough n-grams of a probe contains the question, and a short probe's answers."""
        question = self.questions[index]
        if len(question) >= self.n:
            grams = set(_grams(row, self.n))
            question_grams = _grams(question, self.n)
            holds = sum(gram in grams for gram in question_grams) >= threshold * len(question_grams)
        else:
            holds = _stands_in(question, row)
        if self.num_own_words[index] < self.n:
            return holds and all(_stands_in(answer, row) for answer in self.answers[index])
        return holds

    def shares(self, batch: list[tuple[str, list[str]]], threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield (row, probe, share of the probe's own n-grams in the row) for shares of at least the threshold."""
        ids_N, rows_N = self._join(batch)
        for length, (hashes_G, starts_G, members) in self.tables.items():
            if len(ids_N) < length:
                continue
            codes_N = self.codes[ids_N]
            found_N = _hash_columns([codes_N[step : len(codes_N) - length + 1 + step] for step in range(length)])
            place_N = np.minimum(np.searchsorted(hashes_G, found_N), len(hashes_G) - 1)
            hit_M = np.flatnonzero(hashes_G[place_N] == found_N)
            pairs_M = np.unique(rows_N[hit_M].astype(np.int64) * len(hashes_G) + place_N[hit_M])
            row_M, gram_M = np.divmod(pairs_M, len(hashes_G))
            counts_M = starts_G[gram_M + 1] - starts_G[gram_M]
            offsets = np.arange(counts_M.sum()) - np.repeat(np.cumsum(counts_M) - counts_M, counts_M)
            probe = members[np.repeat(starts_G[gram_M], counts_M) + offsets]
            keys, counts = np.unique(np.repeat(row_M, counts_M) * len(self.probes) + probe, return_counts=True)
            shares = counts / np.array(self.num_own)[keys % len(self.probes)]
            for key, share in zip(keys[shares >= threshold], shares[shares >= threshold], strict=True):
                yield int(key) // len(self.probes), int(key) % len(self.probes), float(share)

    def _tables(self, own: list[set[tuple[str, ...]]]) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Yield for every n-gram length: sorted hashes, the start of the probes of every hash, and the probes."""
        owners: dict[int, dict[tuple[str, ...], list[int]]] = {}
        for index, grams in enumerate(own):
            for gram in grams if not self.is_too_short(index) else ():
                owners.setdefault(len(gram), {}).setdefault(gram, []).append(index)
        for length, known in owners.items():
            ids_GL = np.array([[self.ids[word] for word in gram] for gram in known])
            hashes_G = _hash_columns(list(self.codes[ids_GL].T))
            order_G = np.argsort(hashes_G)
            lists = list(known.values())
            sizes = [len(lists[index]) for index in order_G]
            members = np.concatenate([lists[index] for index in order_G])
            yield length, (hashes_G[order_G], np.concatenate([[0], np.cumsum(sizes)]), members)

    def _join(self, batch: list[tuple[str, list[str]]]) -> tuple[np.ndarray, np.ndarray]:
        """Concatenate rows as word ids with a 0 after every row: no n-gram crosses two rows."""
        ids = [self.ids.get(word, 0) for _, words in batch for word in (*words, "")]
        lengths = [len(words) + 1 for _, words in batch]
        return np.array(ids), np.repeat(np.arange(len(batch)), lengths)


def _own_grams(texts: list[list[str]], groups: list[str], n: int) -> list[tuple[set[tuple[str, ...]], int]]:
    """Return for every text the n-grams outside the test's templates, and the number of words outside templates."""
    everything = [_grams(words, n) for words in texts]
    seen = Counter(pair[0] for pair in {(gram, group) for grams, group in zip(everything, groups, strict=True)
                                        for gram in grams})  # fmt: skip
    most = max(2, TEMPLATE_SHARE * len(set(groups)))
    own: list[tuple[set[tuple[str, ...]], int]] = []
    for words, grams in zip(texts, everything, strict=True):
        shared = {start + step for start, gram in enumerate(grams) if seen[gram] > most for step in range(len(gram))}
        own.append(({gram for gram in grams if seen[gram] <= most}, len(words) - len(shared)))
    return own


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text in order; a text of fewer than n words is a single, shorter n-gram."""
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))] if words else []


def _hash_columns(columns: list[np.ndarray]) -> np.ndarray:
    """Hash n-grams, given as n arrays of word codes: first words, second words, and so on."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)
    for codes in columns:
        hashes = hashes * factor + codes
    return hashes


def _stands_in(words: list[str], row: list[str]) -> bool:
    return not words or f" {' '.join(words)} " in f" {' '.join(row)} "
