"""Adapter directories by path: recognition, names in a folder of adapters, and the base of an adapter.

Imports no torch, for the server process.
"""

import os.path
from pathlib import Path

from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import CheckpointError

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_HINT = (
    "`puna merge` makes a checkpoint of it and its base, `puna serve BASE --adapters FOLDER` runs it beside its base, "
    "and training continues with init_from = BASE and adapter.init_from = the adapter"
)


def is_adapter_folder(path: Path) -> bool:
    """Return whether a folder holds an adapter, complete or not: `adapter_config.json` or PEFT's weights."""
    # NOTE: not Path.is_file, which raises for names that are too long.
    return os.path.isfile(path / CONFIG_NAME) or os.path.isfile(path / WEIGHTS_NAME)


def has_adapter(folder: Path, name: str) -> bool:
    """Return whether an untrusted name is the name of an adapter in a folder, without listing the folder."""
    return name not in ("", "..") and Path(name).name == name and is_adapter_folder(folder / name)


def adapter_names(folder: Path) -> list[str]:
    """Return the names of the adapters in a folder, usable or not, in alphabetical order.

    Example:
        adapter_names(Path("customers"))  # ["alba", "brook"]
    """
    return sorted(path.name for path in folder.glob("*") if is_adapter_folder(path))


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter and no checkpoint; a config.json alone is not a checkpoint."""
    has_model = (directory / "config.json").exists() and any(directory.glob("model*.safetensors*"))
    return (directory / CONFIG_NAME).is_file() and not has_model


def base_of(directory: Path) -> Path | None:
    """Return the base from the adapter's lineage or from the path in the settings; None for a missing path."""
    trained_beside = _trained_beside(directory)
    candidates = [directory / trained_beside["path"]] if trained_beside else []
    config_path = find_file(directory, CONFIG_NAME)
    named = read_json(config_path).get("base_model_name_or_path") if config_path else None
    if isinstance(named, str) and named:
        candidates += [directory / named, Path(named)]
    return next((candidate.resolve() for candidate in candidates if candidate.is_dir()), None)


def checkpoint_at(path: Path) -> Path:
    """Return a checkpoint's path unchanged, and the base's path for an adapter.

    Raises:
        CheckpointError: The adapter's base is missing, or has changed since the training.
    """
    if not is_adapter(path):
        return path
    base = base_of(path)
    if base is None:
        raise CheckpointError(
            f"{path} is an adapter, and its base is not here",
            expected="the base model at the path in the adapter's settings or lineage",
            hint=ADAPTER_HINT,
        )
    trained_beside = _trained_beside(path)
    if trained_beside and artifact.is_artifact(base) and artifact.content_hash(base) != trained_beside["hash"]:
        raise CheckpointError(
            f"adapter {path}: its base {base} has changed since the training", expected="the unchanged base"
        )
    return base


def _trained_beside(directory: Path) -> dict[str, str] | None:
    """Return the manifest's entry of the base that an adapter of Puna was trained beside."""
    return artifact.read_manifest(directory).inputs.get("start") if artifact.is_artifact(directory) else None
