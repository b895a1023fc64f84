"""Typed access to the values of an untrusted config: bounded numbers, flags, texts, sections."""

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
    """Typed access to the keys of a JSON object; errors name file, key and expected value.

    Attributes:
        prefix: Prefix of every key, for example "llama."; null values count as absent if there is a default.

    Example:
        >>> Fields({"hidden_size": 64}, Path("config.json")).integer("hidden_size")
        64
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
        """Return whether a value equals one of `allowed`; False for arrays, since numpy compares element by element."""
        value = self.get(key)
        return isinstance(value, str | int | float | list | None) and any(value == option for option in allowed)


def shown(value: Any) -> str:
    """Return an ASCII representation of a value for messages, truncated after MAX_SHOWN characters."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
