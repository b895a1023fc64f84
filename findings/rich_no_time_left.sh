#!/usr/bin/env bash
# Surprise: a progress bar of rich never shows the remaining time where a step takes longer than 30 seconds: the column stays
#   "-:--:--" to the end. The speed is estimated from steps of the last 30 seconds, and from two of these at least.
# Why it matters here: rounding or pruning a layer of a large model takes minutes, and these are the bars that people watch
#   for the remaining time. Puna measures the rate itself, from the first finished step on.
# Source: rich/progress.py, `Progress(speed_estimate_period=30.0)` and `Task.speed`;
#   https://rich.readthedocs.io/en/stable/progress.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rich==15.0.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

print(f"rich {version('rich')}")
for seconds, expected in ((10, 800), (31, None)):
    clock = [0.0]
    bar = Progress(TimeRemainingColumn(), console=Console(quiet=True), get_time=lambda: clock[0])
    task = bar.add_task("layers", total=100)
    for _ in range(20):
        clock[0] += seconds
        bar.advance(task)
    left = bar.tasks[0].time_remaining
    print(f"20 of 100 steps of {seconds} seconds: {left} seconds left")
    assert left == expected, "the behaviour is gone"
PYTHON
