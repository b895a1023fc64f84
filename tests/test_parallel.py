"""Training by many processes: losses and weights as by one, whatever the layout; no lost process changes them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Settings = dict[str, Any]
Perform = Callable[..., bool]

WORKER = Path(__file__).with_name("parallel_worker.py")
# What doesn't come out even: the vocabulary, tokens of a batch, batches of an epoch.
WIDTHS = {"dim": 32, "hidden_dim": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4}
TOLERANCE = 2e-5

LAYOUTS = {
    "dp4": {},
    "tp2 x dp2": {"tensor": 2},
    "pp2 x dp2": {"pipeline": 2},
    "cp2 x dp2": {"context": 2},
    "tp2 x pp2": {"tensor": 2, "pipeline": 2},
    "tp2 x cp2": {"tensor": 2, "context": 2},
    "pp2 x cp2": {"pipeline": 2, "context": 2},
    "tp4": {"tensor": 4},
    "pp4": {"pipeline": 4},
    "cp4": {"context": 4},
}


def run_team(
    jobs: list[Settings], path: Path, *, num_ranks: int, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run trainings one after the other in processes that torchrun starts."""
    path.write_text(json.dumps(jobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [*torchrun, f"--max-restarts={restarts}", "--monitor-interval=0.1", str(WORKER), str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run_metrics.jsonl").read_text().splitlines()]


def assert_same_training(out: Path, alone: Path) -> None:
    """Compare losses, gradient norms and final weights."""
    rows, expected = metrics(out), metrics(alone)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name in wanted.keys() - {"tokens_per_s"}:
            assert row[name] == pytest.approx(wanted[name], rel=TOLERANCE), name
    found, weights = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.fixture(scope="module")
def settings(training: Settings, dataset_path: Path) -> Settings:
    """A training whose last step has fewer batches than the others, with a validation loss."""
    changes = {"size": WIDTHS, "batch_tokens": 256, "accumulate": 4, "steps": None, "epochs": 3}
    return {**training, **changes, "validation": [str(dataset_path)], "optim": {"lr": 1e-3, "warmup_steps": 2}}


@pytest.fixture(scope="module")
def alone(perform_stage: Perform, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    perform_stage("sft", out, **settings)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_every_layout_trains_as_one_process_does(
    perform_stage: Perform, settings: Settings, tmp_path: Path, is_tied: bool
):
    settings = {**settings, "size": {**WIDTHS, "tie_embeddings": is_tied}}
    perform_stage("sft", tmp_path / "alone", **settings)
    jobs = [
        {"verb": "sft", "out": str(tmp_path / name), "settings": {**settings, "parallel": layout}}
        for name, layout in LAYOUTS.items()
    ]
    done = run_team(jobs, tmp_path / "jobs.json", num_ranks=4)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "[rank" in line)[:6000]
    for name in LAYOUTS:
        assert_same_training(tmp_path / name, tmp_path / "alone")
