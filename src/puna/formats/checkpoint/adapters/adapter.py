"""A PEFT adapter directory -> an adapter: merged into a Source tensor by tensor, run beside a base, or trained.

Merges LoRA, rsLoRA and DoRA of linear layers and embeddings, rows of chosen tokens, and tensors saved whole. Callers
refuse a quantized base, which has no exact merge. LoRA and rsLoRA of the layers' matrices run beside a base, quantized
or not. DoRA and LoRA of a separate head can also be trained and written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.safetensors.header import StoredTensor, read_header
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.adapters.lora import Lora, LowRank
from puna.model.config import ADAPTED, LlamaConfig
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import CheckpointError, TokenizerError

ADAPTER_HINT = (
    "`puna merge` makes a checkpoint of it and its base, `puna serve BASE --adapters FOLDER` runs it beside its base, "
    "and training goes on with start = BASE and adapter.start = the adapter"
)
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
            f"alpha_pattern has two keys with different values for {_listed(modules)}: PEFT takes the first, and sorts "
            "them when it saves, so that training may have used the other"
        )


def weights_hint(directory: Path) -> str:
    """Return the remedy for a directory with an adapter's settings and without readable weights."""
    remedy = next((hint for name, hint in OTHER_WEIGHTS.items() if (directory / name).exists()), "")
    return remedy or "Copy adapter_model.safetensors, too"


def missing_hint(directory: Path) -> str:
    """Return the remedy for a path that is no directory with adapter_config.json."""
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
    """A contradiction between settings and tensors: `kind` is "target" or "rank"."""

    kind: str
    text: str


def doubts(
    config: AdapterConfig, layout: Mapping[str, StoredTensor], parts: Mapping[str, Mapping[str, str]]
) -> Iterator[Doubt]:
    """Yield where settings and tensors contradict each other: magnitudes of DoRA, modules that are no target, ranks.

    On loading, PEFT leaves out modules that are no target, and fails at other ranks.
    """
    if parts and config.is_lora and config.has_magnitudes != any(MAGNITUDE in stored for stored in parts.values()):
        yield Doubt("rank", f"use_dora = {config.has_magnitudes}, and the tensors of {WEIGHTS_NAME} differ from that")
    ranks = {name.removesuffix(".weight"): rank for name, rank in stored_ranks(layout, parts).items()}
    settings = module_settings(config, list(ranks))
    if strangers := [module for module in ranks if not settings[module].is_target]:
        text = f"matrices for {_listed(strangers)}, which target_modules and its exceptions leave out, and so does PEFT"
        yield Doubt("target", text)
    others = {module: rank for module, rank in ranks.items() if settings[module].rank != rank}
    if others:
        wrong = [f"{module} has rank {rank} instead of {settings[module].rank}" for module, rank in others.items()]
        sorting = "; of two keys of rank_pattern that match, PEFT takes the first, and sorts them when it saves"
        yield Doubt("rank", _listed(wrong) + (sorting if len(config.rank_pattern) > 1 else ""))


def _listed(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def merged(base: Source, adapter: Adapter) -> Source:
    """Return the base with the adapter added to every tensor on reading, in float32.

    Head and embeddings of a tied base become two tables where PEFT computes with two. A grown vocabulary brings
    tables and, where one lies beside the adapter, the tokenizer.
    """
    require_fit(adapter.path, adapter.delta, base.config)
    config = adapter.delta.merged_config(base.config)
    tokenizer = _tokenizer(adapter.path, base, config.vocab_size)
    read = partial(adapter.delta.apply, base)
    return replace(base, format=f"{base.format} with an adapter", config=config, tokenizer=tokenizer, read=read)


def merge_notes(adapter: Adapter, base: LlamaConfig) -> tuple[str, ...]:
    """Return everything about a merge that belongs into a log: doubts that do not stop it, and changed tables."""
    missing = missing_targets(adapter.config, adapter.parts, base)
    lost = f"the adapter holds nothing for {_listed(missing)}, which it targets; they stay as in the base, as in PEFT"
    tables = describe_tables(base, adapter.delta.merged_config(base))
    return (*adapter.notes, *([lost] if missing else []), *tables)


def missing_targets(config: AdapterConfig, parts: Mapping[str, Mapping[str, str]], base: LlamaConfig) -> list[str]:
    """Return the targeted modules of a base that no matrices are stored for. PEFT warns of missing keys there."""
    modules = [name.removesuffix(".weight") for name, shape in tensor_shapes(base).items() if len(shape) == 2]
    if config.targets is None or config.is_tied or not config.is_lora:
        return []
    settings = module_settings(config, modules)
    return [module for module in modules if settings[module].is_target and f"{module}.weight" not in parts]


def describe_tables(base: LlamaConfig, config: LlamaConfig) -> Iterator[str]:
    """Say how the tables of a merged model differ from the base's tables."""
    if config.vocab_size != base.vocab_size:
        yield f"the adapter has a vocabulary of its own: {config.vocab_size:,} rows instead of {base.vocab_size:,}"
    if base.tie_embeddings and not config.tie_embeddings:
        yield "head and embeddings, one table in the base, become two: the adapter changes them apart, as PEFT does"


def _tokenizer(directory: Path, base: Source, num_rows: int) -> Tokenizer | None:
    """Return the tokenizer beside an adapter if the adapter added tokens, else the base's."""
    if base.tokenizer is None or not (directory / "tokenizer.json").is_file():
        return base.tokenizer
    try:
        tokenizer = Tokenizer.load(directory)
    except TokenizerError:
        if num_rows != base.config.vocab_size:
            raise
        return base.tokenizer
    return tokenizer if base.tokenizer.vocab_size < tokenizer.vocab_size <= num_rows else base.tokenizer


def require_runnable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits this network and can be run beside it."""
    require_fit(adapter.path, adapter.delta, config)
    for name, parts in adapter.parts.items():
        if set(parts) != {DOWN, UP} or not run_path(name).endswith(ADAPTED):
            others = [key for part, key in parts.items() if part not in (DOWN, UP)]
            raise CheckpointError(
                f"{adapter.path}: {(others or [*parts.values()])[0]!a}",
                expected="lora_A and lora_B of the layers' matrices, which is what runs beside a base",
                hint=MERGE_HINT,
            )


def require_trainable(adapter: Adapter, config: LlamaConfig) -> None:
    """Raise CheckpointError unless the adapter fits this network and every part can be trained on."""
    require_fit(adapter.path, adapter.delta, config)
    trained = ADAPTED if config.tie_embeddings else (*ADAPTED, run_path(HEAD))
    for name, parts in adapter.parts.items():
        if name not in adapter.linears or not run_path(name).endswith(trained):
            table = ", which is the embeddings' table in this base" if name == HEAD and config.tie_embeddings else ""
            raise CheckpointError(
                f"{adapter.path}: {next(iter(parts.values()))!a}{table}",
                expected="matrices beside those of the layers and of a head of its own, which is what is trained here",
                hint=f"{MERGE_HINT}, and training can start from that",
            )


def read_lora(adapter: Adapter) -> Lora:
    """Return the stored weights beside linear layers, mapped from the file."""
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
    """Return DoRA's lengths of the rows by the paths of the modules; empty for other adapters."""
    return {
        run_path(name): adapter.delta.read(name, MAGNITUDE).flatten()
        for name, parts in adapter.linears.items()
        if MAGNITUDE in parts
    }


def is_adapter(directory: Path) -> bool:
    """Tell whether a directory holds an adapter and no checkpoint. A config.json alone makes no checkpoint."""
    has_model = (directory / "config.json").exists() and any(directory.glob("model*.safetensors*"))
    return (directory / CONFIG_NAME).is_file() and not has_model


def base_of(directory: Path) -> Path | None:
    """Return the base by the adapter's lineage or by the path in the settings; None if that path does not exist."""
    candidates: list[Path] = []
    if artifact.is_artifact(directory):
        trained_beside = artifact.read_manifest(directory).inputs.get("start")
        candidates += [directory / trained_beside["path"]] if trained_beside else []
    config_path = find_file(directory, CONFIG_NAME)
    named = read_json(config_path).get("base_model_name_or_path") if config_path else None
    if isinstance(named, str) and named:
        candidates += [directory / named, Path(named)]
    return next((candidate.resolve() for candidate in candidates if candidate.is_dir()), None)


def checkpoint_at(path: Path) -> Path:
    """Return a checkpoint's path unchanged, and the base's path for an adapter.

    Raises:
        CheckpointError: The adapter's base is missing, or its content hash has changed since the training.
    """
    if not is_adapter(path):
        return path
    base = base_of(path)
    if base is None:
        raise CheckpointError(
            f"{path} is an adapter, and its base is not here", expected="the adapter and its base", hint=ADAPTER_HINT
        )
    trained_beside = artifact.read_manifest(path).inputs.get("start") if artifact.is_artifact(path) else None
    if trained_beside and artifact.is_artifact(base) and artifact.content_hash(base) != trained_beside["hash"]:
        raise CheckpointError(
            f"{path} is an adapter, and {base} is not what it was trained beside any more", expected="the same base"
        )
    return base


def run_path(name: str) -> str:
    """Return the path in the network of the module that a tensor of the base belongs to."""
    return name.removeprefix("model.").removesuffix(".weight")
