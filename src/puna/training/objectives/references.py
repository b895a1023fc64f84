"""A network and preferences -> the log-probability that it gives to the words of each answer, computed once.

Kept in a journal of the run batch by batch, so that an interrupted run computes none twice. The batches are those of a
first epoch of training: their composition, and with it the last bit of each number, is the same whenever it is done.
"""

from pathlib import Path

import torch

from puna.data.dataset import Dataset
from puna.data.packing import Packer, Position
from puna.model.llama import Llama
from puna.pipeline.run import Run
from puna.training.objectives.dpo import Dpo, answer_keys, log_probabilities
from puna.training.settings import TrainConfig


def reference_log_probabilities(config: TrainConfig, run: Run, objective: Dpo, model: Llama) -> dict[str, float]:
    """Return them by `answer_key`, for the data and the validation data; the network stays as it is."""
    found: dict[str, float] = {}
    for name, sources in (("data", config.data), ("validation", config.validation)):
        if sources:
            found |= _compute(config, run, objective, model, name, sources)
    return found


@torch.no_grad()
def _compute(
    config: TrainConfig, run: Run, objective: Dpo, model: Llama, name: str, sources: list[Path]
) -> dict[str, float]:
    dataset = Dataset(sources, objective.kinds)
    sizes = {"batch_tokens": config.max_batch_tokens, "context": config.max_length}
    packer = Packer(dataset, objective.answers, seed=config.seed, is_cut=False, **sizes)
    # Of several processes each asks its own copy of the reference, before the network is divided.
    journal = run.journal(f"reference-{name}{f'-{run.rank}' if run.rank else ''}")
    rows = journal.records
    position = Position(**rows[-1]["position"]) if rows else Position()
    model.eval()
    done = len(dataset) if position.epoch else position.index
    bar = run.progress(len(dataset), f"reference on {name}", unit="rows", done=done)
    with bar:
        while not position.epoch:
            batch, after = packer.next(position)
            batch = batch.on(model.device)
            hidden_TD = batch.hidden_states(model, config.dtype)
            values = log_probabilities(model, hidden_TD, batch)[0].tolist()
            reached = {"epoch": after.epoch, "index": after.index}
            record = {"position": reached, "values": dict(zip(answer_keys(batch), values, strict=True))}
            rows.append(journal.append(record))
            bar.advance((len(dataset) if after.epoch else after.index) - position.index)
            position = after
    return {key: value for row in rows for key, value in row["values"].items()}
