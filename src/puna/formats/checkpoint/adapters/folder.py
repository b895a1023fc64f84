"""A folder of adapters -> the names, one per subfolder. Imports no torch: the server process reads it."""

import os.path
from pathlib import Path

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_folder(path: Path) -> bool:
    """Tell whether a folder holds an adapter, complete or not: `adapter_config.json` or PEFT's weights."""
    # NOTE: not Path.is_file, which raises for names that are too long.
    return os.path.isfile(path / CONFIG_NAME) or os.path.isfile(path / WEIGHTS_NAME)


def has_adapter(folder: Path, name: str) -> bool:
    """Tell whether a client's name is the name of an adapter in a folder, without reading the whole folder."""
    return name not in ("", "..") and Path(name).name == name and is_adapter_folder(folder / name)


def adapter_names(folder: Path) -> list[str]:
    """Return the names of the adapters in a folder, fit for use or not, in alphabetical order.

    Example:
        adapter_names(Path("customers"))  # ["alba", "brook"]
    """
    return sorted(path.name for path in folder.glob("*") if is_adapter_folder(path))
