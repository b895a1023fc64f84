"""A reference model and preferences -> the log-probability of every answer, computed once before training.

A journal keeps the values of every batch, so a resumed run computes no batch twice. Batches are packed as in the
first epoch of training: a resumed run packs the same batches and gets the same last bits.
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
    """Return the log-probabilities of all answers in data and validation data, by `answer_key`."""
    log_probabilities_by_key: dict[str, float] = {}
    for name, sources in (("data", config.data), ("validation", config.validation)):
        if sources:
            log_probabilities_by_key |= _compute(config, run, objective, model, name, sources)
    return log_probabilities_by_key


@torch.no_grad()
def _compute(
    config: TrainConfig, run: Run, objective: Dpo, model: Llama, name: str, sources: list[Path]
) -> dict[str, float]:
    dataset = Dataset(sources, objective.kinds)
    sizes = {"batch_tokens": config.max_batch_tokens, "context": config.max_example_tokens}
    packer = Packer(dataset, objective.answers, seed=config.seed, is_cut=False, **sizes)
    # Every process computes all values with its own copy of the reference, before the model is sharded.
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
