"""Turn TOML tables and flags into one frozen, typed config a stage; an unknown key is an error with a suggestion.

Every `Path` inside a stage's config is an input of that stage: its content is part of the stage's key. Where a
stage writes is not configuration; the run decides that.
"""

import difflib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator

from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known


class StageConfig(BaseModel):
    """What one stage can be told: a flat table with few sub-tables, frozen, strict about names and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    has_preview: ClassVar[bool] = False  # whether the stage can show what it would do, without doing it

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, table: Any) -> Any:
        return with_current_names(cls, table) if isinstance(table, dict) else table

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values under the names that keys, manifests and run directories use.

        A renamed setting keeps its former name there (`serialization_alias`), so that artifacts and interrupted runs
        of earlier versions stay valid.
        """
        return self.model_dump(mode="json", by_alias=True)

    def inputs(self) -> dict[str, Path]:
        """Name every path in this config, in the order of the fields: `{"data": ..., "checkpoints.teacher": ...}`."""
        return dict(_paths("", self))

    def requires_receipts(self) -> bool:
        """Tell whether a receipt of an input that did not hold stops this stage; what judges them itself says no."""
        return True

    def estimate(self, known: Known) -> Estimate:
        """Foresee cost and output for `puna raise --dry-run`; writes nothing. A stage without an estimate says so."""
        return Estimate()


Config = TypeVar("Config", bound=StageConfig)


def recorded_name(model: type[BaseModel], field: str) -> str:
    """Return the name of a field in records: its former name where it was renamed."""
    return model.model_fields[field].serialization_alias or field


def former_names(model: type[BaseModel]) -> dict[str, str]:
    """Map the former name of every renamed setting to its current name; names in inner tables are dotted.

    Example:
        >>> former_names(sft.Config)["adapter.start"]
        'adapter.init_from'
    """
    names: dict[str, str] = {}
    for field, info in model.model_fields.items():
        if info.serialization_alias:
            names[info.serialization_alias] = field
        for inner in _models_of(info.annotation):
            names |= {f"{field}.{old}": f"{field}.{new}" for old, new in former_names(inner).items()}
    return names


def with_current_names(model: type[BaseModel], table: dict[str, Any]) -> dict[str, Any]:
    """Replace former names of settings in a table and its inner tables, with a FutureWarning for each.

    Raises:
        ValueError: The table has both names of a setting.
    """
    names, current = former_names(model), dict[str, Any]()
    for name, value in table.items():
        field = names.get(name, name)
        if field != name:
            if field in table:
                raise ValueError(f"one of '{field}' and '{name}', the former name of '{field}'")
            warn_of_former_name(name, field)
        inner = _models_of(model.model_fields[field].annotation) if field in model.model_fields else []
        current[field] = with_current_names(inner[0], value) if inner and isinstance(value, dict) else value
    return current


def warn_of_former_name(former: str, current: str) -> None:
    warnings.warn(f"'{former}' is called '{current}' now; this version still reads '{former}'", FutureWarning, 3)


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [each for each in types if isinstance(each, type) and issubclass(each, BaseModel)]


def _number_of_flag(value: Any, info: ValidationInfo) -> Any:
    is_flag = info.mode == "python" and isinstance(value, str)
    return int(value) if is_flag and value.isdecimal() else value


# For a Literal of numbers: flags come as text, which pydantic turns into an int but not into one of a few; tables,
# which come as JSON, stay strict.
FlagNumber = BeforeValidator(_number_of_flag)


def parse_config(config_class: type[Config], table: dict[str, Any], *, where: str) -> Config:
    """Validate `table` as a `config_class`; `where` names the table in errors.

    Raises ConfigError that names the key, what it was given and, for an unknown key, the nearest known one.
    """
    try:
        # NOTE: as JSON, because strict validation takes a string for a Path only there.
        return config_class.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, config_class, where=where) from None


def explain(error: ValidationError, config_class: type[BaseModel], *, where: str) -> ConfigError:
    """Say in one ConfigError what is wrong with a table: an unknown key before all else."""
    errors = [each for each in error.errors() if each["type"] == "extra_forbidden"] or error.errors()
    # Where a value may be of several types each tells what it missed; the one that got furthest is the one meant.
    about_first_key = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    first = max(about_first_key, key=lambda each: len(each["loc"]))
    key, model = _place(config_class, first["loc"])
    if first["type"] == "extra_forbidden":
        known = sorted(model.model_fields)
        return ConfigError(
            f"[{where}] has the unknown key '{key}'",
            expected=f"one of {', '.join(known)}",
            hint=suggestion(str(first["loc"][-1]), known),
        )
    if first["type"] == "missing":
        return ConfigError(f"[{where}] lacks '{key}'", hint=f"Add {key} = ... to the table or give --{key}")
    given = f"[{where}] {key} = {first['input']!r}" if key else f"[{where}] with {_named(first['input'])}"
    return ConfigError(given, expected=_expectation(first["type"], first["msg"]))


def suggestion(word: str, known: list[str]) -> str:
    """Say "Did you mean 'x'?" for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def is_named_step(config_class: type[StageConfig], table: dict[str, Any]) -> bool:
    """Tell whether a recipe table holds named steps (`[sft.teacher]`) rather than settings (`[sft]`)."""
    return bool(table) and all(
        isinstance(value, dict) and name not in config_class.model_fields for name, value in table.items()
    )


def _place(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str, type[BaseModel]]:
    """Spell a place in a table as its keys, without the tags of a union's types; return the model it lies in too."""
    keys: list[str] = []
    is_tag = False
    for part in location:
        if is_tag:
            is_tag = False
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part))
        if field is not None:
            types = [each for each in get_args(field.annotation) or (field.annotation,) if each is not NoneType]
            is_tag = len(types) > 1 and get_origin(field.annotation) in (Union, UnionType)
            model = next((each for each in types if isinstance(each, type) and issubclass(each, BaseModel)), model)
    return ".".join(keys), model


def _named(table: Any) -> str:
    return ", ".join(table) or "no settings"


def _expectation(kind: str, message: str) -> str:
    if kind in ("model_type", "dict_type"):
        return "a table"
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _paths(name: str, value: Any) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            role = recorded_name(type(value), field)
            yield from _paths(f"{name}.{role}" if name else role, getattr(value, field))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths(f"{name}.{index}", item)
