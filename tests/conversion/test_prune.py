"""The prune stage: what it finds, what it keeps, that what is left computes the same where nothing needed was cut."""

import io
import json
import math
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console

from puna.conversion.compression import prune
from puna.conversion.compression.prune import Config
from puna.conversion.compression.pruning import refit as refitting
from puna.conversion.compression.pruning.importance import (
    Importance,
    LayerImportance,
    divergences_without,
    measure_importance,
)
from puna.conversion.compression.pruning.layerwise import Reference, Scores
from puna.conversion.compression.pruning.obs import contributions, obs_losses
from puna.conversion.compression.pruning.rotate import rotate
from puna.conversion.compression.pruning.selection import select
from puna.conversion.compression.pruning.slicing import select_all, slice_source
from puna.conversion.compression.pruning.targets import Shape, best_size, counts, parse_count, resized, target_size
from puna.data.document import Document
from puna.data.packing import Example
from puna.data.pieces import cut_examples
from puna.data.shards import write_jsonl
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.model.attend import packed_attend
from puna.model.config import SIZES, LlamaConfig
from puna.model.llama import Block, Llama
from puna.model.quantization.quantized import round_linears
from puna.pipeline.artifacts.artifact import read_receipts, require_receipts
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ConfigError, ReceiptError
from puna.pipeline.progress import Progress
from puna.pipeline.run import Run

TEXTS = [f"On day {day} the shop sells {day * 7} bicycles and {day + 3} lamps." for day in range(40)]
CALIBRATION = [f"In week {week} the garage mends {week * 3} tyres and {week + 9} chains." for week in range(40)]
BIG = LlamaConfig(40, 96, 8, 4, 8, 4, 530, 64, norm_eps=1e-12)
# What is dead in `planted` models, and what is left then.
DEAD_LAYERS, DEAD_KEYS, DEAD_QUERIES = {1, 2}, {0, 2}, {2, 7}
DEAD_HIDDEN, DEAD_DIM = set(range(0, 96, 3)), {0, 5, 6, 13, 20, 27, 34, 39}
LEFT = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "hidden_dim": 64, "dim": 32}
F32 = torch.float32


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=530, split_digits=True)


def random_model(config: LlamaConfig, scale: float = 0.3) -> Llama:
    model, generator = Llama(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, scale, generator=generator)
    return model.requires_grad_(False).eval()


def planted(*, tied: bool = False) -> Llama:
    """A model with layers, heads, hidden channels and channels of the stream that add nothing."""
    model = random_model(replace(BIG, tie_embeddings=tied))
    width, dim = BIG.head_dim, sorted(DEAD_DIM)
    model.embed_tokens.weight[:, dim] = 0
    for index, block in enumerate(model.layers):
        assert isinstance(block, Block)
        o_proj, down_proj = block.self_attn.o_proj.weight, block.mlp.down_proj.weight
        for head in {2 * key + more for key in DEAD_KEYS for more in (0, 1)} | DEAD_QUERIES:
            o_proj[:, head * width : (head + 1) * width] = 0
        down_proj[:, sorted(DEAD_HIDDEN)] = 0
        for weight in (o_proj, down_proj):
            weight[dim] = 0
            if index in DEAD_LAYERS:
                weight.zero_()
    return model


def trained() -> Llama:
    """A model that has learned a little of the texts."""
    model = Llama(replace(BIG, num_layers=2))
    model.initialize(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(30):
        ids = torch.tensor(tokenizer().encode(TEXTS[step]))
        hidden = model(ids, torch.arange(len(ids)), packed_attend([len(ids)]))
        F.cross_entropy(model.logits(hidden)[:-1], ids[1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False).eval()


def save(path: Path, model: Llama) -> Path:
    path.mkdir()
    save_checkpoint(path, model, tokenizer())
    return path


def write_texts(path: Path, texts: list[str]) -> Path:
    path.mkdir()
    write_jsonl(path / "documents.jsonl", (Document(text, str(index)).to_json() for index, text in enumerate(texts)))
    return path


def pruned(path: Path, model: Llama | None = None, **settings: Any) -> Run:
    """Prune a model in a folder of its own."""
    path.mkdir(exist_ok=True)
    for name in ("output", "run"):
        (path / name).mkdir()
    run = Run("prune", "key", path / "output", path / "run", Console(file=io.StringIO(), width=200))
    config = Config(
        checkpoint=save(path / "parent", model or planted()),
        data=[write_texts(path / "texts", TEXTS)],
        calibration=[write_texts(path / "calibration", settings.pop("calibration_texts", CALIBRATION))],
        **{"num_tokens": 100, "calibration_tokens": 400, **settings},
    )
    prune.run(config, run)
    return run


def source_of(model: Llama) -> Source:
    tensors = {name if name.startswith("lm_head") else f"model.{name}": x for name, x in model.state_dict().items()}
    return Source("a test", model.config, F32, tensors.__getitem__, tokenizer())


def examples(num_tokens: int = 400) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(250, (num_tokens // 40, 40), generator=generator).tolist()
    return [Example(ids, [True] * len(ids)) for ids in texts]


def silent() -> Progress:
    return Progress(Console(quiet=True), 1, "", unit="")


def logits(model: Llama, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)])))


IDS = [7 * each % 250 for each in range(40)]
measured = partial(measure_importance, dtype=F32, width="contribution", depth="divergence")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "report" not in request.node.name:
        monkeypatch.setattr("puna.conversion.compression.pruning.report._plot", lambda *_: True)


# What is left computes the same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pruning_nothing_gives_the_same_file(tmp_path: Path, dtype: torch.dtype) -> None:
    run = pruned(tmp_path / "a", random_model(BIG).to(dtype), size={"num_layers": 4})
    assert (run.output / "model.safetensors").read_bytes() == (
        tmp_path / "a" / "parent" / "model.safetensors"
    ).read_bytes()
    assert read_receipts(run.output)[0].value == 0


CUTS = {
    "layers": ["num_layers"],
    "heads": ["num_heads", "num_kv_heads"],
    "hidden channels": ["hidden_dim"],
    "model width": ["dim"],
    "all": list(LEFT),
}


@pytest.mark.parametrize("width", ["contribution", "elimination"])
@pytest.mark.parametrize("depth", ["divergence", "influence"])
@pytest.mark.parametrize("kind", CUTS)
def test_without_its_dead_parts_a_model_computes_the_same(kind: str, width: str, depth: str) -> None:
    model = planted(tied=depth == "influence")
    source = source_of(model)
    importance = measure_importance(source, examples(), F32, silent(), width=width, depth=depth)  # type: ignore[arg-type]
    selection = select(
        importance, source.config, target_size(source.config, Shape(**{name: LEFT[name] for name in CUTS[kind]}))
    )
    sliced = load_source(slice_source(source, selection), F32)
    assert sliced.config.num_parameters < model.config.num_parameters
    torch.testing.assert_close(logits(sliced, IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)


def test_exactly_what_adds_nothing_is_cut() -> None:
    source = source_of(planted())
    selection = select(measured(source, examples(), bar=silent()), BIG, target_size(BIG, Shape(**LEFT)))
    assert {layer.index for layer in selection.layers} == {0, 3}
    assert set(selection.dim_D.tolist()) == set(range(40)) - DEAD_DIM
    for layer in selection.layers:
        assert layer.keys_K.tolist() == [1, 3]
        assert layer.queries_H.tolist() == [3, 6]
        assert set(layer.hidden_I.tolist()) == set(range(96)) - DEAD_HIDDEN


def test_query_heads_go_evenly_within_their_groups() -> None:
    model = random_model(BIG)
    for block in model.layers:
        block.self_attn.o_proj.weight[:, [each for head in (1, 2, 4, 7) for each in range(8 * head, 8 * head + 8)]] = 0
    source = source_of(model)
    selection = select(measured(source, examples(), bar=silent()), BIG, target_size(BIG, Shape(num_heads=4)))
    assert all(layer.queries_H.tolist() == [0, 3, 5, 6] and len(layer.keys_K) == 4 for layer in selection.layers)
    sliced = load_source(slice_source(source, selection), F32)
    torch.testing.assert_close(logits(sliced, IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)


def test_a_narrower_head_keeps_every_other_pair_at_its_own_frequency() -> None:
    model = random_model(BIG)
    for block in model.layers:
        for weight in (block.self_attn.q_proj.weight, block.self_attn.k_proj.weight):
            weight.unflatten(0, (-1, 8))[:, [1, 3, 5, 7]] = 0
        block.self_attn.v_proj.weight.unflatten(0, (-1, 8))[:, [0, 1, 2, 6]] = 0
    source = source_of(model)
    selection = select(measured(source, examples(), bar=silent()), BIG, target_size(BIG, Shape(head_dim=4)))
    assert selection.layers[0].values_KE.tolist() == [[3, 4, 5, 7]] * 4
    sliced = load_source(slice_source(source, selection), F32)
    torch.testing.assert_close(logits(sliced, IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_whose_stream_is_turned_computes_the_same(tied: bool) -> None:
    model = random_model(replace(BIG, tie_embeddings=tied))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.copy_(torch.linspace(-0.5, 2.0, len(parameter)))
    rotation_DD = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3))).Q
    rotated = load_source(rotate(source_of(model), rotation_DD), F32)
    torch.testing.assert_close(logits(rotated, IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)
    assert (rotated.embed_tokens.weight - model.embed_tokens.weight).abs().max() > 0.1


def test_a_stream_that_leaves_directions_empty_is_narrowed_for_nothing_once_it_is_turned(tmp_path: Path) -> None:
    rotation_DD = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3))).Q
    # No channel of this one is empty, but eight directions are.
    model = load_source(rotate(source_of(planted()), rotation_DD), F32)
    distances = {}
    for stream in ("rotation", "channels"):
        run = pruned(tmp_path / stream, model, size={"dim": 32}, stream=stream, refit=False)
        cut = Checkpoint.open(run.output)
        assert cut.config == replace(model.config, dim=32)
        distances[stream] = (logits(cut.load(), IDS) - logits(model, IDS)).abs().max().item()
    assert distances["rotation"] < 1e-3 < 1 < distances["channels"]


def test_a_tied_model_that_is_narrowed_stays_tied(tmp_path: Path) -> None:
    model = random_model(replace(BIG, tie_embeddings=True))
    run = pruned(tmp_path / "a", model, size={"dim": 32})
    assert Checkpoint.open(run.output).config == replace(model.config, dim=32)
    assert "one table: embeddings " in (run.directory / "log.txt").read_text()


def test_the_stage_writes_a_checkpoint_that_transformers_computes_alike(tmp_path: Path) -> None:
    model = planted()
    run = pruned(tmp_path / "a", model, size=LEFT)
    written = Checkpoint.open(run.output)
    expected = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    assert json.loads((run.output / "config.json").read_text()).items() >= expected.items()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.output)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(torch.tensor([IDS])).logits[0], logits(written.load(), IDS), rtol=1e-4, atol=1e-4
        )
    # The refit found nothing to make up for.
    torch.testing.assert_close(logits(written.load(), IDS), logits(model, IDS), rtol=1e-3, atol=1e-3)
    assert written.tokenizer().fingerprint == tokenizer().fingerprint
    assert (run.output / "chat_template.jinja").read_text() == (
        tmp_path / "a" / "parent" / "chat_template.jinja"
    ).read_text()


@pytest.mark.parametrize(("parent", "child"), [("8b", "3b"), ("8b", "1b"), ("70b", "8b")])
def test_a_published_size_becomes_the_shape_of_a_smaller_one(parent: str, child: str) -> None:
    big, generator = SIZES[parent], torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator)
    layer = LayerImportance(
        0.0,
        random(big.num_heads),
        random(big.num_kv_heads),
        random(big.num_kv_heads, big.head_dim),
        random(big.hidden_dim),
    )
    importance = Importance((layer,) * big.num_layers, random(big.num_layers), random(big.dim), {}, torch.zeros(()))
    target = target_size(big, child)
    source = Source("a test", big, F32, lambda name: torch.empty(tensor_shapes(big)[name], device="meta"))
    sliced = slice_source(source, select(importance, big, target, "mean"))
    assert {name: tuple(sliced.read(name).shape) for name in tensor_shapes(target)} == tensor_shapes(target)
    assert target == replace(SIZES[child], rope_scaling=big.rope_scaling, max_context=big.max_context), (
        "what is not a width stays the parent's"
    )


# Tables


def test_a_parent_of_two_equal_tables_may_share_one_and_one_of_one_may_have_two() -> None:
    tied = random_model(replace(BIG, tie_embeddings=True))
    two = replace(select_all(tied.config), config=BIG)
    apart = load_source(slice_source(source_of(tied), two), F32)
    assert torch.equal(logits(apart, IDS), logits(tied, IDS))
    for tying in ("embeddings", "head", "mean"):
        again = load_source(slice_source(source_of(apart), replace(select_all(tied.config), tying=tying)), F32)
        assert torch.equal(logits(again, IDS), logits(tied, IDS))


def test_the_one_table_is_that_which_moves_predictions_least(tmp_path: Path) -> None:
    model = random_model(BIG)
    run = pruned(tmp_path / "a", model, size={"tie_embeddings": True}, refit=False)
    said = next(line for line in (run.directory / "log.txt").read_text().splitlines() if "one table: " in line)
    losses = dict(part.split() for part in said.partition("one table: ")[2].split(", "))
    assert losses.keys() == {"embeddings", "head", "mean"}
    best = min(losses, key=lambda name: float(losses[name]))
    embeddings, head = model.embed_tokens.weight, model.lm_head.weight  # type: ignore[union-attr]
    expected = {"embeddings": embeddings, "head": head, "mean": (embeddings + head) / 2}[best]
    torch.testing.assert_close(Checkpoint.open(run.output).load().embed_tokens.weight, expected)


# What is needed


def test_contributions_are_what_each_group_adds_to_the_outputs() -> None:
    weight, x = torch.randn(5, 6), torch.randn(50, 6)
    groups = torch.tensor([[0, 1], [4, 5], [2, 3]])
    expected = [(x[:, group] @ weight[:, group].T).square().sum(1).mean() for group in groups]
    torch.testing.assert_close(contributions(weight, x.T @ x / 50, groups), torch.stack(expected))


def test_elimination_costs_what_least_squares_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator)
    x = torch.randn(200, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    groups = torch.arange(8).view(4, 2)
    losses = obs_losses(weight, x.T @ x / 200, groups)
    outputs, left = x @ weight.T, list(range(8))
    for group in groups[losses.argsort()][:3].tolist():
        left = [each for each in left if each not in group]
        fitted = torch.linalg.lstsq(x[:, left], outputs).solution
        cost = (x[:, left] @ fitted - outputs).square().sum(1).mean()
        assert losses[groups.tolist().index(group)].item() == pytest.approx(cost.item(), rel=0.01)


def test_elimination_and_refit_do_without_one_of_two_equal_channels() -> None:
    model = random_model(replace(BIG, num_layers=1), scale=0.2)
    mlp = model.layers[0].mlp
    for proj in (mlp.gate_proj, mlp.up_proj):
        proj.weight[24:48] = proj.weight[:24]
    mlp.down_proj.weight[:, :48] *= 3
    source, texts = source_of(model), examples(2000)
    target = replace(model.config, hidden_dim=72)
    distances = {}
    for width in ("contribution", "elimination"):
        importance = measure_importance(source, texts, F32, silent(), width=width, depth="influence")  # type: ignore[arg-type]
        selection = select(importance, source.config, target)
        refitted = refitting.refit(source, selection, texts, F32, silent())
        sliced = load_source(slice_source(source, selection, refitted), F32)
        distances[width] = (logits(sliced, IDS) - logits(model, IDS)).square().mean().item()
        if width == "elimination":
            hidden = set(selection.layers[0].hidden_I.tolist())
            assert hidden >= set(range(48, 96)) and all((each in hidden) != (each + 24 in hidden) for each in range(24))
    assert distances["elimination"] < 0.05 * distances["contribution"]


def test_the_divergence_without_a_layer_is_that_of_the_model_that_lacks_it() -> None:
    model, texts = random_model(BIG), examples(80)
    divergences = divergences_without(source_of(model), texts, F32, silent())
    whole = torch.cat([logits(model, list(each.ids))[:-1] for each in texts]).log_softmax(-1)
    layers = list(model.layers)
    for index in range(4):
        model.layers = torch.nn.ModuleList(layers[:index] + layers[index + 1 :])
        rest = torch.cat([logits(model, list(each.ids))[:-1] for each in texts]).log_softmax(-1)
        expected = (whole.exp() * (whole - rest)).sum(-1).mean().item()
        assert divergences[index].item() == pytest.approx(expected, rel=1e-3)


def test_the_loss_counts_what_the_assistant_says_and_all_of_a_document(
    checkpoint_path: Path, dataset_path: Path
) -> None:
    checkpoint = Checkpoint.open(checkpoint_path)
    texts = list(cut_examples([dataset_path], checkpoint.tokenizer(), num_tokens=10**6, longest=256))
    assert {all(text.mask) for text in texts} == {True, False}
    model, losses = checkpoint.load(), []
    for text in texts:
        each = F.cross_entropy(logits(model, list(text.ids))[:-1], torch.tensor(text.ids[1:]), reduction="none")
        losses.append(each[torch.tensor(text.mask[1:])])
    source = checkpoint.source()
    scores = Reference(source, texts, F32, silent()).score(source, silent())
    assert scores == Scores(pytest.approx(torch.cat(losses).mean().item(), rel=1e-5), 0.0)


# The refit


def test_refitted_weights_are_those_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refitting, "RIDGE", 0.0)
    model = random_model(replace(BIG, num_layers=1))
    source, texts = source_of(model), examples(2000)
    selection = select(measured(source, texts, bar=silent()), source.config, replace(source.config, hidden_dim=48))
    refitted = refitting.refit(source, selection, texts, F32, silent())
    inputs: list[torch.Tensor] = []
    block = model.layers[0]
    block.mlp.down_proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    for text in texts:
        logits(model, list(text.ids))
    x_TI = torch.cat(inputs)
    written_TD = x_TI @ block.mlp.down_proj.weight.T
    fitted = torch.linalg.lstsq(x_TI[:, selection.layers[0].hidden_I], written_TD).solution.T
    torch.testing.assert_close(refitted["model.layers.0.mlp.down_proj.weight"], fitted, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        refitted["model.layers.0.self_attn.o_proj.weight"], block.self_attn.o_proj.weight, rtol=1e-3, atol=1e-4
    )


def test_the_refit_brings_a_model_without_a_layer_nearer_to_its_parent() -> None:
    model = random_model(BIG, scale=0.1)
    source, texts = source_of(model), examples(4000)
    shape = Shape(num_layers=3, dim=32, hidden_dim=72, num_heads=4)
    selection = select(measured(source, texts[:10], bar=silent()), BIG, target_size(BIG, shape))
    refitted = refitting.refit(source, selection, texts, F32, silent())
    distances = [
        (logits(load_source(slice_source(source, selection, given), F32), IDS) - logits(model, IDS))
        .square()
        .mean()
        .item()
        for given in ({}, refitted)
    ]
    assert distances[1] < 0.7 * distances[0]


# A number of parameters


@pytest.mark.parametrize(("text", "count"), [("1b", 10**9), ("1.2B", 1_200_000_000), ("350m", 350_000_000), (7, 7)])
def test_a_number_of_parameters_has_units(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("heads", ["groups", "within"])
def test_the_least_harmful_sizes_are_those_that_trying_all_finds(heads: Any) -> None:
    curves = {
        "layers": [(1, 5.0), (3, 0.5), (4, 0.0)],
        "heads": [(1, 2.0), (2 if heads == "within" else 4, 0.0)],
        "hidden channels": [(24, 1.0), (72, 0.1), (96, 0.0)],
        "model width": [(16, 3.0), (40, 0.0)],
    }
    most = BIG.num_parameters * 2 // 3
    found, cost = best_size(BIG, most, heads, 8, curves)
    possible = counts(BIG, heads, 8)
    points = {kind: dict(curve) for kind, curve in curves.items()}

    def cost_of(count: dict[str, int]) -> float:
        total = 0.0
        for kind, number in count.items():
            few = max((each for each in points[kind] if each <= number), default=min(points[kind]))
            many = min(each for each in points[kind] if each >= number)
            share = (number - few) / (many - few) if many > few else 0.0
            total += points[kind][few] + share * (points[kind][many] - points[kind][few])
        return total

    every = [dict(zip(possible, numbers, strict=True)) for numbers in product(*possible.values())]
    sizes = [(resized(BIG, heads, count), count) for count in every]
    least = min(
        cost_of(count) for size, count in sizes if size.num_parameters <= most and not size.dim % size.num_heads
    )
    assert cost == pytest.approx(least)
    # transformers refuses other widths.
    assert found.dim % found.num_heads == 0
    assert found.num_parameters <= most and found.hidden_dim % 8 == 0
    assert (found.num_kv_heads < 4) <= (heads == "groups")


def test_a_number_of_parameters_is_reached_by_what_costs_nothing(tmp_path: Path) -> None:
    model = random_model(replace(BIG, hidden_dim=192))
    for block in model.layers:
        block.mlp.down_proj.weight[:, 64:] = 0
    most = replace(model.config, hidden_dim=96).num_parameters
    run = pruned(tmp_path / "a", model, parameters=most, multiple=8)
    written = Checkpoint.open(run.output)
    assert written.config == replace(model.config, hidden_dim=96)
    torch.testing.assert_close(logits(written.load(), IDS), logits(model, IDS), rtol=1e-2, atol=1e-2)


# What is written, and what is refused


def test_the_report_and_the_receipt_say_what_each_cut_cost_and_stop_nothing(tmp_path: Path) -> None:
    run = pruned(tmp_path / "a", random_model(BIG), size=LEFT)
    (receipt,) = read_receipts(run.output)
    assert receipt.held and receipt.tolerance is None and receipt.limit == "measured only"
    assert list(receipt.details["steps"]) == [
        "parent", "layers", "heads", "hidden channels", "model width", "refit, as written"
    ]  # fmt: skip
    texts = list(cut_examples([tmp_path / "a" / "texts"], tokenizer(), num_tokens=100, longest=64))
    parent, left = (Checkpoint.open(path).source() for path in (tmp_path / "a" / "parent", run.output))
    scores = Reference(parent, texts, F32, silent()).score(left, silent())
    assert receipt.details["steps"]["refit, as written"] == pytest.approx(asdict(scores), rel=1e-5)
    assert receipt.details["after"] == pytest.approx(math.exp(scores.loss), rel=1e-5)
    assert receipt.value == pytest.approx(receipt.details["after"] / receipt.details["before"] - 1)
    require_receipts(run.output)
    report = (run.output / "report.md").read_text()
    assert "| dim | 40 | 32 |" in report and report.count("| dropped |") == 2
    said = json.loads((run.output / "importance.json").read_text())
    assert len(said["layers"]) == 4 and len(said["kept"]["layers"]) == 2 and len(said["kept"]["dim"]) == 32
    assert (run.output / "prune.png").stat().st_size > 1000


def test_a_tolerance_that_is_given_stops_what_reads_it(tmp_path: Path) -> None:
    run = pruned(
        tmp_path / "a", trained(), size={"hidden_dim": 1, "num_layers": 1}, tolerance_perplexity=0.0, refit=False
    )
    with pytest.raises(ReceiptError, match=r"perplexity is .* expected at most 0"):
        require_receipts(run.output)


def test_pruning_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (pruned(tmp_path / name, random_model(BIG), size=LEFT).output for name in ("a", "b"))
    for name in ("model.safetensors", "importance.json", "report.md", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"num_layers": 5}}, "num_layers = 5; expected at most the parent's 4"),
        ({"size": "8b"}, "at most the parent's"),
        ({"size": "demo-studnet"}, "Did you mean 'demo-student'"),
        ({"size": {"num_heads": 3}}, "num_heads to be a multiple of num_kv_heads"),
        ({"size": {"num_kv_heads": 2}}, "8 heads for 2 key/value heads; expected at most 2"),
        ({"size": {"head_dim": 6}}, "head_dim = 6; expected a divisor of the parent's 8"),
        ({"parameters": "1b"}, "expected .* for this model"),
        ({"parameters": 50}, "expected .* for this model"),
        ({"parameters": "many"}, "a number such as"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused_with_the_reason(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruned(tmp_path / "a", **settings)


def test_a_quantized_parent_is_refused(tmp_path: Path) -> None:
    model = random_model(BIG)
    round_linears(model)
    with pytest.raises(ConfigError, match=r"is quantized; expected float weights\. Prune first"):
        pruned(tmp_path / "a", model, size=LEFT)


def test_text_that_is_measured_on_is_not_calibrated_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every calibration text is also in data"):
        pruned(tmp_path / "a", size=LEFT, num_tokens=10**5, calibration_texts=TEXTS[:5])
    run = pruned(
        tmp_path / "b",
        size=LEFT,
        num_tokens=10**5,
        calibration_tokens=10**5,
        calibration_texts=[*TEXTS[:5], *CALIBRATION[:20]],
    )
    assert "5 of 25 calibration texts are also in data: left out" in (run.directory / "log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of 'size'"),
        ({"size": "8b", "parameters": 5}, "exactly one of 'size'"),
        ({"size": "8b", "multiple": 8}, "only with 'parameters'"),
        ({"size": "8b", "calibration": ["d"]}, "the same path"),
        ({"size": {"width": 8}}, "unknown key 'size.width'"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, {"checkpoint": "m", "data": ["d"], "calibration": ["c"], **settings}, where="prune")


@pytest.mark.parametrize("depth", ["influence", "divergence"])
def test_the_bar_counts_each_pass_of_the_texts_through_a_layer(depth):
    bar, steps = silent(), list[int]()
    bar.advance = lambda amount=1, note="": steps.append(amount)
    source, layers = source_of(planted()), BIG.num_layers
    measure_importance(source, examples(), F32, bar, width="contribution", depth=depth)
    without_one = list(range(layers, 0, -1))  # Without the first layer, the texts go through all the others.
    assert steps == ([1] * layers if depth == "influence" else [1] * 2 * layers + without_one)
