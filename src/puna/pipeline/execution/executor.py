"""A stage's config -> the stage's artifact, made once per key.

The key hashes all determinants of the content. A stage runs unless an artifact with the same key exists; a stage
resumes an interrupted run with the same key.
"""

import contextlib
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
from puna.pipeline.storage.files import locked, make_directory

# The settings that divide the work of a stage among processes (`StageConfig.is_parallel`).
PARALLEL = "parallel"
# Time of the run, in the artifact (COST) and in the directory of an interrupted run (SECONDS).
COST = f"{artifact.RECORD_PREFIX}cost.json"
SECONDS = "seconds"
SECONDS_BETWEEN_LOOKS = 0.1


def stage_key(stage: Stage, config: StageConfig, hashes: dict[str, str]) -> str:
    """Hash all determinants of an artifact's content: stage, version, settings without paths, hashes of inputs."""
    settings = config.record()
    content = {
        "stage": stage.verb,
        "version": __version__,
        # The division of work among processes does not change the result.
        "config": {name: value for name, value in _without_paths(settings, config).items() if name != PARALLEL},
        "inputs": hashes,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def perform(
    stage: Stage,
    config: StageConfig,
    path: Path,
    console: Console,
    *,
    ignore_receipts: bool = False,
    foreseen_seconds: float | None = None,
) -> bool:
    """Make the artifact at `path` unless an artifact with the same key exists; return whether the stage ran.

    An artifact of the same stage with a different key is replaced once the new artifact is complete. With several
    processes rank 0 makes the artifact; the remaining processes share the work of a parallel stage, or wait.

    Args:
        ignore_receipts: Continue after a failed receipt of an input or of the artifact; the artifact is always kept.
        foreseen_seconds: Forecast of a dry run, written to run_cost.json beside the measured time.

    Raises:
        ArtifactError: An input was altered, a concurrent run writes the same artifact, or `path` holds foreign files.
        ConfigError: The output and an input overlap.
        ReceiptError: A receipt of an input or of the artifact failed.

    Example:
        >>> stage = next(stage for stage in STAGES if stage.verb == "sft")
        >>> perform(stage, config, Path("build/sft"), Console())
        True
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
    directory = run_directory(path)
    make_directory(directory)
    with _only_run(directory):
        with artifact.writing(path) as output, naming_newest(output, directory):
            _prepare(directory, key, config)
            run = Run(stage.verb, key, output, directory, console, hashes=hashes, num_ranks=num_ranks)
            if path.exists():
                run.log(f"{path} was made from other settings or inputs, and is replaced at the end")
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
    """Do the local share of a parallel stage; return once rank 0 has made the artifact."""
    if is_there(stage, path, key):
        return False
    if config.is_parallel:
        rank, num_ranks = ranks()
        directory = run_directory(path)
        run = Run(stage.verb, key, path, directory, Console(quiet=True), rank=rank, num_ranks=num_ranks)
        while not is_prepared(directory, key):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        import_module(stage.module).run(config, run)
    while not is_there(stage, path, key):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True


def preview(stage: Stage, config: StageConfig, path: Path, console: Console) -> Path:
    """Let a stage show the planned work for the artifact at `path`; return the directory with the preview.

    Example:
        >>> preview(stage, config, Path("build/sft"), Console()).as_posix()
        'build/.runs/sft.preview'
    """
    inputs = config.inputs()
    _require_apart(path, inputs)
    key = stage_key(stage, config, {role: artifact.content_hash(source) for role, source in inputs.items()})
    # NOTE: the run directory may hold an interrupted run with other settings.
    directory = run_directory(path.parent / f"{path.name}.preview")
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
    """Refuse an output equal to, around or within an input."""
    output = path.resolve()
    for role, source in inputs.items():
        path_of_input = Path(os.path.realpath(source))  # NOTE: resolve() would fail on a loop of links.
        if output == path_of_input or output in path_of_input.parents or path_of_input in output.parents:
            raise ConfigError(f"{role} = {source} and the output {path} overlap", hint="Choose another output")


def is_there(stage: Stage, path: Path, key: str) -> bool:
    """Return whether `path` holds the artifact with `key`.

    Raises:
        ArtifactError: The path holds files, but no artifact of the stage.

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
    kind = run.kind or stage.writes[0]
    assert kind in stage.writes, f"{stage.verb} writes {kind}, which its row in stages.py does not list"
    return artifact.Manifest(
        kind=kind,
        stage=stage.verb,
        key=run.key,
        config=config.record(),
        inputs=inputs,
        files={},
        licences=sorted(_licences(config) | run.licences),
        records=sorted(run.records),
    )


def _licences(config: StageConfig) -> set[str]:
    """Return the licences of a stage's output: the stated licence, and the licences of the inputs in `made_of`."""
    stated = licence.identify(config.stated_licence())
    licences = {stated} if stated else set[str]()
    for source in config.made_of().values():
        inherited = licences_of(source)
        if stated and artifact.find_artifact(source) is None:
            inherited.discard(licence.UNKNOWN)  # the statement covers raw files
        licences |= inherited
    return licences


def _prepare(directory: Path, key: str, config: StageConfig) -> None:
    """Keep the run directory of an interrupted run with the same key; otherwise empty the directory."""
    if not is_prepared(directory, key):
        for entry in directory.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        artifact.write_text(directory / "key", key)
        artifact.fsync(directory)
    config.write_record(directory)


def run_directory(path: Path) -> Path:
    """Return the run directory of the artifact at `path`.

    Example:
        >>> run_directory(Path("build/sft")).as_posix()
        'build/.runs/sft'
    """
    return path.parent / ".runs" / path.name


def is_prepared(directory: Path, key: str) -> bool:
    """Return whether a run directory belongs to an unfinished run with `key`.

    Example:
        >>> is_prepared(Path("build/.runs/never-run"), key="0a1b")
        False
    """
    marker = directory / "key"
    return marker.is_file() and marker.read_bytes() == key.encode()


@contextlib.contextmanager
def _timed(directory: Path) -> Iterator[None]:
    """Add the seconds of the block to the seconds of interrupted executions."""
    start, before = time.monotonic(), read_seconds(directory)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a full disk must not hide the error of the block
            artifact.write_text(directory / SECONDS, f"{before + time.monotonic() - start:.3f}")


def read_seconds(directory: Path) -> float:
    """Return the total time of finished executions of a run; the time of a killed execution is missing.

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
    """Remove the files for resuming and the key, so the next run starts from the beginning."""
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    for name in ("key", SECONDS):
        (directory / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _only_run(directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / "lock", wait=False))
        except BlockingIOError:
            raise ArtifactError(
                f"another run is writing beside {directory}", hint="Wait for that run, or choose another output"
            ) from None
        yield


def _without_paths(settings: Any, value: Any) -> Any:
    """Replace paths in dumped settings by None: equal contents at different paths give the same key."""
    if isinstance(value, Path):
        return None
    if isinstance(settings, dict):
        if isinstance(value, BaseModel):
            value = {recorded_name(type(value), field): getattr(value, field) for field in type(value).model_fields}
        return {name: _without_paths(item, value[name]) for name, item in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(item, original) for item, original in zip(settings, value, strict=True)]
    return settings
