"""The state of a training run <-> directories that survive a kill at any moment: weights, moments, position, step.

The two newest are kept; one whose hashes do not match is passed over for the one before.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from puna import artifact
from puna.checkpoint.writer import Entry, write_file
from puna.data.packing import Position
from puna.errors import ArtifactError
from puna.model.llama import Llama
from puna.train.loop.optimizer import trained_parameters

KEPT = 2
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """Where a run stands. `num_skipped`: steps whose loss or gradient was not finite, `skipped_in_row` of them last.

    `num_too_long`: examples passed over so far, once for each epoch.
    """

    step: int = 0
    position: Position = field(default=Position())
    tokens: int = 0
    num_skipped: int = 0
    skipped_in_row: int = 0
    num_too_long: int = 0


def save_state(directory: Path, model: Llama, optimizer: torch.optim.Optimizer, progress: TrainState, key: str) -> None:
    """Write the state of this step atomically, then drop all but the two newest."""
    path = directory / f"step-{progress.step:08d}"
    with artifact.writing(path) as partial:
        write_file(partial / "model.safetensors", _entries(dict(trained_parameters(model))))
        write_file(partial / "optimizer.safetensors", _entries(_moments(model, optimizer)))
        artifact.write_text(partial / "progress.json", json.dumps(asdict(progress)))
        artifact.commit(partial, path, artifact.Manifest("training state", "train", key, {}, {}, {}))
    for old in [*_states(directory)[KEPT:], *directory.glob(".step-*")]:  # hidden: left by a kill while saving
        shutil.rmtree(old)


def load_state(
    directory: Path, model: Llama, optimizer: torch.optim.Optimizer, log: Callable[[str], None]
) -> TrainState:
    """Fill model and optimizer from the newest state that is whole; a fresh TrainState if there is none."""
    for path in _states(directory):
        try:
            artifact.verify(path)
        except ArtifactError as error:
            log(f"passed over a saved state: {error}")
            continue
        weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in trained_parameters(model):
                parameter.copy_(weights[name])
                for kind in MOMENTS:
                    if f"{name}.{kind}" in moments:  # none yet if every step so far was skipped
                        optimizer.state[parameter][kind] = moments[f"{name}.{kind}"]
        values = json.loads((path / "progress.json").read_text())
        return TrainState(**{**values, "position": Position(**values["position"])})
    return TrainState()


def _states(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("step-*") if artifact.is_artifact(path)), reverse=True)


def _entries(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, tensor.dtype, tuple(tensor.shape), tensor.detach) for name, tensor in tensors.items()]


def _moments(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{kind}": value
        for name, parameter in trained_parameters(model)
        for kind, value in optimizer.state[parameter].items()
    }
