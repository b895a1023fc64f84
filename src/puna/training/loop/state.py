"""Saved states of a training run: weights, AdamW moments, position in the data and step, safe against kills.

The two newest states are kept. A state with wrong hashes is skipped in favour of the state before. Every process
writes the local shards and reads the parts for the local layout, so a resumed run may use a different number of
processes.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from puna.data.packing import Position
from puna.formats.checkpoint.source import Source
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError
from puna.training.loop.optimizer import trained_parameters
from puna.training.parallel.process_groups import ProcessGroups
from puna.training.parallel.shard_files import ShardFiles, file_name, write_shards
from puna.training.parallel.shards import TensorShard, box_of, local_shard, owned_parameters, shard_like

KEPT = 2
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """Step, position and counters of a run.

    Attributes:
        step: Number of completed optimizer steps.
        position: Next row in the data.
        tokens: Number of tokens read so far.
        num_skipped: Steps without an update because the loss or gradient was not finite.
        skipped_in_row: Length of the latest uninterrupted run of skipped steps.
        num_too_long: Rows skipped because of their length, counted once per epoch.
        device: Kind of device of the completed steps: "cpu" or "cuda".
        metrics: SHA-256 of metrics.jsonl up to `step`.

    Example:
        >>> TrainState(step=3, tokens=12_288).num_skipped
        0
    """

    step: int = 0
    position: Position = field(default=Position())
    tokens: int = 0
    num_skipped: int = 0
    skipped_in_row: int = 0
    num_too_long: int = 0
    device: str = ""
    metrics: str = ""


def save_state(
    directory: Path,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    progress: TrainState,
    key: str,
    groups: ProcessGroups = ProcessGroups(),  # noqa: B008
) -> Path:
    """Write a state atomically and remove all but the two newest; every process must call `save_state`."""
    path = directory / f"step-{progress.step:08d}"
    if not groups.is_main:
        groups.barrier()
        _write_parts(path.parent / f".{path.name}.partial", model, optimizer, groups)
        groups.barrier()
    else:
        with artifact.writing(path) as partial:
            groups.barrier()
            _write_parts(partial, model, optimizer, groups)
            artifact.write_text(partial / "progress.json", json.dumps(asdict(progress)))
            groups.barrier()
            hashed = _collect_hashes(partial)
            manifest = artifact.Manifest("training state", "train", key, {}, {}, {})
            artifact.commit(partial, path, manifest, hashed=hashed)
        for old in [*_states(directory)[KEPT:], *directory.glob(".step-*")]:  # hidden: left by a kill while saving
            shutil.rmtree(old)
    groups.barrier()
    return path


def load_state(
    directory: Path,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    log: Callable[[str], None],
    key: str,
    groups: ProcessGroups = ProcessGroups(),  # noqa: B008
) -> TrainState:
    """Load model and optimizer from the newest intact state with `key`; without a state, return a new TrainState."""
    groups.barrier()
    for path in _states(directory):
        problem = ""
        try:
            if artifact.verify(path, part=groups.rank, num_parts=groups.world_size).key != key:
                problem = f"{path} was made with other settings or inputs"
        except ArtifactError as error:
            problem = str(error)
        if groups.all_reduce(bool(problem))[0]:
            log(f"skipped a saved state: {problem or f'{path} was altered or cut short'}")
            continue
        _read_parts(path, model, optimizer)
        values = json.loads((path / "progress.json").read_text())
        return TrainState(**{**values, "position": Position(**values["position"])})
    return TrainState()


def whole_network(path: Path, config: LlamaConfig, tokenizer: Tokenizer) -> Source:
    """Return the model of a state as a source of whole tensors, read from all shards on demand."""
    pieces = ShardFiles(path, "model")

    def read(name: str) -> torch.Tensor:
        return pieces.read_all(name.removeprefix("model."))

    return Source("state", config, torch.float32, read, tokenizer)


def take_whole(path: Path, model: Llama) -> None:
    """Replace the shards in `model` by the whole trained tensors of a state."""
    pieces = ShardFiles(path, "model")
    for name, _ in list(trained_parameters(model)):
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(pieces.read_all(name)))


def _write_parts(directory: Path, model: Llama, optimizer: torch.optim.Optimizer, groups: ProcessGroups) -> None:
    owned = {name: each for name, each in owned_parameters(model, groups).items() if each.requires_grad}
    weights = {name: _part(parameter, parameter) for name, parameter in owned.items()}
    moments = {
        f"{name}.{kind}": _part(value, parameter)
        for name, parameter in owned.items()
        for kind, value in optimizer.state[parameter].items()
    }
    for kind, parts in (("model", weights), ("optimizer", moments)):
        name = file_name(kind, groups.rank, groups.world_size)
        write_shards(directory / name, parts)
        if groups.world_size > 1:
            artifact.write_text(directory / f".{name}.json", json.dumps(artifact.entry(directory / name)))


def _part(value: torch.Tensor, parameter: torch.nn.Parameter) -> TensorShard:
    """Return the local shard of a parameter or moment; AdamW's step count is a scalar without shards."""
    if not value.dim():
        return TensorShard(value, (), ())
    return TensorShard(local_shard(value), box_of(parameter), tuple(parameter.shape))


def _collect_hashes(directory: Path) -> dict[str, dict[str, object]]:
    """Collect the file hashes of every process; hashing on rank 0 alone would read the whole state again."""
    notes = {path.name[1:].removesuffix(".json"): path for path in directory.glob(".*.safetensors.json")}
    hashed = {name: json.loads(path.read_text()) for name, path in notes.items()}
    for path in notes.values():
        path.unlink()
    return hashed


def _read_parts(path: Path, model: Llama, optimizer: torch.optim.Optimizer) -> None:
    weights, moments = ShardFiles(path, "model"), ShardFiles(path, "optimizer")
    with torch.no_grad():
        for name, parameter in trained_parameters(model):
            box = box_of(parameter)
            local_shard(parameter).copy_(weights.read(name, box))
            for kind in MOMENTS:
                if f"{name}.{kind}" in moments:  # none yet if every step so far was skipped
                    value = moments.read(f"{name}.{kind}", () if kind == "step" else box).to(parameter.device)
                    optimizer.state[parameter][kind] = value if kind == "step" else shard_like(parameter, value)


def _states(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("step-*") if artifact.is_artifact(path)), reverse=True)
