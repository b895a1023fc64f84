"""A PEFT adapter directory -> Adapter: settings and tensors, opened, checked, and read for inference or training.

LoRA and rsLoRA of the layers' matrices run beside a base, quantized or not. DoRA and LoRA of a separate head can also
be trained. merge.py merges every supported adapter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from puna.formats.checkpoint.adapters.config import AdapterConfig, read_config
from puna.formats.checkpoint.adapters.delta import Delta, stored_ranks
from puna.formats.checkpoint.adapters.fit import require_fit
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import DOWN, HEAD, MAGNITUDE, UP, find_parts
from puna.formats.checkpoint.adapters.patterns import module_settings, overlapping
from puna.formats.checkpoint.hf.weights import read_floats
from puna.formats.checkpoint.safe_files import find_file
from puna.formats.checkpoint.safetensors.header import StoredTensor, read_header
from puna.model.adapters.lora import Lora, LowRank
from puna.model.config import ADAPTED, LlamaConfig
from puna.pipeline.errors import CheckpointError

MERGE_HINT = "`puna merge` makes a checkpoint of any adapter and its base"
# Weights beside adapter_config.json that are not read: what they are, and the way out.
OTHER_WEIGHTS = {
    "adapter_model.bin": "A pickled adapter_model.bin is never read: save_pretrained of PEFT writes safetensors",
    "adapter_0.pt": "torchtune's pickles are never read: FullModelHFCheckpointer writes PEFT's safetensors",
    "adapters.safetensors": "mlx-lm's adapter: mlx_lm.fuse writes a checkpoint of the base and the adapter",
    "adapter.safetensors": "Rename the file if PEFT wrote it, else save the adapter with PEFT's save_pretrained",
}


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: settings, tensors, and notes for the log. Example: see `open_adapter`."""

    path: Path
    delta: Delta
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> AdapterConfig:
        return self.delta.config

    @property
    def base_name(self) -> str:
        return self.config.base_name

    @property
    def is_rank_stabilized(self) -> bool:
        return self.config.is_rank_stabilized

    @property
    def layout(self) -> Mapping[str, StoredTensor]:
        return self.delta.layout

    @property
    def parts(self) -> Mapping[str, Mapping[str, str]]:
        return self.delta.parts

    @property
    def linears(self) -> dict[str, Mapping[str, str]]:
        """The LoRA matrices of linear layers, without embeddings and without tensors saved whole."""
        return {name: parts for name, parts in self.parts.items() if set(parts) <= {DOWN, UP, MAGNITUDE}}


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter's config and headers; CheckpointError for unsupported methods and file formats.

    Example:
        adapter = open_adapter(Path("adapters/acme"))
        merged(Checkpoint.open("models/base").source(), adapter)
    """
    config_path, weights_path = (find_file(directory, name) for name in (CONFIG_NAME, WEIGHTS_NAME))
    if config_path is None:
        given, hint = f"{directory} has no {CONFIG_NAME}", missing_hint(directory)
        raise CheckpointError(given, expected="an adapter as PEFT writes it", hint=hint)
    config = read_config(config_path)
    if weights_path is None:
        raise CheckpointError(
            f"{directory} has no {WEIGHTS_NAME}", expected="an adapter as PEFT writes it", hint=weights_hint(directory)
        )
    layout = read_header(weights_path)
    parts = find_parts(layout, config, weights_path)
    for doubt in doubts(config, layout, parts):
        raise CheckpointError(f"{directory}: {doubt.text}", expected="adapter_config.json and weights of one training")
    return Adapter(directory, Delta(config, layout, parts), (*config.notes, *alpha_notes(config, parts)))


def alpha_notes(config: AdapterConfig, parts: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Return notes on modules whose training alpha is uncertain."""
    if modules := overlapping(config, [name.removesuffix(".weight") for name in parts]):
        yield (
            f"alpha_pattern has two keys with different values for {listed(modules)}: PEFT takes the first, and sorts "
            "them when it saves, so that training may have used the other"
        )


def weights_hint(directory: Path) -> str:
    """Return the remedy for a directory with adapter_config.json, but without readable weights."""
    remedy = next((hint for name, hint in OTHER_WEIGHTS.items() if (directory / name).exists()), "")
    return remedy or "Copy adapter_model.safetensors, too"


def missing_hint(directory: Path) -> str:
    """Return the remedy for a path without adapter_config.json."""
    if directory.suffix == ".gguf":
        return "A LoRA for llama.cpp is not read: take the PEFT directory that convert_lora_to_gguf.py has read"
    if directory.is_file():
        return f"Name the directory that {CONFIG_NAME} and {WEIGHTS_NAME} lie in"
    if (directory / WEIGHTS_NAME).exists() and not (directory / CONFIG_NAME).exists():
        return f"Copy {CONFIG_NAME}, too: alpha and rank stand in it"
    inside = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    if inside:
        return f"Name one of the adapters inside: {', '.join(str(directory / name) for name in inside[:5])}"
    return next((hint for name, hint in OTHER_WEIGHTS.items() if (directory / name).exists()), "")


class Doubt(NamedTuple):
    """A contradiction between settings and tensors: `kind` is "target" or "rank". Example: see `doubts`."""

    kind: str
    text: str


def doubts(
    config: AdapterConfig, layout: Mapping[str, StoredTensor], parts: Mapping[str, Mapping[str, str]]
) -> Iterator[Doubt]:
    """Yield contradictions between settings and tensors: magnitudes of DoRA, untargeted modules, ranks.

    On loading, PEFT leaves out untargeted modules, and fails at other ranks.

    Example:
        [doubt.kind for doubt in doubts(open_adapter(Path("adapters/acme")))]
    """
    if parts and config.is_lora and config.has_magnitudes != any(MAGNITUDE in stored for stored in parts.values()):
        yield Doubt("rank", f"use_dora = {config.has_magnitudes}, and the tensors of {WEIGHTS_NAME} differ from that")
    ranks = {name.removesuffix(".weight"): rank for name, rank in stored_ranks(layout, parts).items()}
    settings = module_settings(config, list(ranks))
    if strangers := [module for module in ranks if not settings[module].is_target]:
        text = f"matrices for {listed(strangers)}, which target_modules and its exceptions leave out, and so does PEFT"
        yield Doubt("target", text)
    others = {module: rank for module, rank in ranks.items() if settings[module].rank != rank}
    if others:
        wrong = [f"{module} has rank {rank} instead of {settings[module].rank}" for module, rank in others.items()]
        sorting = "; of two keys of rank_pattern that match, PEFT takes the first, and sorts them when it saves"
        yield Doubt("rank", listed(wrong) + (sorting if len(config.rank_pattern) > 1 else ""))


def listed(items: list[str]) -> str:
    """Return the first three items, and the number of the others."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def require_runnable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits the network and can run beside the base."""
    require_fit(adapter.path, adapter.delta, config)
    for name, parts in adapter.parts.items():
        if set(parts) != {DOWN, UP} or not run_path(name).endswith(ADAPTED):
            others = [key for part, key in parts.items() if part not in (DOWN, UP)]
            raise CheckpointError(
                f"{adapter.path}: {(others or [*parts.values()])[0]!a}",
                expected="only lora_A and lora_B of matrices in the layers, to run the adapter beside a base",
                hint=MERGE_HINT,
            )


def require_trainable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits the network and can be trained."""
    require_fit(adapter.path, adapter.delta, config)
    trained = ADAPTED if config.tie_embeddings else (*ADAPTED, run_path(HEAD))
    for name, parts in adapter.parts.items():
        if name not in adapter.linears or not run_path(name).endswith(trained):
            table = ", which is the embeddings' table in this base" if name == HEAD and config.tie_embeddings else ""
            raise CheckpointError(
                f"{adapter.path}: {next(iter(parts.values()))!a}{table}",
                expected="an adapter of matrices in the layers or of an untied head, to train the adapter further",
                hint=f"{MERGE_HINT}, and training can start from that",
            )


def read_lora(adapter: Adapter) -> Lora:
    """Return the LoRA weights of linear layers, mapped from the file."""
    tensors = read_floats(adapter.layout)
    for key, tensor in tensors.items():
        if not tensor.abs().amax().isfinite():
            raise CheckpointError(
                f"{adapter.path}: {key!a} has values that are not finite", expected="finite numbers in every tensor"
            )
    lora: dict[str, LowRank] = {}
    for name, parts in adapter.linears.items():
        down_RI, up_OR = tensors[parts[DOWN]], tensors[parts[UP]]
        lora[run_path(name)] = LowRank(down_RI, up_OR, adapter.delta.scales[name])
    return lora


def read_magnitudes(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return DoRA's row magnitudes by module path; empty for other adapters."""
    return {
        run_path(name): adapter.delta.read(name, MAGNITUDE).flatten()
        for name, parts in adapter.linears.items()
        if MAGNITUDE in parts
    }


def run_path(name: str) -> str:
    """Return the module path in the network of a tensor of the base."""
    return name.removeprefix("model.").removesuffix(".weight")
