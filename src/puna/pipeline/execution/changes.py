"""A step's config and the artifact at the step's path -> whether the step would run, and the reasons."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from puna import __version__
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import StageConfig, former_names
from puna.pipeline.errors import PunaError, ReceiptError
from puna.pipeline.execution.executor import PARALLEL, is_prepared, is_there, run_directory, stage_key
from puna.pipeline.stages import Stage

State = Literal["there already", "would run", "would go on", "may run"]
MAX_SHOWN = 3


@dataclass(frozen=True)
class Status:
    """Plan of `puna raise` for a step; `reasons` are phrases, `problems` are sentences about obstacles.

    Example:
        >>> Status("would run", ("steps was 100, and is 200",)).state
        'would run'
    """

    state: State
    reasons: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def status_of(stage: Stage, config: StageConfig, path: Path, pending: dict[str, str]) -> Status:
    """Compare a step with the artifact at its path.

    Args:
        pending: Roles of inputs that earlier steps would make anew, with the names of the earlier steps.

    Example:
        >>> status_of(step.stage, config, Path("build/sft"), {}).problems
        ('data.0 = shop does not exist', 'start = base does not exist')
    """
    inputs = config.inputs()
    missing = [
        f"{role} = {source} does not exist"
        for role, source in inputs.items()
        if role not in pending and not source.exists()
    ]
    if missing:
        return Status("would run", problems=tuple(missing))
    try:
        if not path.exists():
            return Status("would run") if pending else _status_of_first(stage, config, path)
        hashes = {role: artifact.content_hash(source) for role, source in inputs.items() if role not in pending}
        if not pending and is_there(stage, path, stage_key(stage, config, hashes)):
            return Status("there already", problems=tuple(_failed_receipt(path)))
        manifest = artifact.read_manifest(path)
    except PunaError as error:
        return Status("would run", problems=(f"would stop: {error}",))
    reasons = list(_changes(manifest, config, hashes))
    names = ", ".join(dict.fromkeys(pending.values()))
    if pending and not reasons:
        return Status("may run", (f"unless {names} comes out as before",))
    return Status("would run", tuple(reasons or ["a file of it is missing or was cut"]))


def _failed_receipt(path: Path) -> Iterator[str]:
    try:
        artifact.require_receipts(path)
    except ReceiptError as error:
        yield f"would stop: {error}"


def _status_of_first(stage: Stage, config: StageConfig, path: Path) -> Status:
    """Tell an interrupted run from a step that never ran; hash the inputs only if an interrupted run exists."""
    directory = run_directory(path)
    if not (directory / "key").is_file():
        return Status("would run")
    hashes = {role: artifact.content_hash(source) for role, source in config.inputs().items()}
    if is_prepared(directory, stage_key(stage, config, hashes)):
        return Status("would go on", ("it was interrupted; the time is that of the whole step",))
    return Status("would run", ("the interrupted run had other settings or inputs",))


def _changes(manifest: artifact.Manifest, config: StageConfig, hashes: dict[str, str]) -> Iterator[str]:
    """Name the differences from the run that made an artifact: version, settings, inputs."""
    if manifest.version != __version__:
        yield f"Puna was {manifest.version}, and is {__version__}"
    paths = config.inputs()
    before, after = (dict(_flat("", each)) for each in (manifest.config, config.record()))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    other_settings = [
        name for name in changed if name not in {*paths, *manifest.inputs} and name.split(".")[0] != PARALLEL
    ]
    current = former_names(type(config))
    for name in other_settings[:MAX_SHOWN]:
        yield f"{current.get(name, name)} was {_shown(before.get(name))}, and is {_shown(after.get(name))}"
    if len(other_settings) > MAX_SHOWN:
        yield f"{len(other_settings) - MAX_SHOWN} more settings changed"
    for role in {**manifest.inputs, **paths}:
        if role not in manifest.inputs or role not in paths:
            yield f"{role} {'is new' if role in paths else 'is gone'}"
        elif role in hashes and hashes[role] != manifest.inputs[role]["hash"]:
            yield f"{role} changed: {paths[role]}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield settings with dotted names, in the spelling of `StageConfig.inputs`."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
