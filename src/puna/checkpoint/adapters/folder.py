"""A folder of adapters -> the names, one per subfolder. Imports no torch: the server process reads it."""

from pathlib import Path

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_folder(path: Path) -> bool:
    """Tell whether a folder holds an adapter, complete or not: `adapter_config.json` or PEFT's weights."""
    return (path / CONFIG_NAME).is_file() or (path / WEIGHTS_NAME).is_file()


def adapter_names(folder: Path) -> list[str]:
    """Return the names of the adapters in a folder, fit for use or not, in alphabetical order.

    Example:
        adapter_names(Path("customers"))  # ["alba", "brook"]
    """
    return sorted(path.name for path in folder.glob("*") if is_adapter_folder(path))
