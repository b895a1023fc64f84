"""The training loop behind every training stage: optimizer steps, validation, metrics and saved states.

A resumed run continues from the newest state and ends with the same weights as an uninterrupted one. A step with a
non-finite loss or gradient never changes the weights. Reports and plots are observers.

Shapes: T tokens of a batch, D model width.
"""

import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Encode, Packer, Position
from puna.pipeline.errors import TrainError
from puna.training.loop.observer import Observer
from puna.training.loop.optimizer import learning_rate
from puna.training.loop.state import save_state
from puna.training.loop.stopping import asked_to_stop
from puna.training.loop.training import Training
from puna.training.objectives.objective import Objective
from puna.training.parallel.apply import reshard
from puna.training.parallel.gradients import clip_gradients
from puna.training.parallel.local_batches import run_local_batches
from puna.training.settings import TrainConfig

SKIPS_THAT_STOP = 3
VALIDATIONS = 10
MAX_VALIDATION_BATCHES = 8


def run_loop(training: Training, observers: Sequence[Observer] = ()) -> None:
    """Train until all steps or epochs are done; save the state every few minutes and before a stop.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C arrived; the state of the last step is saved.
        TrainError: Three steps in a row had a non-finite loss or gradient.
    """
    config, run, state = training.config, training.run, training.state
    saved, thousandths = time.monotonic(), int(training.done * 1000)
    validations = int(training.done * VALIDATIONS)
    with run.progress(1000, "training", unit="‰", done=thousandths) as bar, asked_to_stop() as is_stopping:
        while training.done < 1:
            start, before = time.monotonic(), state.tokens
            for observer in observers:
                observer.before_step(training)
            metrics = take_step(training)
            rate = (state.tokens - before) / (time.monotonic() - start)
            if config.validation and int(training.done * VALIDATIONS) > validations:
                validations = int(training.done * VALIDATIONS)
                metrics["validation_loss"] = validation_loss(training)
            run.metrics(state.step, **metrics, tokens=state.tokens, tokens_per_s=round(rate))
            note = f"loss {metrics['loss']:.3f}  {rate:,.0f} tokens/s"
            bar.advance(int(training.done * 1000) - thousandths, note=note)
            thousandths = int(training.done * 1000)
            is_due = training.groups.is_main and time.monotonic() - saved > 60 * config.save_minutes
            is_ending, is_saving = map(bool, training.groups.all_reduce(is_stopping(), is_due))
            if is_ending or is_saving:
                state.metrics = run.keep_metrics()
                save_state(
                    run.directory / "states", training.model, training.optimizer, state, run.key, training.groups
                )
                saved = time.monotonic()
            if is_ending:
                raise KeyboardInterrupt


def take_step(training: Training) -> dict[str, float]:
    """Take an optimizer step and return the metrics; skip the update if the loss or a gradient is not finite."""
    state, optimizer = training.state, training.optimizer
    # Dropout depends on the number of the step alone: a resumed run draws what an uninterrupted one draws.
    seed = (training.config.seed, state.step, *training.groups.seed_offset)
    torch.manual_seed(random.Random(" ".join(map(str, seed))).getrandbits(63))
    rate = learning_rate(training.config.optim, state.step, training.done)
    batches = list(_take(training, training.config.grad_accumulation))
    num_counted = sum(training.objective.num_counted(batch) for batch in batches)
    sums = run_batches(training, batches, divisor=max(1, num_counted))
    state.tokens += sum(len(batch.tokens_T) for batch in batches)
    norm = clip_gradients(training.model, training.groups, training.config.optim.clip)
    if math.isfinite(norm) and all(map(math.isfinite, sums.values())):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        state.skipped_in_row = 0
    else:
        _skip(training)
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    means = {name: value / max(1, num_counted) for name, value in sums.items()}
    return {**means, "gradient_norm": norm, "learning_rate": rate, **training.counter.count(batches)}


def _take(training: Training, count: int) -> Iterator[Batch]:
    """Read the `count` batches of a step, or fewer at the end of the last epoch."""
    packer, state = training.packer, training.state
    for number in range(count):
        if number and training.done >= 1:
            return
        batch, state.position = packer.next(state.position)
        state.num_too_long = packer.num_too_long
        yield batch


def run_batches(training: Training, batches: list[Batch], *, divisor: int) -> dict[str, float]:
    """Return the sums over batches, divided among the processes; gradients are of the loss / divisor."""
    model, objective, dtype = training.model, training.objective, training.config.dtype

    def forward(batch: Batch, tokens_T: torch.Tensor) -> torch.Tensor:
        if training.groups.world_size == 1:
            return batch.hidden_states(model, dtype)
        return model(tokens_T, batch.positions_T, batch.attend(), dtype=dtype)

    def losses(batch: Batch, hidden_TD: torch.Tensor) -> dict[str, torch.Tensor]:
        return objective.losses(model, hidden_TD, batch)

    width = model.config.dim
    return run_local_batches(training.groups, batches, forward, losses, divisor=divisor, width=width, dtype=dtype)


def _skip(training: Training) -> None:
    state = training.state
    state.num_skipped += 1
    state.skipped_in_row += 1
    training.run.log(f"step {state.step + 1}: the loss or its gradient is not finite; the weights are unchanged")
    if state.skipped_in_row >= SKIPS_THAT_STOP:
        raise TrainError(
            f"{SKIPS_THAT_STOP} steps in a row had a loss or gradient that is not finite",
            expected="a finite loss and finite gradients",
            hint="Lower optim.lr, or look for broken records; the last good state is kept",
        )


@torch.no_grad()
def validation_loss(training: Training) -> float:
    """Return the mean loss over the first eight batches of the validation data."""
    config, objective = training.config, training.objective
    packer = make_packer(config, objective, config.validation, objective.encode)
    batches, position = list[Batch](), Position()
    while len(batches) < MAX_VALIDATION_BATCHES and not position.epoch:
        batch, position = packer.next(position)
        batches.append(batch)
    training.model.eval()
    count = max(1, sum(map(objective.num_counted, batches)))
    loss = run_batches(training, batches, divisor=count)["loss"] / count
    reshard(training.model)
    training.model.train()
    return loss


def make_packer(
    config: TrainConfig, objective: Objective, sources: list[Path], encode: Encode, *, num_too_long: int = 0
) -> Packer:
    """Open datasets as a stream of batches of the configured size; `num_too_long` rows were skipped before."""
    return Packer(
        Dataset(sources, objective.kinds),
        encode,
        seed=config.seed,
        batch_tokens=config.max_batch_tokens,
        context=config.max_example_tokens,
        is_cut=objective.is_cut,
        num_too_long=num_too_long,
    )
