"""A stage's config -> its artifact, made once, under a key that hashes all that decides it.

A stage runs when no artifact with its key is there; what was interrupted is resumed by the stage itself.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from puna import __version__
from puna.pipeline.artifacts import artifact, licence
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import StageConfig, recorded_name
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.run import Run, ranks
from puna.pipeline.stages import Stage
from puna.pipeline.storage.faults import naming_newest
from puna.pipeline.storage.files import make_directory

# The table by which a stage says that processes can divide its work.
PARALLEL = "parallel"
# What a run took, beside its artifact; the seconds of an interrupted run, in its directory.
COST = f"{artifact.RECORD_PREFIX}cost.json"
SECONDS = "seconds"
SECONDS_BETWEEN_LOOKS = 0.1


def stage_key(stage: Stage, config: StageConfig, hashes: dict[str, str]) -> str:
    """Hash what decides a stage's output: its config with every path replaced by the hash of what stands there."""
    settings = config.record()
    told = {
        "stage": stage.verb,
        "version": __version__,
        # How processes divide the work does not decide what comes out.
        "config": {name: value for name, value in _without_paths(settings, config).items() if name != PARALLEL},
        "inputs": hashes,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def perform(
    stage: Stage,
    config: StageConfig,
    path: Path,
    console: Console,
    *,
    ignore_receipts: bool = False,
    foreseen_seconds: float | None = None,
) -> bool:
    """Make the artifact at `path`, unless it is there already with the same key; return whether work was done.

    An input that was altered stops it. So does a receipt that did not hold, of an input or of the artifact itself,
    unless `ignore_receipts`; the artifact stays. Of several processes one makes it, and the others help it with
    what can be divided, or wait. `foreseen_seconds` stands beside the time that it took in run_cost.json.
    """
    inputs = config.inputs()
    _require_apart(path, inputs)
    hashes = {role: artifact.content_hash(source) for role, source in inputs.items()}
    key = stage_key(stage, config, hashes)
    rank, num_ranks = ranks()
    if rank:
        return _help(stage, config, path, key)
    if is_there(stage, path, key):
        _require_receipts(path, ignore_receipts)
        return False
    for parent in filter(None, map(artifact.find_artifact, inputs.values())):
        artifact.verify(parent)
        _require_receipts(parent, ignore_receipts or not config.requires_receipts())
    directory = path.parent / ".runs" / path.name
    make_directory(directory)
    with _only_run(directory):
        with artifact.writing(path) as output, naming_newest(output, directory):
            _prepare(directory, key, config)
            run = Run(stage.verb, key, output, directory, console, hashes=hashes, num_ranks=num_ranks)
            if path.exists():
                run.log(f"{path} is there, but not what these settings and inputs give; it is replaced at the end")
            with _timed(directory):
                import_module(stage.module).run(config, run)
            cost = {"seconds": read_seconds(directory), "foreseen_seconds": foreseen_seconds}
            artifact.write_text(output / COST, json.dumps(cost) + "\n")
            for record in ("metrics.jsonl", "config.json"):
                if (directory / record).exists():
                    shutil.copy(directory / record, output / (artifact.RECORD_PREFIX + record))
            artifact.commit(output, path, _manifest(stage, config, path, hashes, run))
        _drop_scratch(directory)
    _require_receipts(path, ignore_receipts)
    return True


def _help(stage: Stage, config: StageConfig, path: Path, key: str) -> bool:
    """Do this process's share of what rank 0 makes, if the stage can be divided; return once it is there."""
    if is_there(stage, path, key):
        return False
    if hasattr(config, PARALLEL):
        rank, num_ranks = ranks()
        directory = path.parent / ".runs" / path.name
        run = Run(stage.verb, key, path, directory, Console(quiet=True), rank=rank, num_ranks=num_ranks)
        while not is_prepared(directory, key):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        import_module(stage.module).run(config, run)
    while not is_there(stage, path, key):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True


def preview(stage: Stage, config: StageConfig, path: Path, console: Console) -> Path:
    """Let a stage show what it would do for the artifact at `path`; return the directory that keeps what it showed."""
    inputs = config.inputs()
    _require_apart(path, inputs)
    key = stage_key(stage, config, {role: artifact.content_hash(source) for role, source in inputs.items()})
    # Not the run's own directory: an interrupted run with other settings goes on from there.
    directory = path.parent / ".runs" / f"{path.name}.preview"
    output = directory / "output"
    directory.mkdir(parents=True, exist_ok=True)
    with _only_run(directory), naming_newest(directory):
        _prepare(directory, key, config)
        output.mkdir(exist_ok=True)
        import_module(stage.module).run(config, Run(stage.verb, key, output, directory, console, is_preview=True))
        _drop_scratch(directory)
    return directory


def _require_receipts(path: Path, ignore_receipts: bool) -> None:
    if not ignore_receipts:
        artifact.require_receipts(path)


def _require_apart(path: Path, inputs: dict[str, Path]) -> None:
    """Refuse an output that would replace one of its inputs, or become part of one."""
    output = path.resolve()
    for role, source in inputs.items():
        given = Path(os.path.realpath(source))  # Unlike resolve(), it takes a loop of links as it stands.
        if output == given or output in given.parents or given in output.parents:
            raise ConfigError(
                f"{role} = {source} and the output {path} lie in one another", hint="Choose another output"
            )


def is_there(stage: Stage, path: Path, key: str) -> bool:
    """Tell whether `path` holds what this key gives; ArtifactError if it holds what is not this stage's to replace.

    Example:
        >>> is_there(stage, Path("build/not-made-yet"), key)
        False
    """
    if not path.exists():
        return False
    if not artifact.is_artifact(path):
        raise ArtifactError(
            f"{path} exists and is not an artifact", hint="Choose another output, or remove it yourself"
        )
    manifest = artifact.read_manifest(path)
    if manifest.stage != stage.verb:
        raise ArtifactError(
            f"{path} was made by '{manifest.stage}'",
            expected=f"an output of '{stage.verb}', or nothing",
            hint="Choose another output, or remove it yourself",
        )
    return manifest.key == key and artifact.is_whole(path, manifest)


def _manifest(stage: Stage, config: StageConfig, path: Path, hashes: dict[str, str], run: Run) -> artifact.Manifest:
    inputs: dict[str, dict[str, str]] = {}
    for role, source in config.inputs().items():
        parent = artifact.find_artifact(source)
        kind = artifact.read_manifest(parent).kind if parent else "raw"
        inputs[role] = {"path": os.path.relpath(source, path), "kind": kind, "hash": hashes[role]}
    return artifact.Manifest(
        kind=run.kind or stage.writes,
        stage=stage.verb,
        key=run.key,
        config=config.record(),
        inputs=inputs,
        files={},
        licences=sorted(_licences(config) | run.licences),
        records=sorted(run.records),
    )


def _licences(config: StageConfig) -> set[str]:
    """Collect what a stage's output inherits: its own `licence` if it states one, and those of what it is made of.

    A stage with an input that it only looks at names the others in a method `made_of`.
    """
    stated = licence.identify(getattr(config, "licence", ""))
    found = {stated} if stated else set[str]()
    for source in getattr(config, "made_of", config.inputs)().values():
        inherited = licences_of(source)
        if stated and artifact.find_artifact(source) is None:
            inherited.discard(licence.UNKNOWN)  # the statement is about these raw files
        found |= inherited
    return found


def _prepare(directory: Path, key: str, config: StageConfig) -> None:
    """Keep the run directory for the same key, empty it for another."""
    if not is_prepared(directory, key):
        for entry in directory.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        artifact.write_text(directory / "key", key)
        artifact.fsync(directory)
    artifact.write_text(directory / "config.json", json.dumps(config.record(), indent=2) + "\n")


def is_prepared(directory: Path, key: str) -> bool:
    """Tell whether a run directory belongs to a run with this key that has not finished.

    Example:
        >>> is_prepared(Path("build/.runs/never-run"), key="0a1b")
        False
    """
    marker = directory / "key"
    return marker.is_file() and marker.read_bytes() == key.encode()


@contextlib.contextmanager
def _timed(directory: Path) -> Iterator[None]:
    """Add the seconds of the block to those of the interrupted executions before it."""
    start, before = time.monotonic(), read_seconds(directory)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a full disk: what stopped the block is told, not this
            artifact.write_text(directory / SECONDS, f"{before + time.monotonic() - start:.3f}")


def read_seconds(directory: Path) -> float:
    """Return how long the executions of a run took that are over; a killed one does not count.

    Example:
        >>> read_seconds(Path("build/.runs/never-run"))
        0.0
    """
    path = directory / SECONDS
    try:
        return max(0.0, float(path.read_bytes())) if path.is_file() else 0.0
    except ValueError:  # torn by a power loss
        return 0.0


def _drop_scratch(directory: Path) -> None:
    """Remove what only an interrupted run would need, and the key, so that the next one starts afresh."""
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    for name in ("key", SECONDS):
        (directory / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _only_run(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"another run is writing beside {directory}", hint="Wait for it, or choose another output"
            ) from None
        yield


def _without_paths(settings: Any, value: Any) -> Any:
    """Blank the paths in dumped settings: the same contents elsewhere give the same key."""
    if isinstance(value, Path):
        return None
    if isinstance(settings, dict):
        if isinstance(value, BaseModel):
            value = {recorded_name(type(value), field): getattr(value, field) for field in type(value).model_fields}
        return {name: _without_paths(item, value[name]) for name, item in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(item, original) for item, original in zip(settings, value, strict=True)]
    return settings
