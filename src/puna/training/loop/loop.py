"""Config, run and objective -> a trained checkpoint: the one loop behind every way to train.

A killed run goes on from its last state and ends with the same weights as one that was never interrupted. A step whose
loss or gradient is not finite never reaches the weights.

Shapes: T tokens of a batch, D model width.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Encode, Packer, Position
from puna.formats.checkpoint.checkpoint import save_checkpoint, write_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError, TrainError
from puna.pipeline.run import Run
from puna.training.loop.adapter import describe_training, write_adapter
from puna.training.loop.counts import TokenCounter
from puna.training.loop.defaults import adapt, chosen_values
from puna.training.loop.optimizer import learning_rate, make_optimizer
from puna.training.loop.state import TrainState, load_state, save_state, take_whole, whole_network
from puna.training.loop.stopping import asked_to_stop
from puna.training.objectives.objective import Objective
from puna.training.parallel.apply import join, shard_again
from puna.training.parallel.gradients import clip_gradients
from puna.training.parallel.shares import run_shares
from puna.training.parallel.team import Team
from puna.training.reports.plot import plot_losses
from puna.training.reports.preview.preview import look_ahead, look_back
from puna.training.reports.run_report import close_record, open_record
from puna.training.settings import TrainConfig

SKIPS_THAT_STOP = 3
VALIDATIONS = 10
MAX_VALIDATION_BATCHES = 8


@dataclass
class Training:
    """Everything that one run holds while it trains."""

    config: TrainConfig
    run: Run
    objective: Objective
    model: Llama
    optimizer: torch.optim.AdamW
    packer: Packer
    progress: TrainState
    team: Team
    counter: TokenCounter
    before_step: Callable[[int], None]

    @property
    def done(self) -> float:
        """The share of the run that lies behind: by steps, or by examples read."""
        if self.config.steps is not None:
            return self.progress.step / self.config.steps
        assert self.config.epochs is not None
        return self.epochs / self.config.epochs

    @property
    def epochs(self) -> float:
        """How many times the data was read."""
        return self.packer.progress(self.progress.position)


def train(
    config: TrainConfig,
    run: Run,
    objective: Objective,
    model: Llama,
    tokenizer: Tokenizer,
    *,
    before_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Train `model` in place and write it as a checkpoint into the run's output.

    `before_step` is told the number of each step, before its batches are read.
    """
    config = adapt(config, run, objective, model)
    if config.max_length > model.config.max_context:
        raise ConfigError(
            f"context = {config.context}", expected=f"at most {model.config.max_context}, the model's own"
        )
    team = join(config, run, objective, model)
    if config.adapter is not None:
        run.log(describe_training(model))
    model.train()
    optimizer = make_optimizer(model, config.optim)
    progress = load_state(run.directory / "states", model, optimizer, run.log, run.key, team)
    _stay_on_device(progress, team, run.directory / "states")
    packer = _packer(config, objective, config.data, objective.draw, num_too_long=progress.num_too_long)
    training = Training(
        config, run, objective, model, optimizer, packer, progress, team, TokenCounter(tokenizer), before_step
    )
    step, dataset = progress.step, packer.dataset
    record = open_record(config, run, objective, model, tokenizer, dataset, step=step) if team.is_first else {}
    preview = None
    if team.size == 1:  # of a network that several processes hold none can try a batch alone
        preview = look_ahead(config, run, objective, model, tokenizer, packer, lambda batch: _backward(training, batch))
    if progress.step:
        run.log(f"going on after step {progress.step}")
    run.rewind_metrics(progress.step, progress.metrics)
    _loop(training)
    if preview is not None:
        look_back(preview, run, model)
    if progress.num_too_long:
        run.log(f"passed over conversations longer than {config.max_length} tokens: {progress.num_too_long} times")
    model.eval()
    save_trained(training, tokenizer)
    if team.is_first:
        record |= {"chosen": chosen_values(run)}
        ended = {"num_too_long": progress.num_too_long, "epochs": training.epochs}
        close_record(record, config, run, model, tokenizer, **ended)
        plot_losses(run.read_metrics(), run.output / "loss.png", title=run.stage)


def _stay_on_device(progress: TrainState, team: Team, states: Path) -> None:
    """Raise ConfigError where a run would go on on another kind of device, whose results differ in their last bits."""
    kind = team.device.type
    if progress.step and progress.device not in ("", kind):
        raise ConfigError(
            f"a run that began on {progress.device} and would go on on {kind}",
            expected=f"the device it began on, {progress.device}",
            hint=f"Go on where there is one, or remove {states} to begin anew",
        )
    progress.device = kind


def save_trained(training: Training, tokenizer: Tokenizer) -> None:
    """Write the checkpoint; of many processes the first reads it from the state that all write, tensor by tensor."""
    run, model, team = training.run, training.model, training.team
    if team.size > 1:
        path = save_state(run.directory / "states", model, training.optimizer, training.progress, run.key, team)
        if not team.is_first:
            return
        if training.config.adapter is None:
            write_checkpoint(run.output, whole_network(path, model.config, tokenizer))
            return
        take_whole(path, model)
    if training.config.adapter is None:
        save_checkpoint(run.output, model, tokenizer)
    else:
        write_adapter(training.config, run, model)


def _loop(training: Training) -> None:
    config, run, progress = training.config, training.run, training.progress
    saved, thousandths = time.monotonic(), int(training.done * 1000)
    validations = int(training.done * VALIDATIONS)
    with run.progress(1000, "training", unit="‰", done=thousandths) as bar, asked_to_stop() as is_stopping:
        while training.done < 1:
            start, before = time.monotonic(), progress.tokens
            losses = _step(training)
            rate = (progress.tokens - before) / (time.monotonic() - start)
            if config.validation and int(training.done * VALIDATIONS) > validations:
                validations = int(training.done * VALIDATIONS)
                losses["validation_loss"] = validation_loss(training)
            run.metrics(progress.step, **losses, tokens=progress.tokens, tokens_per_s=round(rate))
            note = f"loss {losses['loss']:.3f}  {rate:,.0f} tokens/s"
            bar.advance(int(training.done * 1000) - thousandths, note=note)
            thousandths = int(training.done * 1000)
            is_due = training.team.is_first and time.monotonic() - saved > 60 * config.save_minutes
            is_ending, is_saving = map(bool, training.team.sum(is_stopping(), is_due))
            if is_ending or is_saving:
                progress.metrics = run.keep_metrics()
                save_state(
                    run.directory / "states", training.model, training.optimizer, progress, run.key, training.team
                )
                saved = time.monotonic()
            if is_ending:
                raise KeyboardInterrupt


def _step(training: Training) -> dict[str, float]:
    """Take one optimizer step and return the mean losses; skip it if anything is not finite."""
    progress, optimizer = training.progress, training.optimizer
    # What a step draws (dropout) depends on its number alone: a run that goes on draws what one without a break does.
    told = (training.config.seed, progress.step, *training.team.own_seed)
    torch.manual_seed(random.Random(" ".join(map(str, told))).getrandbits(63))
    training.before_step(progress.step)
    rate = learning_rate(training.config.optim, progress.step, training.done)
    batches = list(_take(training, training.config.accumulate))
    num_counted = sum(training.objective.num_counted(batch) for batch in batches)
    sums = run_batches(training, batches, divisor=max(1, num_counted))
    progress.tokens += sum(len(batch.tokens_T) for batch in batches)
    norm = clip_gradients(training.model, training.team, training.config.optim.clip)
    if math.isfinite(norm) and all(map(math.isfinite, sums.values())):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        progress.skipped_in_row = 0
    else:
        _skip(training)
    optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    means = {name: value / max(1, num_counted) for name, value in sums.items()}
    return {**means, "gradient_norm": norm, "learning_rate": rate, **training.counter.count(batches)}


def _take(training: Training, count: int) -> Iterator[Batch]:
    """Read the batches of one step: `count` of them, or fewer where the last epoch ends."""
    packer, progress = training.packer, training.progress
    for number in range(count):
        if number and training.done >= 1:
            return
        batch, progress.position = packer.next(progress.position)
        progress.num_too_long = packer.num_too_long
        yield batch


def run_batches(training: Training, batches: list[Batch], *, divisor: int) -> dict[str, float]:
    """Return the sums over batches, of which each process computes its share; gradients are of the loss / divisor."""
    model, objective, dtype = training.model, training.objective, training.config.dtype

    def forward(batch: Batch, tokens_T: torch.Tensor) -> torch.Tensor:
        if training.team.size == 1:
            return batch.hidden_states(model, dtype)
        return model(tokens_T, batch.positions_T, batch.attend(), dtype=dtype)

    def losses(batch: Batch, hidden_TD: torch.Tensor) -> dict[str, torch.Tensor]:
        return objective.losses(model, hidden_TD, batch)

    width = model.config.dim
    return run_shares(training.team, batches, forward, losses, divisor=divisor, width=width, dtype=dtype)


def _backward(training: Training, batch: Batch) -> None:
    run_batches(training, [batch], divisor=1)


def _skip(training: Training) -> None:
    progress = training.progress
    progress.num_skipped += 1
    progress.skipped_in_row += 1
    training.run.log(f"step {progress.step + 1}: the loss or its gradient is not finite; the weights stay as they were")
    if progress.skipped_in_row >= SKIPS_THAT_STOP:
        raise TrainError(
            f"{SKIPS_THAT_STOP} steps in a row had a loss or gradient that is not finite",
            expected="finite numbers",
            hint="Lower optim.lr, or look for broken records; the last good state is kept",
        )


@torch.no_grad()
def validation_loss(training: Training) -> float:
    """Mean loss over the first batches of the validation data, the same ones every time."""
    config, objective = training.config, training.objective
    packer = _packer(config, objective, config.validation, objective.encode)
    batches, position = list[Batch](), Position()
    while len(batches) < MAX_VALIDATION_BATCHES and not position.epoch:
        batch, position = packer.next(position)
        batches.append(batch)
    training.model.eval()
    count = max(1, sum(map(objective.num_counted, batches)))
    loss = run_batches(training, batches, divisor=count)["loss"] / count
    shard_again(training.model)
    training.model.train()
    return loss


def _packer(
    config: TrainConfig, objective: Objective, sources: list[Path], encode: Encode, *, num_too_long: int = 0
) -> Packer:
    return Packer(
        Dataset(sources, objective.kinds),
        encode,
        seed=config.seed,
        batch_tokens=config.max_batch_tokens,
        context=config.max_length,
        is_cut=objective.is_cut,
        num_too_long=num_too_long,
    )
