"""Targets of compressed-tensors' config (a class, a module name, or "re:" and a pattern) -> matching modules.

Patterns come from untrusted files: only a subset of regular expressions with bounded matching time is accepted.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from puna.formats.checkpoint.fields import Fields

CLASSES = ("Linear", "Embedding")
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
# Letters, digits, dots, \d+, .* and choices like (gate|up|down); no group is repeated.
PATTERN = re.compile(r"(?:[\w-]|\\\.|\\d\+?|\[0-9\]\+?|\.\*|\.|\((?:\?:)?(?:[\w|-]|\\\.|\\d\+?)+\)|\^|\$)*")
MAX_PATTERN_LEN, MAX_REPEATS, MAX_PATTERNS, MAX_NAMES = 200, 3, 16, 100_000


@dataclass(frozen=True)
class Targets:
    """Targets of a group: classes, exact names and patterns."""

    classes: frozenset[str]
    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    def rank(self, name: str, kind: str) -> int | None:
        """Return the specificity of a match: 0 by name, 1 by pattern, 2 by class; None without a match."""
        if name in self.names:
            return 0
        if any(pattern.match(name) for pattern in self.patterns):
            return 1
        return 2 if kind in self.classes else None


def parse_targets(fields: Fields, key: str) -> Targets:
    """Read a list of targets; CheckpointError for unsupported entries."""
    values = fields.get(key)
    if values is None:
        values = []
    if not isinstance(values, list) or len(values) > MAX_NAMES or not all(isinstance(value, str) for value in values):
        raise fields.fail(key, "a list of names")
    sources = [value.removeprefix("re:") for value in values if value.startswith("re:")]
    if len(sources) > MAX_PATTERNS or not all(map(_is_safe, sources)):
        raise fields.fail(key, f"at most {MAX_PATTERNS} plain patterns such as re:.*self_attn.*")
    names = _require_names(fields, key, [value for value in values if not value.startswith("re:")])
    patterns = tuple(re.compile(source) for source in sources)
    return Targets(frozenset(names) & frozenset(CLASSES), frozenset(names) - frozenset(CLASSES), patterns)


def _require_names(fields: Fields, key: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    for name in names:
        # Other classes ("LlamaAttention") would need quantized attention, which is not supported.
        if not NAME.fullmatch(name) or (name not in CLASSES and not name[0].islower()):
            raise fields.fail(key, f"{' or '.join(CLASSES)}, names of modules, and patterns")
    return names


def _is_safe(source: str) -> bool:
    repeats = source.count("*") + source.count("+")
    return len(source) <= MAX_PATTERN_LEN and repeats <= MAX_REPEATS and PATTERN.fullmatch(source) is not None
