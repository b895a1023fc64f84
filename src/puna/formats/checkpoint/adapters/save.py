"""A model with an adapter -> adapter_config.json and safetensors in PEFT's layout."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import DOWN, MAGNITUDE, PREFIX, UP
from puna.formats.checkpoint.safe_files import write_json
from puna.formats.checkpoint.safetensors.writer import Entry, write_file
from puna.formats.checkpoint.source import disk_name
from puna.model.adapters.adapted import HEAD, AdaptedLinear, adapted_modules
from puna.model.llama import Llama


def save_adapter(directory: Path, model: Llama, *, base_name: str) -> None:
    """Write the adapter of a model in PEFT's layout; `base_name` is the name or path of the base."""
    modules = adapted_modules(model)
    entries = [entry for path, module in modules.items() for entry in _entries(path, module)]
    write_file(directory / WEIGHTS_NAME, entries)
    write_json(directory / CONFIG_NAME, _render(model, modules, base_name))


def _entries(path: str, module: AdaptedLinear) -> Iterator[Entry]:
    parts = {DOWN: module.down_RI, UP: module.up_OR, MAGNITUDE: module.magnitude_O}
    for part, tensor in parts.items():
        if tensor is not None:
            yield Entry(f"{PREFIX}{_disk_path(path)}.{part}", tensor.dtype, tuple(tensor.shape), tensor.detach)


def _render(model: Llama, modules: Mapping[str, AdaptedLinear], base_name: str) -> dict[str, Any]:
    names = {path: _disk_path(path) for path in modules}
    ranks = {names[path]: module.down_RI.shape[0] for path, module in modules.items()}
    # Rounded, since alpha / rank * rank is not always alpha.
    alphas = {names[path]: round(module.alpha, 9) for path, module in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": max(module.dropout for module in modules.values()),
        "target_modules": _target_names(model, list(names.values())),
        "use_rslora": any(module.is_rank_stabilized for module in modules.values()),
        "use_dora": any(module.magnitude_O is not None for module in modules.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _target_names(model: Llama, names: list[str]) -> list[str]:
    """Return the shortest names: "q_proj" for all layers' q_proj, otherwise one path per module."""
    counts = Counter(name.rpartition(".")[2] for name in names)
    every = {name for name, count in counts.items() if count == (1 if name == HEAD else model.config.num_layers)}
    return sorted({name.rpartition(".")[2] if name.rpartition(".")[2] in every else name for name in names})


def _disk_path(path: str) -> str:
    return disk_name(f"{path}.weight").removesuffix(".weight")
