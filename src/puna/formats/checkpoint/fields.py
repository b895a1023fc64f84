"""Values of a file that a stranger wrote, by key and type: numbers in their bounds, flags, texts. Opens no file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.pipeline.errors import CheckpointError

MAX_SIZE = 2**31 - 1
MAX_NUMBER = 1e30
MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to the keys of one object; an error names the file, the key and what was expected.

    `prefix` stands before every key, and null counts as absent where there is a default.
    """

    raw: Mapping[str, Any]
    path: Path
    prefix: str = ""

    def fail(self, key: str, expected: str) -> CheckpointError:
        key = self.prefix + key
        given = f"{key} = {shown(self.raw[key])}" if key in self.raw else f"no {key}"
        return CheckpointError(f"{self.path}: {given}", expected=expected)

    def get(self, key: str) -> Any:
        return self.raw.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.fail(key, f"an integer from 1 to {MAX_SIZE}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
            raise self.fail(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = default if self.get(key) is None else self.get(key)
        if type(value) is not bool:
            raise self.fail(key, "true or false")
        return value

    def section(self, key: str) -> "Fields | None":
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "a JSON object")
        return None if value is None else Fields(value, self.path)

    def is_one_of(self, key: str, allowed: tuple[Any, ...]) -> bool:
        """Tell whether a value equals one of these; an array, which numpy compares piece by piece, does not."""
        value = self.get(key)
        return isinstance(value, str | int | float | list | None) and any(value == each for each in allowed)


def shown(value: Any) -> str:
    """Spell a value for a message, cut where it is long."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
