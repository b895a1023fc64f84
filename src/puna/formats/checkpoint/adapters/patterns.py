"""Module names and an adapter's settings -> the targeted modules with rank and alpha, exactly as PEFT decides.

PEFT's rules (tuners_utils.check_target_module_exists and other.get_pattern_key of peft 0.21): a list names endings of
paths, a string is a regular expression for the whole path, keys of rank_pattern and alpha_pattern are regular
expressions for the path or an ending behind a dot, and the first key that matches counts.

An expression from a stranger's file can take a matcher longer than the universe lasts. Plain names are matched here,
all other expressions in a process of bounded time and memory (pattern_child.py).
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from puna.formats.checkpoint.adapters.config import AdapterConfig
from puna.model.config import ADAPTED
from puna.pipeline.errors import CheckpointError

CHILD = Path(__file__).with_name("pattern_child.py")
# The process bounds its CPU time itself; the clock is for a machine that is busy otherwise.
MAX_SECONDS = 60.0
MAX_PATTERN = 20_000
PLAIN = re.compile(r"\^?(\w|\\?\.)+\$?")
LINEAR_NAMES = {path.rpartition(".")[2] for path in ADAPTED}
TIED_NAMES = ("model.embed_tokens", "lm_head")

Method = Literal["match", "fullmatch"]


class Expression(NamedTuple):
    """A regular expression, tried with `re.match` or `re.fullmatch`, and the spelling and field of the file."""

    method: Method
    text: str
    key: str
    field: str


class ModuleSettings(NamedTuple):
    """The settings of one module: whether the config targets the module, rank and alpha."""

    is_target: bool
    rank: int
    alpha: float


def module_settings(config: AdapterConfig, modules: Sequence[str]) -> dict[str, ModuleSettings]:
    """Return the settings of modules, by their paths in transformers ("model.layers.0.self_attn.q_proj").

    Raises:
        CheckpointError: An expression is invalid, or takes too long.

    Example:
        >>> raw = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
        >>> config = parse_config(raw | {"rank_pattern": {r"layers\\.(0|1)\\..*": 4}})
        >>> module_settings(config, ["model.layers.1.self_attn.q_proj"])
        {'model.layers.1.self_attn.q_proj': ModuleSettings(is_target=True, rank=4, alpha=16.0)}
    """
    names = tuple(modules)
    ranks = _first_keys("rank_pattern", config.rank_pattern, names)
    alphas = _first_keys("alpha_pattern", config.alpha_pattern, names)
    targets = _targets(config, names)
    if config.is_tied and any(name in targets for name in TIED_NAMES):
        targets |= {*TIED_NAMES}
    return {
        name: ModuleSettings(
            name in targets,
            config.rank_pattern.get(ranks.get(name, name), config.rank),
            config.alpha_pattern.get(alphas.get(name, name), config.alpha),
        )
        for name in names
    }


def overlapping(config: AdapterConfig, modules: Sequence[str]) -> list[str]:
    """Return the modules that two keys of alpha_pattern match with different values.

    PEFT takes the first key, and sorts the keys on saving: training may have used the other one.
    """
    expressions = _expressions("alpha_pattern", config.alpha_pattern)
    values: dict[str, set[float]] = {}
    for key, groups in zip(config.alpha_pattern, _matches(expressions, tuple(modules)), strict=True):
        for name in groups:
            values.setdefault(name, set()).add(config.alpha_pattern[key])
    return [name for name, alphas in values.items() if len(alphas) > 1]


def is_saved(config: AdapterConfig, modules: Sequence[str]) -> set[str]:
    """Return the modules inside a module of `modules_to_save`, which have a trained copy."""
    return {name for name in modules if any(parent.endswith(config.saved) for parent in _parents(name))}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: index + 1]) for index in range(len(parts))]


def _expressions(field: str, patterns: Mapping[str, object]) -> tuple[Expression, ...]:
    return tuple(Expression("match", rf"(.*\.)?({key})$", key, field) for key in patterns)


def _first_keys(field: str, patterns: Mapping[str, object], names: tuple[str, ...]) -> dict[str, str]:
    """Return the first matching key of a pattern by name."""
    expressions = _expressions(field, patterns)
    first_keys: dict[str, str] = {}
    for key, groups in zip(patterns, _matches(expressions, names), strict=True):
        for name in groups:
            first_keys.setdefault(name, key)
    return first_keys


def _targets(config: AdapterConfig, names: tuple[str, ...]) -> set[str]:
    chosen = _named("target_modules", config.targets, names)
    if isinstance(config.targets, str) and config.targets.lower() == "all-linear":
        chosen = {name for name in names if name.rpartition(".")[2] in LINEAR_NAMES}
    saved = tuple(Expression("match", rf"(^|.*\.){key}($|\..*)", key, "modules_to_save") for key in config.saved)
    chosen -= _named("exclude_modules", config.excluded, names) | {
        name for groups in _matches(saved, names) for name in groups
    }
    if config.layers is None or isinstance(config.targets, str):
        return chosen
    layers = _layers(config.layers_pattern, names)
    # A module that is named by its whole path is a target in whichever layer.
    return {name for name in chosen if name in (config.targets or ()) or layers.get(name) in config.layers}


def _named(field: str, targets: str | tuple[str, ...] | None, names: tuple[str, ...]) -> set[str]:
    if targets is None:
        return {*names}
    if isinstance(targets, str):
        return set(_matches((Expression("fullmatch", targets, targets, field),), names)[0]) if targets else set()
    return {name for name in names if any(name == ending or name.endswith(f".{ending}") for ending in targets)}


def _layers(patterns: tuple[str, ...], names: tuple[str, ...]) -> dict[str, int]:
    """Return the layers of paths: the first number behind the list of layers."""
    number = r"\.(?P<idx>\d+)\."
    expressions = tuple(
        Expression("match", rf"(?:^|.*?\.){pattern}{number}", pattern, "layers_pattern") for pattern in patterns
    )
    layers: dict[str, int] = {}
    for groups in _matches(
        expressions or (Expression("match", rf".*?\.[^.]*{number}", "layers", "layers_pattern"),), names
    ):
        for name, index in groups.items():
            layers.setdefault(name, int(index or -1))
    return layers


@lru_cache(maxsize=64)
def _matches(expressions: tuple[Expression, ...], names: tuple[str, ...]) -> list[dict[str, str | None]]:
    """Return the matching names of every expression, with the group `idx` if there is one."""
    if all(PLAIN.fullmatch(expression.key) for expression in expressions):
        return [_match_plain(expression, names) for expression in expressions]
    longest = max(expressions, key=lambda expression: len(expression.text))
    if len(longest.text) > MAX_PATTERN:
        raise CheckpointError(
            f"adapter_config.json: {longest.field} has an expression of {len(longest.text):,} characters",
            expected=f"at most {MAX_PATTERN:,} characters",
        )
    asked = {"expressions": [(expression.method, expression.text) for expression in expressions], "names": names}
    command = (sys.executable, "-I", "-S", "-B", str(CHILD))
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=MAX_SECONDS)
        output = done.stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode().splitlines() if isinstance(error.stdout, bytes) else []
    return [
        _answer(expression, output[index] if index < len(output) else "")
        for index, expression in enumerate(expressions)
    ]


def _match_plain(expression: Expression, names: tuple[str, ...]) -> dict[str, str | None]:
    search = getattr(re.compile(expression.text), expression.method)
    return {name: match.groupdict().get("idx") for name in names if (match := search(name))}


def _answer(expression: Expression, line: str) -> dict[str, str | None]:
    answer: dict[str, Any] = json.loads(line or '{"error": "it takes too long, or too much memory, to match"}')
    if "error" in answer:
        raise CheckpointError(
            f"adapter_config.json: {expression.field} has {expression.key!a:.200}: {answer['error']}",
            expected="a regular expression for names of modules",
            hint="Write the names of the modules instead, such as q_proj or model.layers.0.self_attn.q_proj",
        )
    return answer["matches"]
