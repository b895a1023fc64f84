"""Turn TOML tables and flags into one frozen, typed config a stage; an unknown key is an error with a suggestion.

Every `Path` inside a stage's config is an input of that stage: its content is part of the stage's key. Where a
stage writes is not configuration; the run decides that.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from puna.errors import ConfigError


class StageConfig(BaseModel):
    """What one stage can be told: a flat table with few sub-tables, frozen, strict about names and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def inputs(self) -> dict[str, Path]:
        """Name every path in this config, in the order of the fields: `{"data": ..., "checkpoints.teacher": ...}`."""
        return dict(_paths("", self))


Config = TypeVar("Config", bound=StageConfig)


def parse_config(config_class: type[Config], table: dict[str, Any], *, where: str) -> Config:
    """Validate `table` as a `config_class`; `where` names the table in errors.

    Raises ConfigError that names the key, what it was given and, for an unknown key, the nearest known one.
    """
    try:
        return config_class.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(config_class, first["loc"][:-1])
            raise ConfigError(
                f"[{where}] has the unknown key '{key}'",
                expected=f"one of {', '.join(sorted(known))}",
                hint=suggestion(str(first["loc"][-1]), known),
            ) from None
        if first["type"] == "missing":
            raise ConfigError(
                f"[{where}] lacks '{key}'", hint=f"Add {key} = ... to the table or give --{key}"
            ) from None
        raise ConfigError(f"[{where}] {key} = {first['input']!r}", expected=_expectation(first["msg"])) from None


def suggestion(word: str, known: list[str]) -> str:
    """Say "Did you mean 'x'?" for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def is_named_step(config_class: type[StageConfig], table: dict[str, Any]) -> bool:
    """Tell whether a recipe table holds named steps (`[sft.teacher]`) rather than settings (`[sft]`)."""
    return bool(table) and all(
        isinstance(value, dict) and name not in config_class.model_fields for name, value in table.items()
    )


def _known_keys(config_class: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        field = config_class.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            config_class = annotation
    return list(config_class.model_fields)


def _expectation(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _paths(name: str, value: Any) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _paths(f"{name}.{field}" if name else field, getattr(value, field))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths(f"{name}.{index}", item)
