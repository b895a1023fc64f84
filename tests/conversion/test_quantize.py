"""The quantize stage: what it writes, what its receipts measure, and what stops when they do not hold."""

import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from puna.conversion.compression import quantize
from puna.conversion.compression.quantize import Config
from puna.data.document import Document
from puna.data.pieces import cut_pieces
from puna.data.shards import write_jsonl
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.model.attend import packed_attend
from puna.model.compare import Comparison
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.model.quantization.quantized import round_weight
from puna.model.quantization.scheme import FP8, INT8
from puna.pipeline.artifacts.artifact import read_receipts, require_receipts
from puna.pipeline.config import parse_config
from puna.pipeline.errors import CheckpointError, ConfigError, ReceiptError
from puna.pipeline.run import Run

TEXTS = [f"On day {day} the shop sells {day * 7} bicycles and {day + 3} lamps." for day in range(40)]


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=530, split_digits=True)


def write_model(path: Path, *, norm: float = 1.0, num_layers: int = 2) -> Path:
    config = LlamaConfig(
        dim=32, hidden_dim=64, head_dim=8, num_layers=num_layers, num_heads=4, num_kv_heads=2, vocab_size=530,
        max_context=64, tie_embeddings=True,
    )  # fmt: skip
    model = Llama(config)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
        model.norm.weight.fill_(norm)
    path.mkdir()
    save_checkpoint(path, model, tokenizer())
    return path


def write_texts(path: Path, texts: list[str] = TEXTS) -> Path:
    path.mkdir()
    write_jsonl(path / "documents.jsonl", (Document(text, str(index)).to_json() for index, text in enumerate(texts)))
    return path


def new_run(path: Path) -> Run:
    for name in ("output", "run"):
        (path / name).mkdir(parents=True)
    return Run("quantize", "key", path / "output", path / "run", Console(file=io.StringIO(), width=200))


def quantized(path: Path, *, num_layers: int = 2, **settings) -> Run:
    run = new_run(path / "stage")
    parent = write_model(path / "parent", num_layers=num_layers)
    config = Config(checkpoint=parent, data=[write_texts(path / "texts")], **settings)
    quantize.run(config, run)
    return run


def test_the_int8_checkpoint_is_smaller_and_holds_the_rounded_weights(tmp_path: Path) -> None:
    run = quantized(tmp_path, num_tokens=200)
    parent, written = Checkpoint.open(tmp_path / "parent"), Checkpoint.open(run.output)
    assert written.is_quantized and not parent.is_quantized
    words, scale = round_weight(parent.load().layers[1].mlp.up_proj.weight, INT8)
    layer = written.load().layers[1].mlp.up_proj
    assert torch.equal(layer.weight_packed, words) and torch.equal(layer.weight_scale, scale)
    kl = read_receipts(run.output)[0]
    assert kl.details["bytes_after"] == (run.output / "model.safetensors").stat().st_size
    assert kl.details["bytes_after"] < 0.7 * kl.details["bytes_before"]


def test_the_receipts_hold_what_a_plain_comparison_gives(tmp_path: Path) -> None:
    texts = ["On day 3 the shop sells 21 bicycles."]
    run = new_run(tmp_path / "stage")
    settings = {"num_tokens": 4096, "tolerance_kl": 0.5, "min_agreement": 0.1}
    config = Config(
        checkpoint=write_model(tmp_path / "parent"), data=[write_texts(tmp_path / "texts", texts)], **settings
    )
    quantize.run(config, run)
    ids = ChatFormat(tokenizer()).document(texts[0])
    logits = []
    for path in (tmp_path / "parent", run.output):
        model = Checkpoint.open(path).load()
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
        logits.append(model.logits(hidden).detach().double())
    p, q = (torch.softmax(x, -1) for x in logits)
    kl, _, agreement = read_receipts(run.output)
    assert kl.value == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    assert kl.value > 1e-6
    assert agreement.value == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert kl.details["num_tokens"] == len(ids)
    assert kl.held and agreement.held and agreement.is_least


def test_divergence_is_counted_from_the_parent_in_nats() -> None:
    comparison = Comparison()
    comparison.add(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log())
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert comparison.kl() == pytest.approx({"mean": expected, "p99": expected, "max": expected}, rel=1e-6)


def test_the_percentile_leaves_the_worst_token_out_and_the_maximum_does_not() -> None:
    comparison = Comparison()
    same = torch.zeros(99, 2)
    comparison.add(torch.cat([same, torch.tensor([[5.0, 0.0]])]), torch.cat([same, torch.tensor([[0.0, 5.0]])]))
    assert comparison.kl()["p99"] == 0
    assert comparison.kl()["max"] > 4
    assert comparison.agreement() == 0.99


def test_a_receipt_above_its_tolerance_is_written_and_stops_what_reads_it(tmp_path: Path) -> None:
    run = quantized(tmp_path, tolerance_kl=0.0, min_agreement=0.0, num_tokens=100)
    kl, _, agreement = read_receipts(run.output)
    assert not kl.held and agreement.held
    assert "kl does not hold" in (run.directory / "log.txt").read_text()
    assert Checkpoint.open(run.output).is_quantized
    with pytest.raises(ReceiptError, match="expected at most 0"):
        require_receipts(run.output)


def test_an_agreement_below_its_least_stops_what_reads_it(tmp_path: Path) -> None:
    run = quantized(tmp_path, tolerance_kl=10.0, min_agreement=1.0, num_tokens=2000)
    assert read_receipts(run.output)[2].value < 1
    with pytest.raises(ReceiptError, match=r"top1_agreement is .* expected at least 1"):
        require_receipts(run.output)


def test_the_comparison_reads_as_many_tokens_as_told_in_pieces_of_the_context(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts")
    chat = ChatFormat(tokenizer())
    pieces = list(cut_pieces([path], tokenizer(), num_tokens=100, longest=16))
    assert sum(map(len, pieces)) == 100
    assert max(map(len, pieces)) == 16
    every = list(cut_pieces([path], tokenizer(), num_tokens=10**6, longest=1000))
    assert sorted(every) == sorted(chat.document(text) for text in TEXTS)


def test_perplexity_is_that_of_the_next_tokens_and_its_receipt_holds_the_growth() -> None:
    parent, other = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    comparison = Comparison()
    comparison.add(parent, other, ids=[0, 1])
    comparison.add(parent[:1], other[:1], ids=[1])  # has no next token
    assert comparison.perplexities() == pytest.approx((1 / 0.5, 1 / 0.25))
    receipt = comparison.perplexity_receipt("parent", tolerance=0.5, details={})
    assert receipt.value == pytest.approx(1.0) and not receipt.held
    assert comparison.perplexity_receipt("parent", tolerance=1.01, details={}).held


CALIBRATION = [f"In week {week} the garage mends {week * 3} tyres and {week + 9} chains." for week in range(40)]
EVERY_SETTING = {
    "int8 in groups": {"scheme": "int8", "group_size": 16},
    "int4": {"scheme": "int4"},
    "int4 by gptq": {"scheme": "int4", "method": "gptq"},
    "int8 by gptq": {"scheme": "int8", "method": "gptq"},
    "int8 and a head": {"vocabulary": "head"},
    "int4 and the vocabulary": {"scheme": "int4", "vocabulary": "both"},
    "fp8": {"scheme": "fp8"},
}


@pytest.mark.parametrize("setting", EVERY_SETTING)
def test_every_setting_writes_a_smaller_model_with_its_three_receipts(tmp_path: Path, setting: str) -> None:
    settings = EVERY_SETTING[setting]
    if "gptq" in setting:
        settings = settings | {"calibration": [write_texts(tmp_path / "calibration", CALIBRATION)]}
    run = quantized(tmp_path, num_tokens=300, num_layers=3, tolerance_kl=2.0, min_agreement=0.3, **settings)
    kl, perplexity, agreement = read_receipts(run.output)
    assert kl.held and agreement.held and kl.value > 0 and kl.details["bytes_after"] < kl.details["bytes_before"]
    assert perplexity.value == pytest.approx(perplexity.details["after"] / perplexity.details["before"] - 1)
    parent, written = Checkpoint.open(tmp_path / "parent"), Checkpoint.open(run.output)
    assert written.config.tie_embeddings == (settings.get("vocabulary") != "head")
    assert ("embed_tokens" in written.schemes) == (settings.get("vocabulary") == "both")
    assert parent.stop_ids == written.stop_ids


def test_fp8_is_the_mlps_of_the_inner_layers(tmp_path: Path) -> None:
    run = quantized(tmp_path, scheme="fp8", num_layers=4, num_tokens=50)
    parts = ("gate_proj", "up_proj", "down_proj")
    assert Checkpoint.open(run.output).schemes == {f"layers.{at}.mlp.{part}": FP8 for at in (1, 2) for part in parts}


def test_calibration_leaves_out_what_is_compared_on(tmp_path: Path) -> None:
    shared = write_texts(tmp_path / "calibration", [*TEXTS[:10], *CALIBRATION[:5]])
    run = quantized(tmp_path, scheme="int4", method="gptq", calibration=[shared], num_tokens=10**6)
    assert "10 of 15 calibration texts are also in data: left out" in (run.directory / "log.txt").read_text()
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(ConfigError, match="every calibration text is also in data"):
        quantized(again, scheme="int4", method="gptq", calibration=[write_texts(again / "same")], num_tokens=10**6)


def rounded_to_int8(x_TKE: torch.Tensor) -> torch.Tensor:
    steps = x_TKE.abs().amax(-1, keepdim=True) / 127
    return (x_TKE / steps).round() * steps


def test_the_receipts_of_an_int8_cache_hold_what_rounding_each_key_and_value_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.conversion.compression.kv_cache.PIECE", 16)
    texts = [" ".join(TEXTS[:2])]
    run, settings = new_run(tmp_path / "stage"), {"scheme": "keep", "kv_cache": "int8", "min_agreement": 0.5}
    config = Config(
        checkpoint=write_model(tmp_path / "parent"), data=[write_texts(tmp_path / "texts", texts)], **settings
    )
    quantize.run(config, run)
    kl, perplexity, agreement = read_receipts(run.output)
    ids = ChatFormat(tokenizer()).document(texts[0])
    assert kl.details["num_tokens"] == len(ids) > 3 * 16
    model, attend = Checkpoint.open(tmp_path / "parent").load(), packed_attend([len(ids)])
    twins = (
        attend,
        lambda layer, q, k, v: attend(layer, q, rounded_to_int8(k), rounded_to_int8(v)),
    )
    with torch.no_grad():
        log_p, log_q = (
            model.logits(model(torch.tensor(ids), torch.arange(len(ids)), twin)).double().log_softmax(-1)
            for twin in twins
        )
    assert kl.value == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=0.02)
    assert kl.value > 1e-7 and kl.held and kl.claim == "int8_cache_kl"
    assert agreement.value == (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
    before, after = (-x[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean() for x in (log_p, log_q))
    assert perplexity.details["before"] == pytest.approx(before.exp().item(), rel=1e-4)
    assert perplexity.value == pytest.approx((after - before).exp().item() - 1, abs=1e-5)


@pytest.mark.parametrize("scheme", ["int8", "keep"])
def test_a_cache_whose_receipt_does_not_hold_stops_what_reads_it(tmp_path: Path, scheme: str) -> None:
    run = quantized(tmp_path, scheme=scheme, kv_cache="int8", num_tokens=100, tolerance_kl=0.0, min_agreement=0.0)
    held = {receipt.claim: receipt.held for receipt in read_receipts(run.output)}
    assert len(held) == (3 if scheme == "keep" else 6) and not held["int8_cache_kl"]
    assert "int8_cache_kl does not hold" in (run.directory / "log.txt").read_text()
    (run.output / "receipts" / "kl.json").unlink(missing_ok=True)
    with pytest.raises(ReceiptError, match=r"int8_cache_kl is .* expected at most 0"):
        require_receipts(run.output)


def test_keeping_the_weights_of_a_quantized_checkpoint_changes_none(tmp_path: Path) -> None:
    first = quantized(tmp_path, num_tokens=50).output
    config = Config(checkpoint=first, data=[tmp_path / "texts"], scheme="keep", kv_cache="int8", num_tokens=100)
    run = new_run(tmp_path / "again")
    quantize.run(config, run)
    assert (run.output / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert {receipt.claim for receipt in read_receipts(run.output)} == {
        "int8_cache_kl",
        "int8_cache_perplexity",
        "int8_cache_top1_agreement",
    }


WRONG = [
    ({"scheme": "keep"}, "kv_cache = 'int8' with scheme 'keep'"),
    ({"scheme": "keep", "kv_cache": "int8", "vocabulary": "head"}, "no group_size, gptq or vocabulary"),
    ({"scheme": "fp8", "group_size": 32}, "no group_size with fp8"),
    ({"scheme": "fp8", "method": "gptq", "calibration": ["c"]}, "no gptq with fp8"),
    ({"method": "gptq"}, "which needs it"),
    ({"calibration": ["c"]}, "method 'gptq' and calibration go together"),
    ({"calibration_tokens": 5}, "no calibration_tokens without gptq"),
    ({"method": "gptq", "calibration": ["c", "d"]}, "the same path"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=str)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, {"checkpoint": "m", "data": ["d"], **settings}, where="quantize")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "fp8"}, "first and last"),
        ({"scheme": "int4", "group_size": 64}, "rows of 32, 64 weights"),
        ({"scheme": "int8", "group_size": 24}, "divides them all"),
    ],
    ids=str,
)
def test_sizes_that_a_scheme_does_not_suit_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(tmp_path, **settings)


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path: Path) -> None:
    first = quantized(tmp_path, num_tokens=50)
    config = Config(checkpoint=first.output, data=[tmp_path / "texts"])
    with pytest.raises(ConfigError, match="is quantized"):
        quantize.run(config, new_run(tmp_path / "again"))


def test_weights_that_give_no_numbers_are_an_error_that_names_the_checkpoint(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "parent", norm=math.nan)
    config = Config(checkpoint=parent, data=[write_texts(tmp_path / "texts")])
    with pytest.raises(CheckpointError, match="parent gives logits that are not finite"):
        quantize.run(config, new_run(tmp_path / "stage"))


def test_a_first_choice_that_was_as_good_as_tied_is_told_from_one_that_was_not() -> None:
    parent = torch.tensor([[2.0, 1.9, 0.0], [2.0, 1.9, 0.0], [2.0, 1.9, 0.0], [2.0, 1.9, 0.0]])
    other = torch.tensor([[2.0, 1.9, 0.0], [1.9, 2.0, 0.0], [0.0, 0.0, 9.0], [1.9, 2.0, 0.0]])
    comparison = Comparison()
    comparison.add(parent, other)
    assert comparison.agreement() == 0.25
    assert [comparison.agreement_beyond(gap) for gap in (0.0, 0.09, 0.11, 1.9, 2.1)] == [0.25, 0.25, 0.75, 0.75, 1.0]
