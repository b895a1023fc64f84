"""Adapters beside a base: each request as if its adapter were merged, whatever else is in the step and in memory."""

import json
import shutil
from array import array
from copy import deepcopy
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engine import drain, new_prompt, tiny_model, tiny_tokenizer
from test_kernels import half_model, kernels
from test_serve import KEY, OTHER_KEY, connect, serving

from puna.formats.checkpoint.adapters.adapter import open_adapter, read_lora, require_runnable
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import PREFIX
from puna.formats.checkpoint.checkpoint import save_checkpoint
from puna.inference.engine.adapters import Adapters
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Completion, collect
from puna.inference.engine.runners.native_runner import NativeRunner
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.adapters.lora import Lora
from puna.model.config import ADAPTED
from puna.model.llama import Llama
from puna.model.quantization.quantized import QuantizedLinear, round_linears
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError, RequestError
from puna.serving.middleware.rules import make_rules
from puna.serving.serve import open_served

GREEDY = SamplingParams(max_tokens=12)
MATRICES = tuple(name.split(".")[1] for name in ADAPTED)


def write_adapter(
    directory: Path, model: Llama, seed: int, *, rank: int = 4, names: tuple[str, ...] = MATRICES, **settings: Any
) -> None:
    """Write an adapter that changes the answers, as PEFT would."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for path, module in model.layers.named_modules(prefix="layers"):
        if path.endswith(names):
            out_dim, in_dim = module.weight.shape
            key = f"{PREFIX}model.{path}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(rank, in_dim, generator=generator) * in_dim**-0.5
            tensors[f"{key}B.weight"] = torch.randn(out_dim, rank, generator=generator) * 0.1
    part = directory.with_name(f"part-{directory.name}")
    part.mkdir(parents=True)
    save_file(tensors, part / WEIGHTS_NAME)
    (part / CONFIG_NAME).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank} | settings))
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)


def merged_model(model: Llama, lora: Lora) -> Llama:
    merged = deepcopy(model)
    for path, part in lora.items():
        merged.get_submodule(path).weight.data += part.scale * part.up_OR @ part.down_RI
    return merged


def complete(engine: Engine, requests: list[tuple[list[int], str]]) -> list[Completion]:
    ids = [engine.submit(prompt, GREEDY, adapter=adapter) for prompt, adapter in requests]
    chunks = drain(engine)
    return [collect(chunks[each], len(prompt)) for each, (prompt, _) in zip(ids, requests, strict=True)]


def merged_alone(folder: Path, requests: list[tuple[list[int], str]]) -> list[list[int]]:
    """Return the tokens that a model with the adapter merged into it gives to each request by itself."""
    return [completed_alone(folder, prompt, name).ids for prompt, name in requests]


def completed_alone(folder: Path, prompt: list[int], name: str) -> Completion:
    model = merged_model(tiny_model(), read_lora(open_adapter(folder / name))) if name else tiny_model()
    return complete(Engine(model, tiny_tokenizer()), [(prompt, "")])[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(5):
        write_adapter(tmp_path / f"customer-{seed}", tiny_model(), seed, rank=1 + 2 * seed)
    write_adapter(tmp_path / "values", tiny_model(), 9, names=("v_proj", "down_proj"), use_rslora=True)
    return tmp_path


def new_engine(folder: Path, **options: Any) -> Engine:
    return Engine(tiny_model(), tiny_tokenizer(), options=EngineOptions(adapters=folder, **options))


def test_in_one_batch_each_request_gets_the_tokens_of_its_adapter_merged_alone(folder: Path):
    names = ["", "customer-0", "customer-1", "values", "customer-4"]
    # The same prompt for all: nobody may find the pages that another one's adapter has made.
    requests = [(new_prompt(length), name) for length in (40, 7) for name in names]
    expected = merged_alone(folder, requests)
    assert len({tuple(ids) for ids in expected}) == len(requests)
    engine = new_engine(folder)
    for _ in range(2):  # the second time their prefixes are cached
        assert [completion.ids for completion in complete(engine, requests)] == expected


def test_adapters_come_and_go_within_their_memory_and_the_answers_stay(folder: Path):
    requests = [(new_prompt(10 + index), f"customer-{index % 5}") for index in range(12)]
    expected = merged_alone(folder, requests)
    sizes = [(folder / f"customer-{index}" / WEIGHTS_NAME).stat().st_size for index in range(5)]
    engine = new_engine(folder, adapter_bytes=max(sizes), max_batch=4)
    assert engine.adapters is not None
    ids = [engine.submit(prompt, GREEDY, adapter=name) for prompt, name in requests]
    chunks: dict[int, list] = {each: [] for each in ids}
    while engine.has_work:
        for each, chunk in engine.step():
            chunks[each].append(chunk)
        engine.adapters.check()
        assert engine.adapters.num_loaded < 5
    assert [collect(chunks[each], 0).ids for each in ids] == expected
    with pytest.raises(RequestError, match=r"it takes .* bytes; expected at most 1,000"):
        new_engine(folder, adapter_bytes=1000).submit([9], GREEDY, adapter="customer-4")


def test_an_adapter_can_be_added_replaced_and_removed_while_the_engine_runs(folder: Path):
    engine, prompt = new_engine(folder), new_prompt(20)

    def answer() -> list[int]:
        requests = [(prompt, "customer-0")]
        ours = complete(engine, requests)[0].ids
        assert [ours] == merged_alone(folder, requests)
        return ours

    first = answer()
    write_adapter(folder / "customer-0", tiny_model(), 77)
    assert answer() != first
    shutil.rmtree(folder / "customer-0")
    with pytest.raises(RequestError, match="the adapter 'customer-0'"):
        answer()
    write_adapter(folder / "customer-0", tiny_model(), 0, rank=1)
    assert answer() == first


def test_an_adapter_that_is_damaged_fails_its_own_request_and_is_refused_from_then_on(folder: Path):
    weights = folder / "customer-1" / WEIGHTS_NAME
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights)
    requests = [(new_prompt(9), "customer-0"), (new_prompt(9), "customer-1"), (new_prompt(9), "")]
    engine = new_engine(folder)
    completions = complete(engine, requests)
    assert [completion.finish_reason for completion in completions] == ["length", "error", "length"]
    assert [completions[0].ids, completions[2].ids] == merged_alone(folder, [requests[0], requests[2]])
    with pytest.raises(RequestError, match=r"can't be used.*not finite"):
        engine.submit([9], GREEDY, adapter="customer-1")


@pytest.mark.parametrize("name", ["nobody", "..", ".", "../customer-0", "customer-0/", "a\0b", "/etc", "ä" * 200])
def test_a_name_that_is_none_of_the_folder_is_refused(folder: Path, name: str):
    for engine in (new_engine(folder), Engine(tiny_model(), tiny_tokenizer())):
        with pytest.raises(RequestError, match="expected the name of an adapter of the model"):
            engine.submit([9], GREEDY, adapter=name)


def test_what_does_not_run_beside_a_base_is_refused_with_what_to_do(tmp_path: Path):
    model = tiny_model()
    write_adapter(tmp_path / "other", model, 0)
    tensors = load_file(tmp_path / "other" / WEIGHTS_NAME)
    save_file(tensors | {f"{PREFIX}lm_head.weight": model.lm_head.weight.data}, tmp_path / "other" / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"lm_head.*puna merge.*makes a checkpoint"):
        require_runnable(open_adapter(tmp_path / "other"), model.config)
    write_adapter(tmp_path / "dora", model, 0, use_dora=True)
    tensors = load_file(tmp_path / "dora" / WEIGHTS_NAME)
    lengths = {
        key.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(len(up))
        for key, up in tensors.items()
        if key.endswith("lora_B.weight")
    }
    save_file(tensors | lengths, tmp_path / "dora" / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector'; expected only lora_A and lora_B"):
        require_runnable(open_adapter(tmp_path / "dora"), model.config)
    write_adapter(tmp_path / "other", tiny_model(num_layers=3), 0)
    with pytest.raises(RequestError, match=r"layers\.2.*another base"):
        new_engine(tmp_path).submit([9], GREEDY, adapter="other")


def test_what_lies_in_the_folder_and_is_not_served_is_named_with_the_way_out(tmp_path: Path):
    write_adapter(tmp_path / "pickled", tiny_model(), 0)
    (tmp_path / "pickled" / WEIGHTS_NAME).rename(tmp_path / "pickled" / "adapter_model.bin")
    write_adapter(tmp_path / "rows", tiny_model(), 0, trainable_token_indices=[3])
    tensors = load_file(tmp_path / "rows" / WEIGHTS_NAME)
    rows = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, tiny_model().config.dim)}
    save_file(tensors | rows, tmp_path / "rows" / WEIGHTS_NAME)
    write_adapter(tmp_path / "other", tiny_model(), 0, init_lora_weights="pissa")
    write_adapter(tmp_path / "left-out", tiny_model(), 0, target_modules=r".*layers\.0\..*_proj")
    engine = new_engine(tmp_path)
    assert engine.adapters is not None
    assert engine.adapters.names() == ["left-out", "other", "pickled", "rows"]
    for name, told in {
        "pickled": "save_pretrained of PEFT writes safetensors",
        "rows": r"trainable_tokens_delta.*puna merge",
        "other": "path_initial_model_for_weight_conversion",
        "left-out": r"matrices for model\.layers\.1.*target_modules",
    }.items():
        with pytest.raises(RequestError, match=told):
            engine.submit([9], GREEDY, adapter=name)


def test_on_quantized_weights_a_token_is_the_same_to_the_last_bit_whatever_adapters_are_beside_it(tmp_path: Path):
    model = half_model().float()
    round_linears(model, Scheme("int", 4, 32))
    dequantized = deepcopy(model)
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            plain = torch.nn.Linear(module.in_dim, module.out_dim, bias=False)
            plain.weight.data = module.dequantize()
            dequantized.set_submodule(path, plain)
    loras: list[Lora | None] = [None]
    for seed, rank in enumerate((3, 16, 8)):
        write_adapter(tmp_path / str(seed), half_model(), seed, rank=rank, names=MATRICES[seed:])
        loras.append(read_lora(open_adapter(tmp_path / str(seed))))
    counts, generator = (1, 30, 3, 1, 45), torch.Generator().manual_seed(0)
    owners = [loras[index] for index in (1, 2, 0, 3, 1)]
    tokens = [torch.randint(120, (count,), generator=generator).tolist() for count in counts]

    def run(runner: NativeRunner | TorchRunner, chosen: list[int], *, is_bare: bool = False) -> torch.Tensor:
        spans = []
        for place in chosen:
            owner = None if is_bare else owners[place]
            table = array("i", range(place * 4, place * 4 + 4))
            spans.append(Span(table, 0, counts[place], runner.prepare(owner) if owner else None))
        ids = [token for place in chosen for token in tokens[place]]
        return runner.forward(ids, spans, range(len(ids)))

    native = NativeRunner(model, kernels(), num_pages=20)
    together = run(native, [*range(5)])
    assert torch.equal(together, torch.cat([run(native, [place]) for place in range(5)]))
    for place, part in enumerate(together.split(counts)):
        owner = owners[place]
        merged = merged_model(dequantized, owner) if owner else dequantized
        alone = TorchRunner(merged, num_pages=20, dtype=torch.float32)
        expected = run(alone, [place], is_bare=True)
        assert (part - expected).abs().max() < 0.1 * expected.std()
        beside = run(TorchRunner(dequantized, num_pages=20, dtype=torch.float32), [place])
        torch.testing.assert_close(beside, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_a_served_adapter_is_a_model_of_its_name(tmp_path: Path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (tmp_path / "base").mkdir()
    save_checkpoint(tmp_path / "base", model, tokenizer)
    write_adapter(tmp_path / "adapters" / "alba", model, 1)
    write_adapter(tmp_path / "adapters" / "brook", tiny_model(num_layers=3), 2)
    served = open_served(tmp_path / "base", options=EngineOptions(adapters=tmp_path / "adapters"))
    assert isinstance(served.adapters, Adapters)
    assert [line.partition(" can't")[0] for line in served.adapters.unfit()] == ["the adapter 'brook'"]
    prompt = new_prompt(20)
    with serving(served) as url:
        client = connect(url)
        models = {each.id: each.to_dict().get("parent") for each in client.models.list()}
        assert models == {"base": None, "alba": "base", "brook": "base"}
        for name, adapter in (("base", ""), ("alba", "alba")):
            reply = client.completions.create(model=name, prompt=prompt, max_tokens=12, temperature=0)
            expected = completed_alone(tmp_path / "adapters", prompt, adapter)
            assert (reply.model, reply.choices[0].text) == (name, expected.text)
        with pytest.raises(openai.BadRequestError, match=r"brook.*another base"):
            client.completions.create(model="brook", prompt=prompt)
        with pytest.raises(openai.NotFoundError, match="GET /v1/models lists yours"):
            client.completions.create(model="../alba", prompt=prompt)
        # A customer who comes while the server runs:
        write_adapter(tmp_path / "adapters" / "cedar", model, 3)
        assert client.models.retrieve("cedar").id == "cedar"
        assert client.completions.create(model="cedar", prompt=prompt, max_tokens=2).usage.completion_tokens == 2


def test_a_key_for_one_adapter_finds_no_other_model(tmp_path: Path):
    model = tiny_model()
    (tmp_path / "base").mkdir()
    save_checkpoint(tmp_path / "base", model, tiny_tokenizer())
    for seed, name in enumerate(("alba", "brook")):
        write_adapter(tmp_path / "adapters" / name, model, seed)
    (tmp_path / "keys.txt").write_text(f"{KEY} alba\n{OTHER_KEY}\n")
    served = open_served(tmp_path / "base", options=EngineOptions(adapters=tmp_path / "adapters"))
    with serving(served, make_rules("127.0.0.1", tmp_path / "keys.txt", {})) as url:
        alba, operator = connect(url, KEY), connect(url, OTHER_KEY)
        assert [each.id for each in alba.models.list()] == ["alba"]
        assert [each.id for each in operator.models.list()] == ["base", "alba", "brook"]
        for client, name in ((alba, "alba"), (operator, "brook"), (operator, "base")):
            assert client.completions.create(model=name, prompt=[9], max_tokens=1).model == name
        for name in ("brook", "base"):
            with pytest.raises(openai.NotFoundError):
                alba.completions.create(model=name, prompt=[9], max_tokens=1)
            with pytest.raises(openai.NotFoundError):
                alba.models.retrieve(name)
