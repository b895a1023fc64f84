"""Config, run and objective -> a trained checkpoint: set-up, loop and reports of every training stage.

A resumed run continues from the newest state and ends with the same weights as an uninterrupted one.
"""

from collections.abc import Sequence
from pathlib import Path

from puna.formats.checkpoint.checkpoint import save_checkpoint, write_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run
from puna.training.loop.adapter import describe_training, write_adapter
from puna.training.loop.counts import TokenCounter
from puna.training.loop.defaults import adapt
from puna.training.loop.loop import make_packer, run_loop
from puna.training.loop.observer import Observer
from puna.training.loop.optimizer import make_optimizer
from puna.training.loop.state import TrainState, load_state, save_state, take_whole, whole_network
from puna.training.loop.training import Training
from puna.training.objectives.objective import Objective
from puna.training.parallel.apply import init_parallel
from puna.training.parallel.process_groups import ProcessGroups
from puna.training.reports.plot import LossPlot
from puna.training.reports.preview.preview import Preview
from puna.training.reports.run_report import RunReport
from puna.training.settings import TrainConfig


def fit(
    config: TrainConfig,
    run: Run,
    objective: Objective,
    model: Llama,
    tokenizer: Tokenizer,
    *,
    observers: Sequence[Observer] = (),
) -> None:
    """Train `model` in place and write the checkpoint, or the adapter, into the run's output.

    A preview takes no step: observers begin, nothing is trained or written into the output.

    Args:
        observers: Called before the reports of every run: data summary and estimate, run report, plot.

    Example:
        >>> model, tokenizer = starting_model(config)
        >>> fit(config, run, NextToken(ChatFormat(tokenizer), False, False), model, tokenizer)
    """
    training = prepare(config, run, objective, model, tokenizer)
    watching = [*observers, *_reports(training.groups)]
    for observer in watching:
        observer.begin(training)
    if run.is_preview:
        return
    state = training.state
    if state.step:
        run.log(f"resuming after step {state.step}")
    run.rewind_metrics(state.step, state.metrics)
    run_loop(training, watching)
    if state.num_too_long:
        run.log(f"skipped conversations longer than {training.config.max_length} tokens: {state.num_too_long} times")
    for observer in reversed(watching):
        observer.end(training)
    model.eval()
    save_trained(training, tokenizer)


def prepare(config: TrainConfig, run: Run, objective: Objective, model: Llama, tokenizer: Tokenizer) -> Training:
    """Choose the open settings, join the remaining processes and load the newest saved state."""
    config = adapt(config, run, objective, model)
    if config.max_example_tokens > model.config.max_context:
        raise ConfigError(
            f"max_length = {config.max_length}", expected=f"at most {model.config.max_context}, the model's own"
        )
    groups = init_parallel(config, run, model, needs_whole_examples=objective.needs_whole_examples)
    if config.adapter is not None:
        run.log(describe_training(model))
    model.train()
    optimizer = make_optimizer(model, config.optim)
    state = load_state(run.directory / "states", model, optimizer, run.log, run.key, groups)
    _stay_on_device(state, groups, run.directory / "states")
    packer = make_packer(config, objective, config.data, objective.draw, num_too_long=state.num_too_long)
    return Training(config, run, objective, model, optimizer, packer, state, groups, TokenCounter(tokenizer))


def _reports(groups: ProcessGroups) -> list[Observer]:
    """Return the observers of every run; rank 0 writes the reports.

    A single rank of several cannot compute a batch alone, so only a run of a single process has a preview.
    """
    reports: list[Observer] = [LossPlot(), RunReport()] if groups.is_main else []
    return [*reports, Preview()] if groups.world_size == 1 else reports


def _stay_on_device(state: TrainState, groups: ProcessGroups, states: Path) -> None:
    """Raise ConfigError if a resumed run computes on a different kind of device: last bits of results would differ."""
    kind = groups.device.type
    if state.step and state.device not in ("", kind):
        raise ConfigError(
            f"a run that began on {state.device} and would go on on {kind}",
            expected=f"the device it began on, {state.device}",
            hint=f"Go on where there is one, or remove {states} to begin anew",
        )
    state.device = kind


def save_trained(training: Training, tokenizer: Tokenizer) -> None:
    """Write the checkpoint or adapter; with several processes rank 0 reads the shards from the saved state."""
    run, model, groups = training.run, training.model, training.groups
    if groups.world_size > 1:
        path = save_state(run.directory / "states", model, training.optimizer, training.state, run.key, groups)
        if not groups.is_main:
            return
        if training.config.adapter is None:
            write_checkpoint(run.output, whole_network(path, model.config, tokenizer))
            return
        take_whole(path, model)
    if training.config.adapter is None:
        save_checkpoint(run.output, model, tokenizer)
    else:
        write_adapter(training.config, run, model)
