"""Training by many processes: losses and weights as by one, whatever the layout; no lost process changes them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from safetensors.torch import load_file

from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.training.parallel.context import LocalBatch
from puna.training.parallel.parallel_dims import ParallelDims
from puna.training.parallel.shard_files import ShardFiles, file_name, write_shards
from puna.training.parallel.shards import TensorShard
from puna.training.sft import Config

Settings = dict[str, Any]
Perform = Callable[..., bool]

WORKER = Path(__file__).with_name("parallel_worker.py")
# What doesn't come out even: the vocabulary, tokens of a batch, batches of an epoch.
WIDTHS = {"dim": 32, "hidden_dim": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4}
# Of float32: sums in another order.
TOLERANCE = 2e-6
AT_EVERY_STEP = 1e-9

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
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


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


def state_of(out: Path) -> Path:
    return max((out.parent / ".runs" / out.name / "states").glob("step-*"))


@pytest.fixture(scope="module")
def settings(training: Settings, dataset_path: Path) -> Settings:
    """A training whose last step has fewer batches than the others, with a validation loss."""
    changes = {"size": WIDTHS, "batch_tokens": 256, "grad_accumulation": 4, "steps": None, "epochs": 3}
    return {**training, **changes, "validation": [str(dataset_path)], "optim": {"lr": 1e-3, "warmup_steps": 2}}


@pytest.fixture(scope="module")
def two(
    perform_stage: Perform, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What one process makes, and two that are started once for several trainings."""
    path = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.training.reports.plot.plot_losses", lambda *_, **__: None)
        perform_stage("sft", path / "alone", **settings)
    at_step = {"rank": 1, "step": 1}
    jobs = [
        ("infinity", {}, {"strike": "infinity", **at_step}),
        ("stopped", {"tensor": 2}, {"strike": "SIGTERM", **at_step}),
        ("moved", {"context": 2}, {"strike": "SIGTERM", **at_step}),
        ("moved", {"pipeline": 2}, {}),
    ]
    told = [
        {"verb": "sft", "out": str(path / name), "settings": {**settings, "parallel": layout}, **strike}
        for name, layout, strike in jobs
    ]
    return path, run_team(told, path / "jobs.json", num_ranks=2)


def test_what_one_process_finds_infinite_changes_the_weights_of_none(
    two: tuple[Path, subprocess.CompletedProcess[str]],
):
    path, _ = two
    log = (path / ".runs" / "infinity" / "log.txt").read_text()
    assert log.count("not finite; the weights are unchanged") == 1 and "step 2: the loss" in log
    found = [row["loss"] for row in metrics(path / "infinity")]
    expected = [row["loss"] for row in metrics(path / "alone")]
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE) and found[1] is None
    assert all(weight.isfinite().all() for weight in load_file(path / "infinity" / "model.safetensors").values())


def test_a_state_that_many_wrote_is_read_by_one(
    perform_stage: Perform,
    settings: Settings,
    two: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    path, done = two
    assert done.returncode == 0, done.stderr[-6000:]
    assert sorted(done.stdout.splitlines()).count("process 0 was asked to stop") == 2
    assert len(list(state_of(path / "stopped").glob("model-*-of-00002.safetensors"))) == 2
    monkeypatch.setattr("puna.training.reports.plot.plot_losses", lambda *_, **__: None)
    perform_stage("sft", path / "stopped", **settings)
    assert "resuming after step 2" in (path / ".runs" / "stopped" / "log.txt").read_text()
    assert_same_training(path / "stopped", path / "alone")


def test_a_run_goes_on_in_another_layout(two: tuple[Path, subprocess.CompletedProcess[str]]):
    path, _ = two
    assert "resuming after step 2" in (path / ".runs" / "moved" / "log.txt").read_text()
    assert_same_training(path / "moved", path / "alone")


@pytest.mark.parametrize(
    ("settings", "num_ranks", "message"),
    [
        ({"tensor": 2}, 1, r"1 processes for .* = 2; expected a multiple of 2.*Start 2: torchrun"),
        ({"data": 3, "tensor": 2}, 4, r"parallel\.data = 3; expected 6 processes"),
        ({"tensor": 8}, 8, r"parallel\.tensor = 8 with num_heads = 4; expected one of 1, 2, 4"),
        ({"pipeline": 8}, 8, r"parallel\.pipeline = 8 for 4 layers; expected at most 4"),
        ({}, 8, r"grad_accumulation = 4 with 8 data ranks; .*--grad-accumulation 8"),
    ],
)
def test_what_cannot_be_divided_is_refused(training: Settings, settings: Settings, num_ranks: int, message: str):
    config = parse_config(
        Config, {**training, "size": WIDTHS, "grad_accumulation": 4, "parallel": settings}, where="sft"
    )
    widths = LlamaConfig(**WIDTHS, head_dim=8, vocab_size=600, max_context=256, tie_embeddings=True)
    with pytest.raises(ConfigError, match=message):
        ParallelDims.of(config.parallel, num_ranks).require_fit(widths, config)


@settings_of(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.data())
def test_pieces_give_any_part_back(height: int, width: int, rows: int, columns: int, data: st.DataObject):
    whole = torch.arange(height * width).view(height, width).float()
    cuts = [
        sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=count))})
        for size, count in ((height, rows), (width, columns))
    ]
    boxes = [((a, b), (c, d)) for a, b in pairwise(cuts[0]) for c, d in pairwise(cuts[1])]
    with tempfile.TemporaryDirectory() as folder:
        for rank, box in enumerate(boxes):
            (top, bottom), (left, right) = box
            part = TensorShard(whole[top:bottom, left:right].contiguous(), box, (height, width))
            write_shards(Path(folder) / file_name("model", rank, len(boxes)), {"weight": part})
        wanted = tuple(
            tuple(sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))) for size in (height, width)
        )
        (top, bottom), (left, right) = wanted
        pieces = ShardFiles(Path(folder), "model")
        assert torch.equal(pieces.read("weight", wanted), whole[top:bottom, left:right])
        assert torch.equal(pieces.read_all("weight"), whole)


def test_a_part_that_is_missing_is_named(tmp_path: Path):
    write_shards(
        tmp_path / "model-00000-of-00002.safetensors", {"weight": TensorShard(torch.zeros(2), ((0, 2),), (4,))}
    )
    with pytest.raises(ArtifactError, match="weight is not whole"):
        ShardFiles(tmp_path, "model").read("weight", ((0, 4),))


@pytest.mark.tenth
def test_after_a_killed_process_the_run_goes_on_from_its_last_state(settings: Settings, tmp_path: Path):
    strike = {"strike": "SIGKILL", "rank": 1, "step": 2}
    often = {**settings, "save_minutes": AT_EVERY_STEP}
    jobs = [
        {"verb": "sft", "out": str(tmp_path / "whole"), "settings": settings},
        {"verb": "sft", "out": str(tmp_path / "killed"), "settings": often, **strike},
    ]
    done = run_team(jobs, tmp_path / "jobs.json", num_ranks=2, restarts=1)
    assert done.returncode == 0 and "exitcode: -9" in done.stderr, done.stderr[-6000:]
    assert "resuming after step 2" in (tmp_path / ".runs" / "killed" / "log.txt").read_text()
    whole, killed = (artifact.hash_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert killed == whole
    assert [row["step"] for row in metrics(tmp_path / "killed")] == [row["step"] for row in metrics(tmp_path / "whole")]


def test_a_teacher_reads_a_share_of_a_batch_with_the_attention_of_the_share():
    model = Llama(LlamaConfig(**WIDTHS, head_dim=8, vocab_size=64, max_context=32))
    model.initialize(0)
    tokens, places = torch.arange(8), torch.tensor([0, 1, 6, 7])
    seen = []

    def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
        seen.append(len(q_THE))
        return q_THE

    own = LocalBatch(tokens[places], tokens[places], tokens[places] > 0, (8,), positions=places, attend_local=attend)
    hidden_TD = own.hidden_states(model, torch.float32)
    assert seen == [4] * WIDTHS["num_layers"]
    assert torch.equal(hidden_TD, model(tokens[places], places, attend, dtype=torch.float32))


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
    assert done.returncode == 0, done.stderr[-6000:]
    for name in LAYOUTS:
        assert_same_training(tmp_path / name, tmp_path / "alone")
