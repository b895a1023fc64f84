"""The device that a stage computes on: a GPU where there is one, the same one to the end, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.data.packing import Batch
from puna.inference.engine.local import LocalSampler
from puna.model.config import LlamaConfig
from puna.model.kernels.device import choose_device
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run

Perform = Callable[..., bool]

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine on which torch finds a GPU; the kinds of device that networks are put on, which they never reach."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kinds: list[str] = []

    def to(self: Llama, device: torch.device | torch.dtype, *_: Any) -> Llama:
        if isinstance(device, torch.device):
            kinds.append(device.type)
            if device.type == "cuda":
                raise ReachedGpu
        return self

    monkeypatch.setattr(Llama, "to", to)
    return kinds


class ReachedGpu(Exception):
    """A network would be on the GPU now."""


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, perform_stage: Perform, training: dict):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device = 'cuda'; expected a GPU that torch finds .*"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="device = 'cuda'"):
        perform_stage("sft", Path("never"), **training, parallel={"device": "cuda"})


@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_a_training_in_one_process_is_on_the_gpu(
    verb: str, gpu: list[str], perform_stage: Perform, training: dict[str, Any], tmp_path: Path
):
    with pytest.raises(ReachedGpu):
        perform_stage(verb, tmp_path / "out", **training)
    assert gpu == ["cuda"]


def test_who_asks_for_the_cpu_gets_it_beside_a_gpu(
    gpu: list[str], perform_stage: Perform, training: dict[str, Any], tmp_path: Path
):
    perform_stage("sft", tmp_path / "out", **training, parallel={"device": "cpu"})
    assert set(gpu) == {"cpu"}


def test_label_is_on_the_gpu_unless_told_otherwise(
    gpu: list[str], perform_stage: Perform, checkpoint_path: Path, dataset_path: Path, tmp_path: Path
):
    settings = {"data": [str(dataset_path)], "teacher": str(checkpoint_path), "max_length": 256}
    with pytest.raises(ReachedGpu):
        perform_stage("label", tmp_path / "gpu", **settings)
    perform_stage("label", tmp_path / "cpu", **settings, device="cpu")
    assert gpu == ["cuda", "cpu"]


def test_whoever_answers_or_judges_is_on_the_gpu(gpu: list[str], checkpoint_path: Path):
    with pytest.raises(ReachedGpu):
        LocalSampler.open(checkpoint_path)
    assert gpu == ["cuda"]
    assert LocalSampler.open(checkpoint_path, device="cpu").engine.max_context
    assert gpu == ["cuda", "cpu"]


def test_a_batch_goes_to_the_device_as_a_whole():
    """On meta, torch computes shapes alone, and refuses tensors of another device."""
    ids = torch.zeros(30, dtype=torch.long)
    batch = Batch(ids, ids, ids.bool(), (10, 20), {"top": torch.zeros(30, 4)})
    meta = torch.device("meta")
    there = batch.on(meta)
    tensors = [there.tokens_T, there.targets_T, there.trained_T, there.positions_T, *there.columns.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and there.lengths == (10, 20)
    assert batch.on(torch.device("cpu")) is batch and batch.tokens_T.device.type == "cpu"
    model = Llama(LlamaConfig(64, 96, 16, 2, 4, 2, 530, 128, tie_embeddings=True)).to(meta)
    hidden_TD = there.hidden_states(model, torch.bfloat16)
    hidden_TD.float().sum().backward()
    # Without the padding that a CPU needs; with a gradient for every weight.
    assert hidden_TD.shape == (30, 64) and hidden_TD.device.type == "meta"
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_run_does_not_go_on_on_another_kind_of_device(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(self: Run, step: int, **_: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    settings = {**training, "save_minutes": 1e-9}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "metrics", interrupted)
        perform_stage("sft", tmp_path / "out", **settings)
    states = tmp_path / ".runs" / "out" / "states"
    assert {json.loads(path.read_text())["device"] for path in states.glob("step-*/progress.json")} == {"cpu"}
    monkeypatch.setattr("puna.training.parallel.process_groups.choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(ConfigError, match="began on cpu and would go on on cuda; expected the device it began on"):
        perform_stage("sft", tmp_path / "out", **settings)
    assert states.exists(), "what was computed is kept"
