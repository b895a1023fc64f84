"""Loss on the data of the initial model, before and after training: a rise shows forgetting."""

import os
from pathlib import Path

import torch

from puna.data.dataset import Dataset
from puna.data.packing import Packer, Position
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import PunaError
from puna.training.objectives.next_token import NextToken
from puna.training.objectives.objective import Objective
from puna.training.settings import TrainConfig

START_BATCHES = 2


@torch.no_grad()
def mean_loss(model: Llama, objective: Objective, packer: Packer, dtype: torch.dtype, max_batches: int) -> float:
    """Return the mean loss over the first `max_batches` batches of an epoch."""
    total, count, position = 0.0, 0, Position()
    model.eval()
    for _ in range(max_batches):
        batch, position = packer.next(position)
        batch = batch.on(model.device)
        hidden_TD = batch.hidden_states(model, dtype)
        total += objective.losses(model, hidden_TD, batch)["loss"].item()
        count += objective.num_counted(batch)
        if position.epoch:
            break
    model.train()
    return total / max(1, count)


def start_data_loss(config: TrainConfig, model: Llama, tokenizer: Tokenizer) -> float | None:
    """Return the loss on two batches of the initial model's training data.

    The result is None without an initial model or the model's data, and if the run trains on the same data.
    """
    sources = _start_data(config)
    if not sources:
        return None
    assert config.init_from is not None
    is_every_token = artifact.read_manifest(config.init_from).stage == "pretrain"
    objective = NextToken(ChatFormat(tokenizer), is_every_token, False)
    size = {"batch_tokens": config.max_batch_tokens, "context": config.max_example_tokens}
    try:
        dataset = Dataset(sources, objective.kinds)
        packer = Packer(dataset, objective.encode, seed=0, is_cut=objective.is_cut, **size)
        return mean_loss(model, objective, packer, config.dtype, START_BATCHES)
    except PunaError:
        return None  # the run does not need these data: unreadable rows stop nothing


def _start_data(config: TrainConfig) -> list[Path]:
    if config.init_from is None or not artifact.is_artifact(config.init_from):
        return []
    inputs = artifact.read_manifest(config.init_from).inputs
    sources = [
        Path(os.path.normpath(config.init_from / entry["path"])) for role, entry in inputs.items() if "data." in role
    ]
    is_known = {path.resolve() for path in sources} <= {path.resolve() for path in config.data}
    return [] if is_known or not all(path.exists() for path in sources) else sources
