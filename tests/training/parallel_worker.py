"""What each process of a test's team runs, started by torchrun: several trainings one after the other.

Usage: parallel_worker.py JOBS.json, a list of {"verb", "out", "settings"}. In a job "strike" is a signal, or
"infinity" for a loss, with the "rank" that it comes to and the "step".
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from puna.pipeline.config import parse_config
from puna.pipeline.execution.executor import perform
from puna.pipeline.execution.recipe import config_class
from puna.pipeline.run import ranks
from puna.pipeline.stages import STAGES
from puna.training.loop import loop

take_step, run_shares = loop._step, loop.run_shares


def strike(job: dict[str, Any]) -> None:
    """Let something happen to this process before a step; a kill not again after torchrun has restarted it."""
    is_over = job["strike"] == "SIGKILL" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    left = [] if is_over else [job["strike"]]

    def break_losses(team: Any, batches: Any, forward: Any, losses: Any, **sizes: Any) -> dict[str, float]:
        def infinite(batch: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: value * float("inf") for name, value in losses(batch, hidden).items()}

        loop.run_shares = run_shares
        return run_shares(team, batches, forward, infinite, **sizes)

    def step_or_end(training: loop.Training) -> dict[str, float]:
        if (ranks()[0], training.progress.step) == (job["rank"], job["step"]) and left:
            if left.pop() == "infinity":
                loop.run_shares = break_losses
            else:
                os.kill(os.getpid(), signal.Signals[job["strike"]].value)
        return take_step(training)

    loop._step = step_or_end


def run(job: dict[str, Any]) -> None:
    if "strike" in job:
        strike(job)
    stage = next(stage for stage in STAGES if stage.verb == job["verb"])
    config = parse_config(config_class(stage), job["settings"], where=stage.verb)
    try:
        perform(stage, config, Path(job["out"]), Console(quiet=True))
    except KeyboardInterrupt:
        print(f"process {ranks()[0]} was asked to stop", flush=True)
    loop._step = take_step


if __name__ == "__main__":
    loop.plot_losses = lambda *_, **__: None
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
