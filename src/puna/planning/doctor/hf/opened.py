"""A directory -> Opened: the parsed files, shared by all checks; an unreadable file counts as empty."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.compressed.config import Quantization
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.safetensors.header import StoredTensor
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.report import Report

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_CONFIG, SPECIALS_MAP = "tokenizer_config.json", "special_tokens_map.json"


@dataclass
class Opened:
    """Parsed parts of a directory; None or empty for unreadable parts.

    Example: see `open_directory`.
    """

    path: Path
    report: Report
    json: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: LlamaConfig | None = None
    quantization: Quantization | None = None
    layout: dict[str, StoredTensor] = field(default_factory=dict)
    is_whole: bool = True  # whether every weights file is readable
    tokenizer: Tokenizer | None = None
    template: str | None = None


def open_directory(path: Path, report: Report) -> Opened:
    """Read config.json, generation_config.json, tokenizer_config.json and special_tokens_map.json."""
    opened = Opened(path, report)
    for name in (CONFIG, GENERATION, TOKENIZER_CONFIG, SPECIALS_MAP):
        opened.json[name] = {}
        with report.attempt("file-unreadable", name):
            file = find_safely(path, name)
            if file:
                opened.json[name] = read_json(file)
            elif name == CONFIG and not (path / name).is_symlink():
                remedy = "Copy config.json from the model that these weights belong to"
                report.add("config-missing", name, "no config.json; expected the model's sizes", remedy)
    return opened


def find_safely(path: Path, name: str) -> Path | None:
    """Return the real path of a file, or None for a missing file or an unsafe link; check_files reports the problem."""
    try:
        return find_file(path, name)
    except CheckpointError:
        return None


def text_dtype(raw: dict[str, Any]) -> str | None:
    """Return the dtype of config.json, from "torch_dtype" or "dtype"."""
    value = raw.get("torch_dtype", raw.get("dtype"))
    return value.removeprefix("torch.") if isinstance(value, str) else None
