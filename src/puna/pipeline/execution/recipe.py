"""A recipe file -> the steps in order, with overrides from the command line and resolved paths of artifacts."""

import copy
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from puna.pipeline.config import (
    StageConfig,
    former_names,
    is_named_step,
    suggestion,
    warn_of_former_name,
    with_current_names,
)
from puna.pipeline.errors import ConfigError
from puna.pipeline.stages import STAGES, Stage


@dataclass(frozen=True)
class Step:
    """One table of a recipe: `[sft]`, or `[sft.teacher]` where a stage appears more than once.

    Example:
        >>> [step.name for step in Recipe.read(Path("shop.toml")).steps]
        ['ingest.train', 'sft']
    """

    name: str
    stage: Stage
    table: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A parsed TOML file: the output directory, and the steps in the order of the file.

    Example:
        >>> Recipe.read(Path("shop.toml")).out.as_posix()
        'build/shop'
    """

    path: Path
    out: Path
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe. Relative paths start at the current directory.

        Raises:
            ConfigError: The file is not TOML, has a table that names no stage, or has no step.

        Example:
            >>> recipe = Recipe.read(Path("shop.toml"))
            >>> [step.name for step in recipe.steps]
            ['ingest.train', 'sft']
        """
        try:
            text = path.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"recipe {path} cannot be read ({error})", expected="a TOML file") from None
        out = tables.pop("out", f"build/{path.stem}")
        if not isinstance(out, str):
            raise ConfigError(f"{path} has out = {out!r}", expected="a directory, as a string")
        verbs = {stage.verb: stage for stage in STAGES}
        steps: list[Step] = []
        for verb, table in tables.items():
            if verb not in verbs or not isinstance(table, dict):
                raise ConfigError(
                    f"{path} has '{verb}'",
                    expected=f"a table named {', '.join(verbs)}",
                    hint=suggestion(verb, list(verbs)),
                )
            settings_class = config_class(verbs[verb])
            named = table if is_named_step(settings_class, table) else {"": table}
            for name, settings in named.items():
                step = f"{verb}.{name}" if name else verb
                try:
                    current = with_current_names(settings_class, settings)
                except ValueError as error:
                    raise ConfigError(f"{path} has two names of a setting in [{step}]", expected=str(error)) from None
                steps.append(Step(step, verbs[verb], current))
        if not steps:
            raise ConfigError(f"{path} has no step", expected=f"at least one table named {', '.join(verbs)}")
        return cls(path, Path(out), tuple(_in_file_order(text, steps)))


def override(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Override settings of the file, as in `{"sft.teacher.optim.lr": 1e-4}`.

    Example:
        >>> changed = override(recipe, {"sft.optim.lr": 1e-4})
        >>> changed.steps[1].table["optim"]
        {'lr': 0.0001}
    """
    steps = [replace(step, table=copy.deepcopy(step.table)) for step in recipe.steps]
    keys: dict[tuple[str, str], str] = {}
    for key, value in settings.items():
        step = next((step for step in steps if key.startswith(step.name + ".")), None)
        if step is None:
            names = [step.name for step in steps]
            raise ConfigError(
                f"--{key} names no step of {recipe.path}",
                expected=f"--STEP.KEY with {', '.join(names)}",
                hint=suggestion(key, names),
            )
        setting = key.removeprefix(step.name + ".")
        current = former_names(config_class(step.stage)).get(setting, setting)
        if current != setting:
            warn_of_former_name(setting, current)
        other = keys.setdefault((step.name, current), key)
        if other != key:
            raise ConfigError(f"--{other} and --{key}, two names of a setting", expected=f"--{step.name}.{current}")
        *parents, last = current.split(".")
        table = step.table
        for parent in parents:
            if not isinstance(table.setdefault(parent, {}), dict):
                raise ConfigError(f"--{key} = {value!r}, but {recipe.path} has {parent} = {table[parent]!r}")
            table = table[parent]
        table[last] = value
    return replace(recipe, steps=tuple(steps))


def config_class(stage: Stage) -> type[StageConfig]:
    """Import a stage's module and return the class Config.

    Example:
        >>> config_class(recipe.steps[1].stage).__module__
        'puna.training.sft'
    """
    return import_module(stage.module).Config


def resolve(step: Step, recipe: Recipe) -> dict[str, Any]:
    """Return a step's table with every "@name" replaced by the path of the named artifact, at any depth.

    Raises:
        ConfigError: No step above has the name. The artifact of a step below does not exist yet.

    Example:
        >>> resolve(recipe.steps[1], recipe)["data"][0]
        'build/shop/ingest.train'
    """
    names = [each.name for each in recipe.steps]
    above = names[: names.index(step.name)]

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        name, _, inside = value[1:].partition("/")
        if name not in above:
            raise ConfigError(
                f"'{value}' in [{step.name}] refers to no step above it in {recipe.path}",
                expected=", ".join(f"@{each}" for each in above) or "a path, since it is the first step",
                hint=suggestion(name, above),
            )
        return str(recipe.out / name / inside)

    return {key: replaced(value) for key, value in step.table.items()}


def _in_file_order(text: str, steps: list[Step]) -> Iterator[Step]:
    """Order steps by the position of the headers in the file: tomllib groups `[a.x] [b] [a.y]` by first key."""
    headers = [line.strip() for line in text.splitlines()]

    def position(step: Step) -> int:
        openings = (i for i, line in enumerate(headers) if line.startswith((f"[{step.name}]", f"[{step.name}.")))
        return next(openings, len(headers))

    yield from sorted(steps, key=position)
