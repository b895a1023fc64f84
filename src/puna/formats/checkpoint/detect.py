"""Format detection: a path -> a Source. Reads Hugging Face and Meta directories, GGUF files, adapters on a base."""

from pathlib import Path
from typing import Literal, NamedTuple

from puna.formats.checkpoint.adapters.adapter import open_adapter
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME as ADAPTER_NAME
from puna.formats.checkpoint.adapters.merge import merge_notes, merged
from puna.formats.checkpoint.checkpoint import CONFIG_NAME, Checkpoint
from puna.formats.checkpoint.gguf.container import is_gguf
from puna.formats.checkpoint.gguf.reader import open_gguf
from puna.formats.checkpoint.meta.reader import PARAMS_NAME, open_meta
from puna.formats.checkpoint.source import Source
from puna.pipeline.errors import CheckpointError

Format = Literal["Hugging Face", "Meta", "GGUF", "adapter"]
MARKS: tuple[tuple[str, Format], ...] = (
    (ADAPTER_NAME, "adapter"),
    (CONFIG_NAME, "Hugging Face"),
    (PARAMS_NAME, "Meta"),
)


class Opened(NamedTuple):
    """A model, and a note of the reader for the log. Example: see `open_source`."""

    source: Source
    note: str = ""


def find_format(path: Path) -> Format:
    """Return the format by file names, or by the magic number of GGUF.

    Raises:
        CheckpointError: The path holds no known format.
    """
    if path.is_file() and is_gguf(path):
        return "GGUF"
    for name, format in MARKS:
        if (path / name).exists():
            return format
    expected = f"a .gguf file, or a directory with one of {', '.join(name for name, _ in MARKS)}"
    inside = sorted(file.name for file in path.glob("*.gguf")) if path.is_dir() else []
    raise CheckpointError(
        f"{path} {'holds no model that Puna knows' if path.exists() else 'does not exist'}",
        expected=expected,
        hint=f"Name the file: {path / inside[0]}" if inside else "",
    )


def open_source(path: Path, *, base: Path | None = None) -> Opened:
    """Open a model in any format without reading weights.

    Args:
        path: Directory or GGUF file.
        base: Base model of an adapter; the adapter is merged on reading.

    Example:
        source, note = open_source(Path("downloads/llama.gguf"))
    """
    format = find_format(path)
    if base is not None and format != "adapter":
        raise CheckpointError(f"a base for {path}, which is no adapter", expected="a base only beside an adapter")
    if format == "GGUF":
        return Opened(open_gguf(path))
    if format == "Meta":
        opened = open_meta(path)
        return Opened(opened.source, f"the pickles were parsed by a confined process: {opened.confinement}")
    if format == "Hugging Face":
        return Opened(Checkpoint.open(path).source())
    return _open_merged(path, base)


def _open_merged(path: Path, base: Path | None) -> Opened:
    adapter = open_adapter(path)
    if base is None:
        named = f" ({adapter.base_name})" if adapter.base_name else ""
        raise CheckpointError(
            f"{path} is an adapter", expected=f"the adapter with its base model{named}", hint="Give --base"
        )
    format = find_format(base)
    if format == "GGUF" or (format == "Hugging Face" and Checkpoint.open(base).is_quantized):
        raise CheckpointError(
            f"base {base} may be quantized: rounded weights cannot hold the adapter's update",
            expected="the float weights of the adapter's training",
        )
    opened = open_source(base)
    source = merged(opened.source, adapter)
    notes = (opened.note, *merge_notes(adapter, opened.source.config))
    return Opened(source, "; ".join(filter(None, notes)))
