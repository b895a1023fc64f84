"""A PEFT adapter directory <-> an adapter: merged into a Source as that is read, run beside a base, or trained.

Merges LoRA with its variants rsLoRA and DoRA, on linear layers and embeddings, and tensors saved whole; a base whose
weights are quantized has no exact merge and is refused by what calls this. What is run beside the base, quantized or
not, is LoRA and rsLoRA of the layers' matrices; what is trained and written may be DoRA and the head's, too.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna import artifact
from puna.checkpoint.directory import find_file, read_json, write_json
from puna.checkpoint.hf_config import refuse_code
from puna.checkpoint.layout import StoredTensor, read_header
from puna.checkpoint.source import Source, disk_name, tensor_shapes
from puna.checkpoint.weights import FLOATS, read_float, read_floats
from puna.checkpoint.writer import Entry, write_file
from puna.errors import CheckpointError
from puna.model.adapted import HEAD, AdaptedLinear, adapted_modules
from puna.model.config import ADAPTED, LlamaConfig
from puna.model.llama import Llama
from puna.model.lora import Lora, LowRank

ADAPTER_HINT = (
    "`puna merge` makes a checkpoint of it and its base, `puna serve BASE --adapters FOLDER` runs it beside its base, "
    "and training goes on with start = BASE and adapter.start = the adapter"
)
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# The parts of one layer's adapter, as PEFT names them.
DOWN, UP = "lora_A.weight", "lora_B.weight"
EMBEDDING_DOWN, EMBEDDING_UP = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"
# Saved whole: in the place of the base's tensor, or (what PEFT does for embeddings) beside the two matrices.
WHOLE, BASE_LAYER = "weight", "base_layer.weight"
PARTS = (DOWN, UP, EMBEDDING_DOWN, EMBEDDING_UP, MAGNITUDE, BASE_LAYER, WHOLE)

# What these settings must be, where they are given: others change what is computed in ways that are not merged here.
FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    # The other kinds (pissa, olora, loftq, ...) change the base's weights before training.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "use_qalora": (False,),
    "target_parameters": (None, []),
}
ABSENT = (
    "layer_replication", "megatron_config", "trainable_token_indices", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "alora_invocation_tokens",
)  # fmt: skip
FIXED |= dict.fromkeys(ABSENT, (None, False))


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: `parts` maps a tensor of the base to what is stored for it."""

    path: Path
    base_name: str
    alpha: float
    alpha_pattern: Mapping[str, float]
    is_rank_stabilized: bool
    layout: Mapping[str, StoredTensor]
    parts: Mapping[str, Mapping[str, str]]

    @property
    def linears(self) -> dict[str, Mapping[str, str]]:
        """The parts beside matrices that linear layers multiply with: neither embeddings nor tensors saved whole."""
        return {name: parts for name, parts in self.parts.items() if set(parts) <= {DOWN, UP, MAGNITUDE}}

    def read(self, name: str, part: str) -> torch.Tensor:
        return read_float(self.layout, self.parts[name][part]).float()

    def scale(self, name: str, rank: int) -> float:
        """Return what the product of a layer's two matrices is multiplied by."""
        module = name.removesuffix(".weight")
        matches = (alpha for key, alpha in self.alpha_pattern.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        return next(matches, self.alpha) / (rank**0.5 if self.is_rank_stabilized else rank)


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter's config and headers; CheckpointError for what is not LoRA, or not safetensors."""
    config_path, weights_path = (find_file(directory, name) for name in (CONFIG_NAME, WEIGHTS_NAME))
    if config_path is None or weights_path is None:
        missing = WEIGHTS_NAME if config_path else CONFIG_NAME
        hint = "A pickled adapter_model.bin is never read; save the adapter as safetensors"
        raise CheckpointError(f"{directory} has no {missing}", expected="an adapter as PEFT writes it", hint=hint)
    raw = read_json(config_path)
    refuse_code(raw, config_path)
    for key, allowed in FIXED.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{config_path}: {key} = {raw[key]!a:.100}", expected=repr(allowed[0]))
    pattern = raw.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{config_path}: alpha_pattern = {pattern!a:.100}", expected="names with numbers")
    layout = read_header(weights_path)
    if bool(raw.get("use_dora")) != any(key.endswith(MAGNITUDE) for key in layout):
        raise CheckpointError(
            f"{config_path}: use_dora and the tensors of {WEIGHTS_NAME} differ", expected="both, or none"
        )
    base_name = raw.get("base_model_name_or_path")
    return Adapter(
        directory,
        base_name if isinstance(base_name, str) else "",
        _positive(raw, "lora_alpha", config_path),
        {_module_pattern(key, config_path): _positive(pattern, key, config_path) for key in pattern},
        raw.get("use_rslora") is True,
        layout,
        _parts(layout, weights_path),
    )


def merged(base: Source, adapter: Adapter) -> Source:
    """Return the base with the adapter added to each tensor as it is read, in float32."""
    _require_fit(adapter, base.config)
    return replace(base, format=f"{base.format} with an adapter", read=partial(_read_merged, base, adapter))


def require_runnable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits this network and can be run beside it."""
    _require_fit(adapter, config)
    for name, parts in adapter.parts.items():
        if set(parts) != {DOWN, UP} or not run_path(name).endswith(ADAPTED):
            raise CheckpointError(
                f"{adapter.path}: {next(iter(parts.values()))!a}",
                expected="lora_A and lora_B of the layers' matrices, which is what runs beside a base",
                hint="`puna merge` makes a checkpoint of any adapter and its base",
            )


def require_trainable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits this network and all of it can be trained on."""
    _require_fit(adapter, config)
    for name, parts in adapter.parts.items():
        if name not in adapter.linears or not run_path(name).endswith((*ADAPTED, HEAD)):
            raise CheckpointError(
                f"{adapter.path}: {next(iter(parts.values()))!a}",
                expected="matrices beside those of the layers and the head, which is what is trained here",
            )


def read_lora(adapter: Adapter) -> Lora:
    """Return the weights beside linear layers as they are stored, mapped from the file."""
    tensors = read_floats(adapter.layout)
    for key, tensor in tensors.items():
        if not tensor.abs().amax().isfinite():
            raise CheckpointError(f"{adapter.path}: {key!a} has values that are not finite", expected="numbers")
    lora: dict[str, LowRank] = {}
    for name, parts in adapter.linears.items():
        down_RI, up_OR = tensors[parts[DOWN]], tensors[parts[UP]]
        lora[run_path(name)] = LowRank(down_RI, up_OR, adapter.scale(name, down_RI.shape[0]))
    return lora


def read_magnitudes(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return DoRA's lengths of the rows by the paths of the modules; none for other adapters."""
    return {
        run_path(name): adapter.read(name, MAGNITUDE).flatten()
        for name, parts in adapter.linears.items()
        if MAGNITUDE in parts
    }


def is_adapter(directory: Path) -> bool:
    """Tell whether a directory holds an adapter and no checkpoint."""
    return (directory / CONFIG_NAME).is_file() and not (directory / "config.json").exists()


def base_of(directory: Path) -> Path | None:
    """Return the base that an adapter was trained beside, by its lineage or by the path it names, if it is here."""
    places: list[Path] = []
    if artifact.is_artifact(directory):
        trained_beside = artifact.read_manifest(directory).inputs.get("start")
        places += [directory / trained_beside["path"]] if trained_beside else []
    config_path = find_file(directory, CONFIG_NAME)
    named = read_json(config_path).get("base_model_name_or_path") if config_path else None
    if isinstance(named, str) and named:
        places += [directory / named, Path(named)]
    return next((place.resolve() for place in places if place.is_dir()), None)


def checkpoint_at(path: Path) -> Path:
    """Return a checkpoint's path as it is, and for an adapter's that of its base; CheckpointError if that is not here.

    A base whose manifest tells that it is another one by now is none.
    """
    if not is_adapter(path):
        return path
    base = base_of(path)
    if base is None:
        raise CheckpointError(f"{path} is an adapter, and its base is not here", expected="both", hint=ADAPTER_HINT)
    trained_beside = artifact.read_manifest(path).inputs.get("start") if artifact.is_artifact(path) else None
    if trained_beside and artifact.is_artifact(base) and artifact.content_hash(base) != trained_beside["hash"]:
        raise CheckpointError(
            f"{path} is an adapter, and {base} is not what it was trained beside any more", expected="the same base"
        )
    return base


def save_adapter(directory: Path, model: Llama, *, base_name: str) -> None:
    """Write the adapter that a network carries as PEFT does; `base_name` is the name or the path of the base."""
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
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
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
    """Name the modules as short as it can be: "q_proj" where every layer's is meant, otherwise one by one."""
    counts = Counter(name.rpartition(".")[2] for name in names)
    every = {name for name, count in counts.items() if count == (1 if name == HEAD else model.config.num_layers)}
    return sorted({name.rpartition(".")[2] if name.rpartition(".")[2] in every else name for name in names})


def run_path(name: str) -> str:
    """Return the path in the network of the module that a tensor of the base belongs to."""
    return name.removeprefix("model.").removesuffix(".weight")


def _disk_path(path: str) -> str:
    return disk_name(f"{path}.weight").removesuffix(".weight")


def _require_fit(adapter: Adapter, config: LlamaConfig) -> None:
    shapes = tensor_shapes(config)
    for name, parts in adapter.parts.items():
        if name not in shapes:
            hint = "The adapter belongs to another base" + (f": {adapter.base_name!a}" if adapter.base_name else "")
            raise CheckpointError(f"{adapter.path}: an adapter for {name!a}", expected="tensors of the base", hint=hint)
        _require_shapes(adapter, name, parts, shapes[name])


def _read_merged(base: Source, adapter: Adapter, name: str) -> torch.Tensor:
    parts = adapter.parts.get(name)
    if parts is None:
        return base.read(name)
    if WHOLE in parts:
        return adapter.read(name, WHOLE)
    weight = adapter.read(name, BASE_LAYER) if BASE_LAYER in parts else base.read(name).float()
    down, up = (adapter.read(name, part) for part in _matrices(parts))
    delta = (up @ down) * adapter.scale(name, down.shape[0])
    weight = weight + (delta.T if EMBEDDING_DOWN in parts else delta)
    if MAGNITUDE not in parts:
        return weight
    # DoRA (arXiv 2402.09353): the direction of the sum, the length that was learned.
    magnitude = adapter.read(name, MAGNITUDE).flatten()
    if EMBEDDING_DOWN in parts:  # each dimension of the vectors has a length, over all tokens
        return weight * (magnitude / weight.norm(dim=0))
    return weight * (magnitude / weight.norm(dim=1))[:, None]


def _matrices(parts: Mapping[str, str]) -> tuple[str, str]:
    return (EMBEDDING_DOWN, EMBEDDING_UP) if EMBEDDING_DOWN in parts else (DOWN, UP)


class Place(NamedTuple):
    """The tensor of the base that a stored tensor changes, and which of PARTS it is."""

    name: str
    part: str


def place_of(key: str) -> Place | None:
    """Read the name of a stored tensor; None if it is none of an adapter."""
    part = next((part for part in PARTS if key.endswith(f".{part}")), None)
    if part is None or not key.startswith(PREFIX):
        return None
    module = key.removeprefix(PREFIX).removesuffix(f".{part}").removesuffix(".modules_to_save")
    return Place(f"{module}.weight", part)


def _parts(layout: Mapping[str, StoredTensor], path: Path) -> dict[str, dict[str, str]]:
    parts: dict[str, dict[str, str]] = {}
    for key in layout:
        place = place_of(key)
        if place is None:
            raise CheckpointError(
                f"{path}: tensor {key!a}", expected=f"{PREFIX}... ending in one of {', '.join(PARTS)}"
            )
        parts.setdefault(place.name, {})[place.part] = key
    if not parts:
        raise CheckpointError(f"{path} holds no tensors", expected="an adapter's")
    return parts


def _require_shapes(adapter: Adapter, name: str, parts: Mapping[str, str], shape: tuple[int, ...]) -> None:
    for part, (given, expected) in dict(_expected_shapes(adapter, parts, shape)).items():
        if given != expected:
            raise CheckpointError(
                f"{adapter.path}: {parts.get(part, f'{part} of {name}')!a} has shape {given or 'none'}",
                expected=f"{list(expected)}, as the base has it",
                hint="The adapter belongs to another base, or was trained with another vocabulary",
            )
    for key in parts.values():
        if adapter.layout[key].dtype not in FLOATS:
            raise CheckpointError(
                f"{adapter.path}: {key!a} is {adapter.layout[key].dtype}", expected=" or ".join(FLOATS)
            )


def _expected_shapes(
    adapter: Adapter, parts: Mapping[str, str], shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Yield each part's shape as it is and as the base asks for it."""
    stored = {part: adapter.layout[key].shape for part, key in parts.items()}
    for part in (WHOLE, BASE_LAYER):
        if part in parts:
            yield part, (stored[part], shape)
    if WHOLE in parts:
        return
    down, up = _matrices(parts)
    out_dim, in_dim = shape if down == DOWN else shape[::-1]
    rank = stored[down][0] if stored.get(down) else 0
    yield down, (stored.get(down, ()), (rank, in_dim))
    yield up, (stored.get(up, ()), (out_dim, rank))
    if MAGNITUDE in stored:
        yield MAGNITUDE, ((stored[MAGNITUDE] + (0,))[:1], (out_dim,))


def _positive(raw: Mapping[str, Any], key: str, path: Path) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise CheckpointError(f"{path}: {key!a} = {value!a:.100}", expected="a positive number")
    return float(value)


def _module_pattern(key: str, path: Path) -> str:
    """Return a key of alpha_pattern as PEFT uses it: a regular expression; only plain ones are taken."""
    pattern = key.removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"(\w|\.|\\\.)+", pattern):
        raise CheckpointError(f"{path}: alpha_pattern has {key!a:.100}", expected="names of modules")
    return pattern
