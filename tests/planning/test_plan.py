"""The plan: exact sizes, memory as real runs take it, speeds by hand, and what it says when something does not fit."""

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cyclopts import App
from rich.console import Console

from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.gguf.writer import write_gguf
from puna.formats.checkpoint.hf.config import render_config
from puna.formats.checkpoint.hf.weights import build_empty
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.attend import packed_attend
from puna.model.config import SIZES, LlamaConfig, matrix_shapes
from puna.model.llama import Llama
from puna.model.quantization.quantized import Quantized
from puna.model.quantization.scheme import FP8, INT8, Scheme
from puna.pipeline import machine
from puna.pipeline.config import parse_config as parse_settings
from puna.pipeline.errors import CheckpointError, ConfigError
from puna.planning.plan import arithmetic
from puna.planning.plan import measure as speed
from puna.planning.plan.advice import Plan, make_plan
from puna.planning.plan.answer import ADAPTER, RECIPE, Answer
from puna.planning.plan.arithmetic import DEVICES, GIB, Device, Machine, Service, count_parameters
from puna.planning.plan.layout import explain_layout, propose_layout
from puna.planning.plan.plan import Hardware, find_machine, plan, read_model
from puna.planning.plan.tables import print_plan
from puna.planning.plan.training import CHUNK_VALUES, TILE_VALUES, Training, plan_training
from puna.training import sft
from puna.training.objectives import losses

SMALL = LlamaConfig(
    dim=64, hidden_dim=160, head_dim=8, num_layers=3, num_heads=8, num_kv_heads=2, vocab_size=530, max_context=4096
)
ROUND = Device("round", 100 * GIB, 1e12, 1e14, 3600.0, reserve_share=0.0)
CPU = replace(ROUND, is_cpu=True)

# What both programs begin with: a model of 22M parameters, and the process's memory in bytes.
MEASURED = """
import json, re, sys
from pathlib import Path
import torch
from puna.model.config import LlamaConfig
from puna.model.llama import Llama

torch.set_num_threads(1)

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def build(dim, num_layers):
    heads = dim // 64
    model = Llama(LlamaConfig(dim, 5 * dim // 2, 64, num_layers, heads, heads // 2, 8192, 1024, tie_embeddings=True))
    model.initialize(0)
    return model
"""

TRAINS = (
    MEASURED
    + """
from puna.data.packing import Batch
from puna.formats.tokenizer.train import train_tokenizer
from puna.training import pretrain
from puna.training.loop.counts import TokenCounter
from puna.training.loop import loop
from puna.training.objectives.next_token import NextToken
from puna.training.loop.optimizer import make_optimizer
from puna.training.loop.state import TrainState
from puna.training.loop.training import Training
from puna.training.parallel.process_groups import ProcessGroups

TOKENIZER = train_tokenizer(["some words and more words"] * 2, vocab_size=520, split_digits=False)

def train(model, num_tokens, context):
    ids = torch.randint(0, 8192, (num_tokens + 1,))
    batch = Batch(ids[:-1], ids[1:], torch.ones(num_tokens, dtype=torch.bool), (context,) * (num_tokens // context))
    class Packer:
        num_too_long = 0
        def next(self, position):
            return batch, position
    widths = {"dim": 64, "hidden_dim": 64, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
    config = pretrain.Config(
        data=[], size=widths, tokenizer=Path(), steps=2, precision=sys.argv[1], grad_accumulation=int(sys.argv[2])
    )
    optimizer = make_optimizer(model, config.optim)
    counter = TokenCounter(TOKENIZER)
    counter._is_formatting = dict.fromkeys(range(8192), False)
    training = Training(
        config, None, NextToken(None, True, False), model, optimizer, Packer(), TrainState(), ProcessGroups(), counter
    )
    for _ in range(2):
        loop.take_step(training)

train(build(128, 1), 64, 64)
before = resident("VmRSS")
train(build(512, 6), 512, 256)
print(json.dumps(resident("VmHWM") - before))
"""
)

SERVES = (
    MEASURED
    + """
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams

def serve(path, length):
    sampler = LocalSampler.open(path, options=EngineOptions(max_batch=4))
    params = SamplingParams(max_tokens=4, temperature=0.0, stop_ids=())
    # Four that begin differently: what is alike would be held once.
    sampler.complete([[(token + first) % 500 for token in range(length)] for first in range(4)], params)
    return sampler

serve(Path(sys.argv[1]), 16)
before = resident("VmRSS")
sampler = serve(Path(sys.argv[2]), 508)
print(json.dumps(resident("VmRSS") - before))
"""
)


def measure(program: str, *arguments: object, returns_memory: bool = True) -> int:
    """Run a program that prints a number; `returns_memory` makes the allocator hand back all that is freed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if returns_memory:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def small_tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 3, vocab_size=530, split_digits=False)


def planned(name: str = "8b", *, context: int | None = None, lora_rank: int | None = None, **hardware: Any) -> Plan:
    config, stored = read_model(name)
    service = Service(context or config.max_context)
    training = Training(10**9, 4096, lora_rank=lora_rank)
    return make_plan(name, config, stored, find_machine(Hardware(**hardware)), service, training)


def shown(made: Plan) -> str:
    written = io.StringIO()
    print_plan(made, Console(width=80, file=written))
    return " ".join(written.getvalue().split())


def run_plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    App(default_command=plan, result_action="return_value")(list(arguments), exit_on_error=False)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "parameters", "weights_gib", "token_bytes", "cache_gib"),
    [
        ("8b", 8_030_261_248, 15.0, 131_072, 16),
        ("70b", 70_553_706_496, 131.4, 327_680, 40),
        ("405b", 405_853_388_800, 756.0, 516_096, 63),
    ],
)
def test_the_published_sizes_come_out(
    name: str, parameters: int, weights_gib: float, token_bytes: int, cache_gib: int
) -> None:
    made = planned(name)
    assert made.parameters.total == parameters
    assert made.kv_bytes_per_token == token_bytes
    bfloat16 = next(each for each in made.service_plans if each.dtype == "bfloat16")
    assert round(bfloat16.weights_bytes / GIB, 1) == weights_gib
    assert bfloat16.kv_cache_bytes == cache_gib * GIB


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_by_kind_as_the_network_has_them(tied: bool) -> None:
    config = replace(SMALL, tie_embeddings=tied)
    counts = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head"), 0)
    kinds = {"embed_tokens": "embeddings", "self_attn": "attention", "mlp": "mlp", "lm_head": "head"}
    for name, parameter in build_empty(config).named_parameters():
        kind = next((kind for part, kind in kinds.items() if part in name.split(".")), "norms")
        counts[kind] += parameter.numel()
    assert asdict(arithmetic.count_parameters(config)) == {**counts, "total": sum(counts.values())}


INSIDE = [path for path in matrix_shapes(SMALL) if path.startswith("layers.")]
SCHEMES = {
    "int8": dict.fromkeys(INSIDE, INT8),
    "int4": dict.fromkeys(INSIDE, Scheme("int", 4, 32)),
    "fp8": dict.fromkeys([path for path in INSIDE if path.startswith("layers.1.mlp.")], FP8),
}


def tensor_bytes(config: LlamaConfig, schemes: dict[str, Scheme], dtype: torch.dtype) -> int:
    model = build_empty(config, schemes)
    for module in model.modules():
        if not isinstance(module, Quantized):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.to(dtype)))
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4", "fp8"])
def test_weights_take_the_bytes_of_the_networks_tensors(dtype: str, tied: bool) -> None:
    config = replace(SMALL, tie_embeddings=tied)
    kept = torch.float32 if dtype == "float32" else torch.bfloat16
    assert arithmetic.weight_bytes(config, dtype) == tensor_bytes(config, SCHEMES.get(dtype, {}), kept)


def test_a_stored_model_is_planned_with_its_own_schemes(tmp_path: Path) -> None:
    schemes = SCHEMES["int4"] | {"lm_head": INT8, "layers.0.mlp.up_proj": INT8}
    made = planned(str(write_config(tmp_path, dtype=torch.float32, schemes=schemes)))
    assert made.stored_dtype == "int4 g32, int8"
    stored = next(each for each in made.service_plans if each.dtype == made.stored_dtype)
    assert stored.weights_bytes == tensor_bytes(SMALL, schemes, torch.float32)


def test_int4_takes_four_and_an_eighth_bits_inside_the_layers() -> None:
    inside, outside = 1_342_177_280 + 5_637_144_576, 2 * 525_336_576 + 266_240
    assert arithmetic.weight_bytes(SIZES["8b"], "int4") == inside * 4.125 / 8 + 2 * outside


def test_lora_of_rank_16_on_the_8b_trains_42_million_parameters() -> None:
    made = planned(lora_rank=16).training_plan
    assert made.trained_parameters == 41_943_040
    assert made.weights_bytes == 2 * 8_030_261_248 + 4 * 41_943_040
    assert made.peak_bytes < planned().training_plan.peak_bytes / 2


def test_pre_training_the_405b_takes_the_papers_flops() -> None:
    training = Training(15_600_000_000_000, 8192, 4_194_304, accumulate=4)
    made = plan_training(SIZES["405b"], training, Machine(arithmetic.DEVICES["h100"], 16_384))
    assert made.total_flops == pytest.approx(3.8e25, rel=0.05)
    assert made.seconds is not None and 50 < made.seconds / 86_400 < 90


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_the_kv_cache_of_a_running_engine_has_the_planned_bytes(kv_dtype: str) -> None:
    tokenizer = small_tokenizer()
    model = Llama(SMALL)
    model.initialize(0)
    engine = Engine(model, tokenizer, options=EngineOptions(max_batch=3, is_int8_cache=kv_dtype == "int8"))
    for token in range(5, 8):  # Different ones: what is alike would be shared.
        engine.submit([token] * 190, SamplingParams(max_tokens=10, stop_ids=()))
    for _ in range(5):
        engine.step()
    assert engine.num_running == 3
    assert isinstance(engine.runner, TorchRunner)
    memory = (*engine.runner._keys, *engine.runner._values)
    page_bytes = sum(pages.num_bytes for pages in memory) // memory[0].num_pages
    assert arithmetic.cache_bytes(SMALL, Service(195, 3, kv_dtype)) == engine.pool.num_held * page_bytes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [60, 100, 525, 2100])
def test_activations_are_what_the_network_keeps_for_the_backward_pass(precision: str, context: int) -> None:
    model = Llama(SMALL)
    model.initialize(0)
    num_tokens = 2100
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    lengths = [context] * (num_tokens // context)
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.arange(num_tokens) % 500
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(tokens, positions, packed_attend(lengths), dtype=getattr(torch, precision))
        F.cross_entropy(model.logits(hidden), tokens)
    training = Training(1, context, num_tokens, precision=precision)
    made = plan_training(SMALL, training, Machine(CPU))
    log_probabilities = 4 * num_tokens * SMALL.vocab_size
    expected = made.activations_bytes + made.rounded_weights_bytes + log_probabilities
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "accumulate"), [("float32", 1), ("float32", 2), ("bfloat16", 1)])
def test_training_takes_the_planned_memory(precision: str, accumulate: int) -> None:
    widths = LlamaConfig(512, 1280, 64, 6, 8, 4, 8192, 1024, tie_embeddings=True)
    training = Training(1, 256, 512, accumulate, precision)
    made = plan_training(widths, training, find_machine(Hardware("here")))
    assert 20e6 < made.trained_parameters < 30e6
    assert made.peak_bytes == pytest.approx(measure(TRAINS, precision, accumulate), rel=0.1)


@pytest.mark.slow
def test_what_the_allocator_keeps_stays_within_the_reserve() -> None:
    widths = LlamaConfig(512, 1280, 64, 6, 8, 4, 8192, 1024, tie_embeddings=True)
    machine = find_machine(Hardware("here"))
    made = plan_training(widths, Training(1, 256, 512, 2, "float32"), machine)
    taken = measure(TRAINS, "float32", 2, returns_memory=False)
    assert made.peak_bytes < taken < made.peak_bytes / (1 - machine.device.reserve_share)


@pytest.mark.slow
def test_serving_takes_the_planned_memory(tmp_path: Path) -> None:
    paths = []
    for dim, num_layers in ((128, 1), (512, 8)):
        widths = LlamaConfig(dim, 5 * dim // 2, 64, num_layers, dim // 64, dim // 128, 8192, 512, tie_embeddings=True)
        model = Llama(widths)
        model.initialize(0)
        paths.append(tmp_path / str(dim))
        paths[-1].mkdir()
        save_checkpoint(paths[-1], model, small_tokenizer())
    made = arithmetic.plan_service(widths, "float32", Service(512, 4, "float32"), Machine(CPU))
    assert made.total_bytes > 120e6
    assert made.total_bytes == pytest.approx(measure(SERVES, *paths), rel=0.1)


def test_what_is_held_at_once_is_what_the_losses_and_the_cache_say() -> None:
    assert (losses.CHUNK_VALUES, losses.TILE_VALUES, PAGE_LEN) == (CHUNK_VALUES, TILE_VALUES, arithmetic.CACHE_BLOCK)


def test_decoding_is_bound_by_the_bytes_read_and_then_by_flops() -> None:
    alone = arithmetic.plan_service(SIZES["8b"], "bfloat16", Service(64), Machine(ROUND))
    read = 2 * (8_030_261_248 - 525_336_576) + 64 * 131_072  # the table of embeddings is looked up, not read
    assert alone.decode_tokens_per_second == pytest.approx(0.7e12 / read)
    many = arithmetic.plan_service(SIZES["8b"], "bfloat16", Service(64, batch=5000), Machine(ROUND))
    flops = 2 * (8_030_261_248 - 525_336_576 - 266_240) + 4 * 32 * 4096 * 64
    assert many.decode_tokens_per_second == pytest.approx(0.4 * 1e14 / flops)


def test_prices_follow_time_and_devices() -> None:
    machine = Machine(ROUND, 4)  # a dollar a second and device
    service = arithmetic.plan_service(SIZES["8b"], "bfloat16", Service(1024), machine)
    assert service.decode_tokens_per_second and service.prefill_tokens_per_second
    assert service.decode_usd_per_million_tokens == pytest.approx(4e6 / service.decode_tokens_per_second)
    assert service.prefill_usd_per_million_tokens == pytest.approx(4e6 / service.prefill_tokens_per_second)
    training = plan_training(SIZES["8b"], Training(10**6, 1024), machine)
    assert training.seconds == pytest.approx(training.total_flops / (4 * 0.4 * 1e14))
    assert training.usd == pytest.approx(4 * training.seconds)


def test_any_number_of_devices_can_be_given() -> None:
    machine = find_machine(Hardware(devices=3))
    widths = SIZES["70b"]
    served = arithmetic.plan_service(widths, "bfloat16", Service(4096), machine)
    assert served.fits and served.num_devices == 3 and served.decode_tokens_per_second
    trained = plan_training(widths, Training(10**6, 512, 512, lora_rank=8), machine)
    assert trained.fits == (trained.peak_bytes <= 3 * machine.usable_bytes) and trained.fits
    assert not arithmetic.plan_service(widths, "bfloat16", Service(4096), find_machine(Hardware(devices=1))).fits


@pytest.mark.parametrize(("share", "count"), [(0.9, 1), (1.1, 2), (2.5, 4), (4.1, 8), (8.1, 16), (17, 24)])
def test_devices_come_as_1_2_4_8_and_multiples_of_8(share: float, count: int) -> None:
    taken = arithmetic.plan_service(SIZES["70b"], "bfloat16", Service(4096), Machine(ROUND)).total_bytes
    machine = Machine(replace(ROUND, memory_bytes=int(taken / share)))
    assert arithmetic.plan_service(SIZES["70b"], "bfloat16", Service(4096), machine).num_devices == count


def test_the_70b_does_not_fit_on_one_h100_and_what_would_do_is_said() -> None:
    made = planned("70b", devices=1)
    assert not any(each.fits or each.decode_tokens_per_second for each in made.service_plans)
    text = shown(made)
    assert "Serving in bfloat16 does not fit on one h100: it needs 171.4 GiB, and 71.1 GiB are usable" in text
    assert "4 devices" in text
    assert "too large" in text
    int4 = next(each for each in made.service_plans if each.dtype == "int4")
    assert f"int4 with a context of at most {int4.max_context:,}" in text
    shorter = planned("70b", devices=1, context=int4.max_context)
    assert [each.dtype for each in shorter.service_plans if each.fits] == ["int4"]
    assert "weights in int4" in shown(shorter)


def test_a_model_too_large_for_training_may_fit_with_adapters() -> None:
    advice = " ".join(planned("8b", devices=1).advice)
    assert "Training does not fit on one h100" in advice
    assert "--lora-rank 16), which fits" in advice
    assert planned("8b", devices=1, lora_rank=16).training_plan.fits
    assert planned("8b", devices=4).advice == ()


def test_this_machine_has_its_memory_and_the_speed_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIMITS", ())
    monkeypatch.setattr(speed, "measured_flops", lambda: 1e12)
    total = Path("/proc/meminfo").read_text().split()[1]
    made = planned("1b", hardware="here", context=1024)
    assert made.machine.device.memory_bytes == int(total) * 1024
    assert made.service_plans[0].decode_tokens_per_second is None
    assert made.answer.adapter.seconds == pytest.approx(made.answer.adapter.total_flops / 0.4e12)
    assert "40% of 1 TFLOP/s measured here" in shown(made) and "give --bandwidth" in shown(made)
    told = planned("1b", hardware="here", context=1024, tflops=0.5, bandwidth=20.0, price=0.1)
    assert all(each.decode_usd_per_million_tokens for each in told.service_plans if each.fits)


def answered(name: str, gib: float) -> Answer:
    """Ask about a machine with so much usable memory, which reaches 1 TFLOP/s."""
    device = Device("here", round(gib * GIB), None, 2.5e12, None, is_cpu=True, reserve_share=0.0, is_measured=True)
    config, stored = read_model(name)
    return make_plan(name, config, stored, Machine(device, 1), Service(8192), Training(10**9, 4096)).answer


def test_the_first_line_says_whether_it_fits_and_the_largest_context() -> None:
    found = answered("8b", 20)
    assert found.lines[0] == (
        "8b fits on this machine for serving at 8,192 tokens: 16.0 GiB needed in bfloat16, 20.0 GiB usable."
    )
    assert found.lines[1] == f"The largest context that fits is {found.serving.max_context:,} tokens."
    # One block of positions more would not fit, this many does.
    config, machine = SIZES["8b"], Machine(replace(CPU, memory_bytes=20 * GIB), 1)
    sizes = [found.serving.max_context, found.serving.max_context + 16]
    assert [arithmetic.plan_service(config, "bfloat16", Service(size), machine).fits for size in sizes] == [True, False]
    assert answered("1b", 20).lines[1].endswith("131,072 tokens, all that the model can read.")


def test_what_does_not_fit_is_answered_with_what_does() -> None:
    found = answered("8b", 10)
    assert found.lines[0].startswith("8b does not fit on this machine for serving at 8,192 tokens: 16.0 GiB needed")
    assert found.lines[1].startswith("It fits with weights in int8 (") and "or int4 (" in found.lines[1]
    assert found.lines[2].endswith("does not fit: 17.0 GiB needed.")
    # Of the published sizes the largest whose adapter run fits; and the same model over a quantized base.
    assert found.smaller_model == "3b" and "3b in its place (7.3 GiB)" in found.lines[3]
    assert f"over an int4 base ({found.adapter_int4_bytes / GIB:.1f} GiB" in found.lines[3]
    assert answered("70b", 10).lines[1] == "Take a smaller model, or a machine with more memory."
    assert answered("1b", 1).lines[3] == "What would do: a machine with more memory."
    # Weights that fit with a smaller cache alone.
    short = answered("8b", 15.2)
    assert not short.serving.fits and "It fits with weights in int8" in short.lines[1]


def test_the_adapter_run_is_the_recipes() -> None:
    recipe = tomllib.loads((Path(__file__).parents[2] / RECIPE).read_text())["sft"]
    config = parse_settings(sft.Config, {**recipe, "init_from": "x", "data": ["y"]}, where="sft")
    assert config.adapter is not None
    assert (config.adapter.rank, config.checkpoint_activations) == (ADAPTER.lora_rank, ADAPTER.checkpoint_activations)
    assert (config.grad_accumulation, config.precision) == (ADAPTER.accumulate, ADAPTER.precision)
    # The recipe leaves both to the data: rows of up to 1,024 tokens, enough of them for batches of 4,096.
    assert config.max_length is config.batch_tokens is None
    assert (ADAPTER.context, ADAPTER.batch_tokens) == (1024, 4096)


def test_time_of_an_adapter_counts_the_forward_pass_twice() -> None:
    found = answered("8b", 20)
    # Forward, again for the activations, and back through frozen weights: 2 FLOPs a parameter each.
    assert found.adapter.flops_per_token == pytest.approx(6 * 7.5e9, rel=0.05)
    assert found.lines[2].endswith("1,000 conversations of 500 tokens take 6.4 h, at 40% of 2.5 TFLOP/s measured here.")


def test_a_product_is_measured_on_this_machine() -> None:
    assert 1e8 < speed.measured_flops() < 1e16


def test_a_container_has_the_memory_that_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text("1073741824\n")
    monkeypatch.setattr(machine, "LIMITS", (tmp_path / "limit",))
    monkeypatch.setattr(speed, "measured_flops", lambda: 1e12)
    assert find_machine(Hardware("here")).device.memory_bytes == 2**30


def test_given_numbers_replace_the_data_sheet() -> None:
    sheet, given = planned(), planned(price=6.0, bandwidth=6700.0, mfu=0.2)
    before, after = sheet.service_plans[1], given.service_plans[1]
    assert before.decode_tokens_per_second and after.decode_tokens_per_second
    assert after.decode_tokens_per_second == pytest.approx(2 * before.decode_tokens_per_second)
    assert after.decode_usd_per_million_tokens == pytest.approx(before.decode_usd_per_million_tokens)
    assert sheet.training_plan.seconds and given.training_plan.seconds
    assert given.training_plan.seconds == pytest.approx(2 * sheet.training_plan.seconds)
    assert any("$3.00" in line for line in sheet.assumptions)
    assert not any("$" in line for line in given.assumptions)


def test_json_holds_what_was_computed(capsys: pytest.CaptureFixture[str]) -> None:
    read = json.loads(run_plan(capsys, "8b", "--json", "--devices", "2", "--tokens", "2e9", "--batch", "3"))
    service = Service(8192, 3)
    config = SIZES["8b"]
    made = make_plan("8b", config, None, find_machine(Hardware(devices=2)), service, Training(2 * 10**9, 4096))
    assert read == json.loads(json.dumps(asdict(made)))
    assert read["service_plans"][1]["kv_cache_bytes"] == 3 * GIB
    assert read["answer"]["lines"][0].startswith("8b fits on 2 x h100 for serving at 8,192 tokens: 18.0 GiB needed")


def test_the_tables_show_sizes_in_human_units(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_plan(capsys, "8b", "--context", "8192")
    for piece in ("8,030,261,248 parameters", "15.0 GiB", "1.0 GiB of KV cache", "16.9 h", "Assumed:"):
        assert piece in text


def write_config(path: Path, *, dtype: torch.dtype, schemes: dict[str, Scheme] | None = None) -> Path:
    raw = render_config(SMALL, dtype=dtype, stop_ids=(2,), bos_id=1, pad_id=3, schemes=schemes)
    (path / "config.json").write_text(json.dumps(raw))
    return path


def test_a_config_without_weights_is_enough_and_its_dtype_is_marked(tmp_path: Path) -> None:
    made = planned(str(write_config(tmp_path, dtype=torch.float32)))
    assert made.parameters.total == SMALL.num_parameters
    assert "stored: float32" in shown(made)
    assert planned(str(write_config(tmp_path, dtype=torch.float16))).stored_dtype == "bfloat16"
    assert "stored: int8" in shown(planned(str(write_config(tmp_path, dtype=torch.float32, schemes=SCHEMES["int8"]))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: planned(hardware="h10"), "Did you mean 'h100'"),
        (lambda: planned("8bb"), "neither a size nor a directory.*Did you mean '8b'"),
        (lambda: planned(price=float("nan")), "--price nan; expected a number above 0"),
        (lambda: planned(mfu=1.5), "at most 1"),
        (lambda: planned(devices=0), "--devices 0"),
        (lambda: plan("8b", batch=-1), "--batch -1"),
        (lambda: plan("8b", context=200_000), "--context 200000; expected at most the model's 131,072"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_expected(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model that Puna knows; expected .*config.json"):
        read_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter; expected a size, or the base model of the adapter"):
        read_model(str(tmp_path))


def test_a_gguf_file_is_planned_as_its_directory_is(tmp_path: Path) -> None:
    model = Llama(SMALL)
    model.initialize(0)
    (tmp_path / "model").mkdir()
    save_checkpoint(tmp_path / "model", model, small_tokenizer())
    source = Checkpoint.open(tmp_path / "model").source()
    write_gguf(tmp_path / "model.gguf", source, kind="F32", name="small", template="")
    assert read_model(str(tmp_path / "model.gguf"))[0] == read_model(str(tmp_path / "model"))[0]


def test_a_layout_fits_and_uses_every_gpu():
    machine = Machine(DEVICES["h100"])
    for size, num_devices in (("8b", 8), ("70b", 64), ("405b", 512), ("405b", 16_384)):
        training = Training(10**9, 8192, 8192)
        layout = propose_layout(SIZES[size], training, machine, num_devices)
        assert layout and layout.num_devices == num_devices and layout.total_bytes <= machine.usable_bytes
        assert layout.accumulate % layout.data == 0 and SIZES[size].num_kv_heads % layout.tensor == 0
        kept = layout.weights_bytes + layout.moments_bytes + layout.gradients_bytes
        assert kept * num_devices >= 16 * count_parameters(SIZES[size]).total * 0.999
        told = " ".join(explain_layout(layout))
        assert all(
            (f"{name} {count}" in told) == (count > 1)
            for name, count in (("tensor", layout.tensor), ("context", layout.context), ("pipeline", layout.pipeline))
        )


def test_no_layout_where_none_fits():
    assert propose_layout(SIZES["405b"], Training(10**9, 8192, 8192), Machine(DEVICES["l4"]), 8) is None
