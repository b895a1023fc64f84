"""The engine and training on a CUDA device: what a CPU computes. Run them with `pytest -m gpu` where there is one."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_engine
import torch
from test_decode_step import SCHEMES, quantized_model

from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.inference.engine.engine import Engine
from puna.inference.engine.runners.cuda_graphs import CudaGraphs
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.model.quantization import float8
from puna.model.quantization.float8 import Float8Linear
from puna.model.quantization.quantized import round_linears
from puna.model.quantization.scheme import FP8, Scheme
from puna.pipeline.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PARAMS = SamplingParams(max_tokens=40, temperature=0)


def sample(engine: Engine, prompts: Sequence[list[int]] = test_engine.PROMPTS) -> list[list[int]]:
    ids = [engine.submit(prompt, PARAMS) for prompt in prompts]
    chunks = test_engine.drain(engine)
    assert not any(chunks[request][-1].error for request in ids)
    return [[token for chunk in chunks[request] for token in chunk.ids] for request in ids]


def new_engine(model: Llama, **options) -> Engine:
    return Engine(model, test_engine.tiny_tokenizer(), **options)


def recorded(engine: Engine) -> CudaGraphs:
    assert isinstance(engine.runner, TorchRunner) and engine.runner.decode_step
    assert isinstance(engine.runner.decode_step.run, CudaGraphs)
    return engine.runner.decode_step.run


# Not float8: where activations are rounded, a last bit can turn a token.
@pytest.mark.parametrize("scheme", SCHEMES[:3], ids=["float", "int8", "int4"])
def test_greedy_tokens_are_those_of_the_cpu(scheme: Scheme | None, caplog: pytest.LogCaptureFixture):
    options = {"dtype": torch.float32}
    there = sample(new_engine(quantized_model(scheme), **options))
    engine = new_engine(quantized_model(scheme).cuda(), **options)
    assert sample(engine) == there
    # Nothing was given up: no warning, and each shape has its graph.
    assert not [record for record in caplog.records if record.name.startswith("puna")]
    assert recorded(engine).num_graphs >= 1


def test_a_graph_serves_again_and_whoever_comes(caplog: pytest.LogCaptureFixture):
    engine = new_engine(quantized_model(None).cuda(), dtype=torch.float32)
    alone = [sample(engine, [prompt])[0] for prompt in test_engine.PROMPTS]
    num_graphs = recorded(engine).num_graphs
    assert [sample(engine, [prompt])[0] for prompt in test_engine.PROMPTS] == alone
    assert recorded(engine).num_graphs == num_graphs
    for seed in range(3):
        order = random.Random(seed).sample(range(len(alone)), len(alone))
        assert sample(engine, [test_engine.PROMPTS[at] for at in order]) == [alone[at] for at in order]
    assert not [record for record in caplog.records if record.name.startswith("puna")]


def wide_model() -> Llama:
    config = LlamaConfig(
        dim=512,
        hidden_dim=1024,
        head_dim=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=2,
        vocab_size=530,
        max_context=512,
    )
    model = Llama(config)
    model.initialize(0)
    return model


@pytest.mark.parametrize("scheme", [None, FP8], ids=["bf16", "fp8"])
def test_a_step_in_bfloat16_is_near_that_of_the_cpu(scheme: Scheme | None):
    models = wide_model(), wide_model().cuda()
    scores = []
    for model in models:
        if scheme:
            round_linears(model, scheme)
        engine = new_engine(model.to(torch.bfloat16) if not scheme else model, dtype=torch.bfloat16)
        params = SamplingParams(max_tokens=0, echo_logprobs=True, logprobs=0)
        request = engine.submit(test_engine.new_prompt(200), params)
        (chunk,) = test_engine.drain(engine)[request]
        scores.append(torch.tensor([entry.logprob for entry in chunk.prompt_logprobs[1:]]))
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0.05)


def test_float8_products_are_those_of_the_rounded_numbers(monkeypatch: pytest.MonkeyPatch):
    if not float8.multiplies_float8(torch.device("cuda")):
        pytest.skip("a device without float8")
    generator = torch.Generator().manual_seed(0)
    layer = Float8Linear.rounded(torch.randn(192, 512, generator=generator)).cuda()
    for num_tokens in (1, 2, 7, 16, 33, 300):
        x = torch.randn(num_tokens, 512, generator=generator).bfloat16().cuda()
        fast = layer(x)
        with monkeypatch.context() as patch:
            patch.setattr("puna.model.quantization.float8.multiplies_float8", lambda device: False)
            plain = layer(x)
        torch.testing.assert_close(fast, plain, rtol=0.02, atol=0.01 * plain.abs().max().item())


@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_training_in_one_process_is_that_of_the_cpu(
    verb: str, perform_stage: Callable[..., bool], training: dict[str, Any], tmp_path: Path
):
    for device in ("cpu", "cuda"):
        perform_stage(verb, tmp_path / device, **training, parallel={"device": device})
    rows = [read_metrics(tmp_path / device) for device in ("cpu", "cuda")]
    for one, other in zip(*rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3) and other["tokens"] == one["tokens"]
    models = [Checkpoint.open(tmp_path / device).load() for device in ("cpu", "cuda")]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(other, one, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("adapter", [None, {"rank": 4}], ids=["all weights", "adapter"])
def test_an_interrupted_run_goes_on_on_the_device(
    adapter: dict[str, Any] | None,
    perform_stage: Callable[..., bool],
    training: dict[str, Any],
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    settings = {**training, "save_minutes": 1e-9}
    if adapter:
        for name in ("size", "tokenizer"):
            del settings[name]
        settings |= {"start": str(checkpoint_path), "adapter": adapter}
    perform_stage("sft", tmp_path / "whole", **settings)
    write = Run.metrics

    def interrupted(self: Run, step: int, **values: float) -> None:
        write(self, step, **values)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "metrics", interrupted)
        perform_stage("sft", tmp_path / "out", **settings)
    perform_stage("sft", tmp_path / "out", **settings)
    whole, out = (read_metrics(tmp_path / name) for name in ("whole", "out"))
    assert [row["loss"] for row in out] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
    progress = json.loads((tmp_path / "out" / "run_preview.json").read_text())
    assert progress["forecast"]["peak_bytes"] > progress["forecast"]["weights_bytes"]


@pytest.mark.parametrize("teacher", ["teacher", "labels"])
def test_a_student_learns_on_the_device_from_a_teacher_or_its_labels(
    teacher: str,
    perform_stage: Callable[..., bool],
    training: dict[str, Any],
    checkpoint_path: Path,
    dataset_path: Path,
    tmp_path: Path,
):
    settings: dict[str, Any] = {**training, "teacher": str(checkpoint_path)}
    if teacher == "labels":
        told = {"data": [str(dataset_path)], "teacher": str(checkpoint_path), "max_length": 256, "precision": "float32"}
        for device in ("cpu", "cuda"):
            perform_stage("label", tmp_path / f"labels {device}", **told, device=device)
        settings |= {"labels": str(tmp_path / "labels cuda")}
        del settings["teacher"], settings["data"]
    losses = []
    for device in ("cpu", "cuda"):
        perform_stage("distill", tmp_path / device, **settings, parallel={"device": device})
        losses.append([row["loss"] for row in read_metrics(tmp_path / device)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "run_metrics.jsonl").read_text().splitlines()]
