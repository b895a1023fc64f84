"""The step in few shapes that a GPU replays: equal to the plain one, whatever pads it, compiled or not."""

import logging
import random
from array import array
from typing import Any

import pytest
import test_engine
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners import cuda_graphs, decode_step
from puna.inference.engine.runners.cuda_graphs import compiled
from puna.inference.engine.runners.decode_step import NUM_FIXED, DecodeStep
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.llama import Llama
from puna.model.quantization.quantized import round_linears
from puna.model.quantization.scheme import FP8, INT8, Scheme

NUM_SEQUENCES, TABLE_LEN = 9, 20
LENGTHS = (1, 15, 16, 17, 40, 127, 128, 129, 200)


def new_runner(model: Llama, **options: str) -> TorchRunner:
    runner = TorchRunner(model, num_pages=NUM_SEQUENCES * TABLE_LEN, dtype=torch.float32)
    if options:
        give_decode_step(runner, model, **options)
    return runner


def give_decode_step(runner: TorchRunner, model: Llama, backend: str = "") -> None:
    keys, values = runner._keys, runner._values
    runner.decode_step = DecodeStep(model, keys, values, dtype=torch.float32, backend=backend or None)


def compare_steps(model: Llama, *, backend: str, num_steps: int, spare: float = 0.0) -> None:
    """Let both read some prompts and then take steps of some of the sequences; assert that they agree."""
    draw = random.Random(0)
    runners = new_runner(model), new_runner(model, backend=backend)
    for memory in runners[1]._keys + runners[1]._values:
        memory._memory[-PAGE_LEN:] = spare
    pages = draw.sample(range(NUM_SEQUENCES * TABLE_LEN), NUM_SEQUENCES * TABLE_LEN)
    tables = [array("i", pages[index * TABLE_LEN :][:TABLE_LEN]) for index in range(NUM_SEQUENCES)]
    lengths = list(LENGTHS)
    prompts = [draw.randrange(model.config.vocab_size) for length in lengths for _ in range(length)]
    spans = [Span(table, 0, length) for table, length in zip(tables, lengths, strict=True)]
    for runner in runners:
        runner.forward(prompts, spans, [])
    for step in range(num_steps):
        chosen = draw.sample(range(NUM_SEQUENCES), 1 if step == 1 else draw.randrange(2, NUM_SEQUENCES + 1))
        tokens = [draw.randrange(model.config.vocab_size) for _ in chosen]
        spans = [Span(tables[index], lengths[index], 1) for index in chosen]
        plain, ours = (runner.logits(runner.forward(tokens, spans, range(len(chosen)))) for runner in runners)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.argmax(-1), plain.argmax(-1))
        for index in chosen:
            lengths[index] += 1


@torch.inference_mode()
def test_a_padded_step_equals_the_plain_one():
    compare_steps(test_engine.tiny_model(), backend="", num_steps=20)


@torch.inference_mode()
def test_nobody_reads_the_page_that_padding_writes():
    compare_steps(test_engine.tiny_model(), backend="", num_steps=5, spare=float("nan"))


@torch.inference_mode()
def test_sequences_that_would_be_padded_too_far_are_computed_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_step, "MAX_POSITIONS", 512)
    compare_steps(test_engine.tiny_model(), backend="", num_steps=10)


def test_an_engine_that_takes_padded_steps_samples_the_same():
    params = SamplingParams(max_tokens=12, temperature=0)
    texts = []
    for is_padded in (False, True):
        engine = test_engine.new_engine()
        assert isinstance(engine.runner, TorchRunner)
        if is_padded:
            give_decode_step(engine.runner, test_engine.tiny_model())
        ids = [engine.submit(prompt, params) for prompt in test_engine.PROMPTS]
        chunks = test_engine.drain(engine)
        texts.append([[token for chunk in chunks[request] for token in chunk.ids] for request in ids])
    assert texts[0] == texts[1]


class Tape(TorchDispatchMode):
    """Writes down what is called and computes it again into the same memory, as a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@torch.no_grad()
def test_a_step_that_was_recorded_computes_other_inputs_as_well():
    model, draw = test_engine.tiny_model(), random.Random(0)
    runner, plain = new_runner(model, backend=""), new_runner(model)
    assert runner.decode_step
    tables = [array("i", range(index * TABLE_LEN, (index + 1) * TABLE_LEN)) for index in range(NUM_SEQUENCES)]
    inputs_BX, tape = torch.zeros(4, NUM_FIXED + 8, dtype=torch.int32), Tape()
    with tape:
        result_BD = runner.decode_step.run(inputs_BX)
    for position in (*range(20), 126, 127):
        for count in (3, 4):
            tokens = [draw.randrange(500) for _ in range(count)]
            spans = [Span(table, position, 1) for table in tables[:count]]
            inputs_BX.copy_(runner.decode_step._pad(tokens, spans))
            tape.replay()
            torch.testing.assert_close(result_BD[:count], plain.forward(tokens, spans, range(count)))


class OneDevice(TorchDispatchMode):
    """Fails where a tensor is on the CPU: copies between devices can't be recorded."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == "meta" for tensor in tensors), func
        return result


def quantized_model(scheme: Scheme | None) -> Llama:
    model = test_engine.tiny_model.__wrapped__(num_layers=3)
    if scheme:
        round_linears(model, scheme)
    return model


SCHEMES = [None, INT8, Scheme("int", 4, 16), FP8]


@pytest.mark.parametrize("scheme", SCHEMES, ids=["float", "int8", "int4", "fp8"])
@torch.inference_mode()
def test_a_step_stays_on_its_device_and_reads_no_values(scheme):
    model = quantized_model(scheme).to("meta")
    model.frequencies = model.frequencies.to("meta")
    step = new_runner(model, backend="").decode_step
    assert step
    inputs_BX = torch.zeros(4, NUM_FIXED + 8, dtype=torch.int32, device="meta")
    with OneDevice():
        assert model.logits(step.run(inputs_BX)).shape == (4, model.config.vocab_size)


@pytest.mark.tenth
@pytest.mark.parametrize("scheme", SCHEMES, ids=["float", "int8", "int4", "fp8"])
@torch.inference_mode()
def test_one_layer_is_compiled_for_all_once_for_one_row_and_once_for_more(scheme, caplog: pytest.LogCaptureFixture):
    from torch._dynamo.utils import counters

    counters.clear()
    with caplog.at_level(logging.WARNING):
        compare_steps(quantized_model(scheme), backend="aot_eager", num_steps=12)
    assert not caplog.records
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=["float", "int8", "int4", "fp8"])
@torch.inference_mode()
def test_a_compiled_step_equals_the_plain_one(scheme, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        compare_steps(quantized_model(scheme), backend="inductor", num_steps=12)
    assert not caplog.records


@pytest.mark.tenth
def test_what_cannot_be_compiled_is_computed_as_it_is(caplog: pytest.LogCaptureFixture):
    def compute(inputs_BX: torch.Tensor) -> torch.Tensor:
        return inputs_BX * 2 if inputs_BX[0, 0] > 2 else inputs_BX * 3

    run = compiled(compute, "eager")
    assert run(torch.tensor([[2, 3]])).tolist() == [[6, 9]]
    assert "torch can't compile the network" in caplog.text
    assert run(torch.tensor([[3, 1]])).tolist() == [[6, 2]]


@pytest.mark.tenth
def test_what_would_take_too_many_programs_is_computed_as_it_is(caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_graphs, "MAX_PROGRAMS", 2)

    def compute(inputs_BX: torch.Tensor, kind: str) -> torch.Tensor:
        return inputs_BX * len(kind)

    # Each has a limit of its own.
    for run in (compiled(compute, "eager"), compiled(compute, "eager")):
        caplog.clear()
        for kind in ("a", "bc", "def", "ghij"):
            assert run(torch.tensor([[3]]), kind).tolist() == [[3 * len(kind)]]
            assert ("torch can't compile the network" in caplog.text) == (len(kind) >= 3)
