"""What each process of a test's team runs, started by torchrun: several trainings one after the other.

Usage: parallel_worker.py JOBS.json, a list of {"verb", "out", "settings"}; "kill" and "stop" in a job end a process.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from puna.config import parse_config
from puna.raising import config_class, perform
from puna.run import ranks
from puna.stages import STAGES
from puna.train.loop import loop

take_step = loop._step


def strike(number: int, rank: int, step: int) -> None:
    """Send a signal to this process at a step, once: not again after torchrun has restarted it."""

    def step_or_end(training: loop.Training) -> dict[str, float]:
        if (ranks()[0], training.progress.step) == (rank, step) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), number)
        return take_step(training)

    loop._step = step_or_end


def run(job: dict[str, Any]) -> None:
    if "signal" in job:
        strike(signal.Signals[job["signal"]].value, job["rank"], job["step"])
    stage = next(stage for stage in STAGES if stage.verb == job["verb"])
    config = parse_config(config_class(stage), job["settings"], where=stage.verb)
    perform(stage, config, Path(job["out"]), Console(quiet=True))


if __name__ == "__main__":
    loop.plot_losses = lambda *_, **__: None
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
