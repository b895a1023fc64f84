"""TOML tables and flags -> a frozen, typed config per stage; an unknown key is an error with a suggestion.

Every `Path` in a config is an input of the stage, and the content counts for the key of the artifact. The output path
is an argument of the executor, not a setting.
"""

import difflib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator

from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.storage.files import write_text


class StageConfig(BaseModel):
    """The settings of a stage, and the contract between the stage and the executor.

    Settings form a flat table with few sub-tables; instances are frozen, and unknown keys are errors. The executor
    reads everything about a stage from the row in `stages.py` and from the members below; a stage overrides members
    where the defaults do not fit.

    Example:
        >>> class Config(StageConfig):
        ...     data: list[Path] = Field(description="Datasets to read")
        ...     probe: Path = Field(description="Text to measure on, kept out of the output")
        ...
        ...     def made_of(self) -> dict[str, Path]:
        ...         return {role: path for role, path in self.inputs().items() if role != "probe"}
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    has_preview: ClassVar[bool] = False
    """Whether `--preview-only` works: `run` with `run.is_preview` shows the data, memory and time of the work, and
    returns without an output. The flag is offered only for stages with True."""

    is_parallel: ClassVar[bool] = False
    """Whether the processes of torchrun divide the work. With True every process calls `run` with its own rank, and
    the config has a table `parallel`, which does not count for the stage's key. With False rank 0 works alone."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, table: Any) -> Any:
        return with_current_names(cls, table) if isinstance(table, dict) else table

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values, named as in stage keys, manifests and run directories.

        A renamed setting is recorded under the former name (`serialization_alias`), so artifacts and interrupted runs
        of earlier versions stay valid.
        """
        return self.model_dump(mode="json", by_alias=True)

    def write_record(self, directory: Path) -> None:
        """Write the record to config.json of a run directory."""
        write_text(directory / "config.json", json.dumps(self.record(), indent=2) + "\n")

    def inputs(self) -> dict[str, Path]:
        """Return every path of the config by role, in the order of the fields.

        The hash of every input is part of the stage's key, and the manifest lists all inputs. Roles of nested paths
        are dotted: `{"data.0": ..., "checkpoints.teacher": ...}`.
        """
        return dict(_paths("", self))

    def made_of(self) -> dict[str, Path]:
        """Return the inputs with licences for the output to inherit; by default all inputs.

        A stage leaves out inputs without content in the output, for example text for measurements.
        """
        return self.inputs()

    def stated_licence(self) -> str:
        """Return the user's stated licence of raw inputs, by any usual name; "" without a statement.

        The output inherits the stated licence. Raw inputs without a licence file then no longer count as "unknown".
        """
        return ""

    def requires_receipts(self) -> bool:
        """Return whether a failed receipt of an input stops the stage.

        The release gate returns False, since the gate's own rules judge the receipts of the inputs.
        """
        return True

    def estimate(self, known: Known) -> Estimate:
        """Forecast time, memory and output for `puna raise --dry-run`, without writing anything.

        The default has no figures: the dry run lists the stage as a step without an estimate.
        """
        return Estimate()


# Floating-point format of activations in a setting; `puna.model.precision.torch_dtype` returns the dtype of torch.
Precision = Literal["float32", "bfloat16"]
# Format of the weights that a stage writes; "stored" keeps the format of the weights that the stage reads.
StoredDtype = Literal["stored", "float32", "bfloat16", "float16"]

Config = TypeVar("Config", bound=StageConfig)


def recorded_name(model: type[BaseModel], field: str) -> str:
    """Return the name of a field in records: the former name if the field was renamed."""
    return model.model_fields[field].serialization_alias or field


def former_names(model: type[BaseModel]) -> dict[str, str]:
    """Map the former name of every renamed setting to the current name; names in inner tables are dotted.

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
    """Replace former names of settings in a table and in inner tables, with a FutureWarning per name.

    Raises:
        ValueError: The table has the former and the current name of a setting.
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


# For a Literal of numbers: pydantic converts the text of a flag to an int, but not to a Literal of ints. Tables come
# as JSON and stay strict.
FlagNumber = BeforeValidator(_number_of_flag)


def parse_config(config_class: type[Config], table: dict[str, Any], *, where: str) -> Config:
    """Validate a table as a config.

    Args:
        where: Name of the table in errors: "sft.teacher".

    Raises:
        ConfigError: A setting is invalid; the message names key and value and, for an unknown key, the nearest key.

    Example:
        >>> parse_config(Config, {"data": ["pages"], "vocab_size": 512}, where="tokenizer").vocab_size
        512
    """
    try:
        # NOTE: as JSON, since strict validation accepts a string for a Path only in JSON.
        return config_class.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, config_class, where=where) from None


def explain(error: ValidationError, config_class: type[BaseModel], *, where: str) -> ConfigError:
    """Return a single ConfigError for an invalid table; unknown keys come first."""
    errors = [each for each in error.errors() if each["type"] == "extra_forbidden"] or error.errors()
    # A union reports an error per type; the error with the longest location belongs to the intended type.
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
    """Return "Did you mean 'x'?" for the known word nearest to `word`; "" if no word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def is_named_step(config_class: type[StageConfig], table: dict[str, Any]) -> bool:
    """Return whether a recipe table holds named steps (`[sft.teacher]`) rather than settings (`[sft]`)."""
    return bool(table) and all(
        isinstance(value, dict) and name not in config_class.model_fields for name, value in table.items()
    )


def _place(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str, type[BaseModel]]:
    """Return the dotted key of an error location, without the tags of union types, and the model with the key."""
    keys: list[str] = []
    is_tag, by_name = False, None
    for part in location:
        if is_tag:
            is_tag = False
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part)) if by_name is None else None
        annotation = field.annotation if field is not None else by_name
        by_name = None
        if get_origin(annotation) is dict:
            by_name = get_args(annotation)[1]  # the next part is a name that the user chose
        elif annotation is not None:
            types = [each for each in get_args(annotation) or (annotation,) if each is not NoneType]
            is_tag = len(types) > 1 and get_origin(annotation) in (Union, UnionType)
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
