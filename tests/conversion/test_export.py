"""The export stage: what other programs compute from what it writes, and that it fails when they differ."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.conversion.exchange import export
from puna.conversion.exchange.fidelity import peer_receipts, peer_tolerance
from puna.conversion.exchange.peers import PEERS, Peer
from puna.data.pieces import probe_pieces
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.gguf import writer
from puna.formats.checkpoint.gguf.container import read_gguf
from puna.formats.checkpoint.gguf.tensors import to_pairs
from puna.formats.checkpoint.hf.weights import load_source
from puna.model import compare
from puna.model.compare import Comparison
from puna.model.config import LlamaConfig
from puna.model.llama import Linear, Llama, RMSNorm
from puna.model.rope import rope_frequencies
from puna.pipeline.artifacts.artifact import Receipt, read_manifest, read_receipts
from puna.pipeline.errors import CheckpointError, ConfigError, ReceiptError
from puna.testing.tiny_checkpoint import SCALING, logits_of, tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose rows are whole blocks of 32."""
    path = tmp_path_factory.mktemp("checkpoint")
    config = LlamaConfig(64, 96, 16, 2, 4, 2, tokenizer().vocab_size, 4096)
    model = Llama(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1, generator=generator)
    save_checkpoint(path, model, tokenizer())
    (path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    return path


def receipts(path: Path) -> dict[str, Receipt]:
    return {receipt.claim: receipt for receipt in read_receipts(path)}


def test_transformers_computes_the_same_from_what_is_written(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool]
):
    perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="huggingface", require_peer=True)
    found = receipts(tmp_path / "out")
    assert found["kl"].value == 0 and found["top1_agreement"].value == 1
    assert found["peer_difference"].value < 1e-5 and found["peer_kl"].details["read_by"] == "transformers"
    assert read_manifest(tmp_path / "out").licences == ["apache-2.0"]
    assert (tmp_path / "out" / "LICENSE").exists()


def test_a_text_that_is_only_compared_on_binds_nothing(
    tmp_path: Path, checkpoint: Path, dataset_path: Path, perform_stage: Callable[..., bool]
):
    settings = {"checkpoint": str(checkpoint), "data": [str(dataset_path)]}
    perform_stage("export", tmp_path / "out", **settings, format="huggingface", num_tokens=32)
    assert read_manifest(tmp_path / "out").licences == ["apache-2.0"]
    perform_stage("quantize", tmp_path / "int8", **settings, num_tokens=32, tolerance_kl=9, min_agreement=0)
    assert read_manifest(tmp_path / "int8").licences == ["apache-2.0"]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_llama_cpp_computes_the_same_from_what_is_written(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool], kind: str
):
    pytest.importorskip("llama_cpp")
    limits: dict[str, Any] = {"tolerance_kl": 5.0, "min_agreement": 0.0}
    perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="gguf", kind=kind, **limits)
    found = receipts(tmp_path / "out")
    assert all(receipt.held for receipt in found.values())
    assert (found["kl"].value < 1e-6) == (kind in ("F32", "F16"))
    reread = load_source(open_source(tmp_path / "out" / "model.gguf").source, torch.float32)
    error = (logits_of(reread) - logits_of(Checkpoint.open(checkpoint).load())).std()
    assert error < {"F32": 1e-5, "F16": 0.01, "BF16": 0.2, "Q8_0": 0.3, "Q4_0": 4}[kind]


def test_ollama_gets_a_modelfile_beside_the_weights(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool]
):
    options = {"format": "ollama", "kind": "F16", "environment": "ipython"}
    perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), **options)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n") and "Environment: ipython" in text
    assert "LICENSE" in text and "Apache License" in text
    assert read_gguf(tmp_path / "out" / "model.gguf").metadata["general.license"] == "apache-2.0"
    assert all(f'PARAMETER stop "<|{name}|>"' in text for name in ("eot_id", "eom_id", "end_of_text"))


def test_an_export_that_has_moved_too_far_fails_and_stays_to_be_looked_at(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool]
):
    options: dict[str, Any] = {"format": "gguf", "kind": "Q4_0", "tolerance_kl": 1e-6}
    with pytest.raises(ReceiptError, match="kl is"):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), **options)
    assert not receipts(tmp_path / "out")["kl"].held and (tmp_path / "out" / "model.gguf").exists()


def test_an_export_that_another_program_reads_differently_fails(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
):
    honest = export.peer_logits

    def turned(*arguments: Any) -> Any:
        return (logits.flip(-1) for logits in honest(*arguments))

    monkeypatch.setattr(export, "peer_logits", turned)
    with pytest.raises(ReceiptError, match="peer_"):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="huggingface")


def test_a_shape_that_transformers_refuses_is_told_in_one_message(tmp_path: Path, perform_stage: Callable[..., bool]):
    model = Llama(LlamaConfig(64, 96, 16, 1, 6, 3, tokenizer().vocab_size, 512))
    model.initialize(0)
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer())
    with pytest.raises(CheckpointError, match=r"transformers cannot read .* not a multiple of the number of attention"):
        perform_stage("export", tmp_path / "out", checkpoint=str(tmp_path / "checkpoint"), format="huggingface")


def set_in_config(name: str, value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(raw | {name: value}))

    return change


def drop_a_special_token(path: Path) -> None:
    raw = json.loads((path / "tokenizer.json").read_text())
    raw["added_tokens"].pop()
    (path / "tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_in_config("rms_norm_eps", 1e-6), "norm_eps is 1e-06 in the files, 1e-05 in the checkpoint"),
        (set_in_config("rope_theta", 450_000.0), "rope_theta is 450000.0 in the files"),
        (drop_a_special_token, "is missing in the files, the special token"),
    ],
    ids=["epsilon", "theta", "added token"],
)
def test_files_that_say_something_else_fail_however_little_the_logits_move(
    tmp_path: Path,
    checkpoint: Path,
    perform_stage: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    reason: str,
):
    honest = export.write_checkpoint

    def wrong(path: Path, *arguments: Any, **options: Any) -> None:
        honest(path, *arguments, **options)
        change(path)

    monkeypatch.setattr(export, "write_checkpoint", wrong)
    with pytest.raises(ReceiptError, match=reason):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="huggingface")
    assert not receipts(tmp_path / "out")["reread"].held


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_queries_and_keys_in_the_wrong_order_fail(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(writer, "to_pairs", lambda weight, num_heads: weight)
    with pytest.raises(ReceiptError, match=r"kl is|top1_agreement is"):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="gguf", kind=kind)


def in_blocks_of_int8(x: torch.Tensor) -> torch.Tensor:
    """Round as llama.cpp does before a product with blocks: 32 numbers share the scale of the largest."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / scale).round() * scale).flatten(-2)


def rounding(model: Llama) -> Llama:
    for module in model.modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _, inputs: (in_blocks_of_int8(inputs[0]),))
    product = model.embed_tokens.product
    model.embed_tokens.product = lambda x: product(in_blocks_of_int8(x))
    return model


def with_theta(theta: float) -> Callable[[Llama], Llama]:
    def change(model: Llama) -> Llama:
        model.frequencies = rope_frequencies(replace(model.config, rope_theta=theta))
        return model

    return change


def with_epsilon(epsilon: float) -> Callable[[Llama], Llama]:
    def change(model: Llama) -> Llama:
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.eps = epsilon
        return model

    return change


@torch.no_grad()
def turned_in_one_layer(model: Llama) -> Llama:
    weight = model.layers[2].self_attn.q_proj.weight
    weight.copy_(to_pairs(weight, model.config.num_heads))
    return model


TEACHER = Path(__file__).parents[2] / "recipes" / "teacher"


def compared(change: Callable[[Llama], Llama], sharpness: float) -> Comparison:
    """Compare the shipped teacher, its logits multiplied, with what `change` makes of it."""
    comparison = Comparison()
    for parent_TV, other_TV in zip(unchanged_logits(sharpness), sharp_logits(change, sharpness), strict=True):
        comparison.add(parent_TV, other_TV)
    return comparison


@cache
def unchanged_logits(sharpness: float) -> list[torch.Tensor]:
    return list(sharp_logits(lambda model: model, sharpness))


def sharp_logits(change: Callable[[Llama], Llama], sharpness: float) -> Iterator[torch.Tensor]:
    checkpoint = Checkpoint.open(TEACHER)
    model = change(checkpoint.load(torch.float32))
    model.norm.weight.data *= sharpness
    for ids in probe_pieces(checkpoint.tokenizer(), longest=256):
        yield compare.logits_of(model, ids, TEACHER)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_rounded_activations_are_within_the_bound_however_sharp_the_model_is(sharpness: float):
    found = peer_receipts(compared(rounding, sharpness), "llama.cpp", peer_tolerance("float32", "Q8_0"), {})
    assert all(receipt.held for receipt in found), found
    # The bound is no wider than it has to be.
    assert found[0].value > found[0].tolerance / 10


@pytest.mark.parametrize(
    "change",
    [turned_in_one_layer, with_theta(10_000.0), with_theta(1_000_000.0), with_epsilon(1e-3)],
    ids=["one layer's queries", "theta 10,000", "theta 1,000,000", "epsilon"],
)
@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_a_program_that_computes_something_else_is_beyond_the_widest_bound(
    change: Callable[[Llama], Llama], sharpness: float
):
    found = peer_receipts(compared(change, sharpness), "llama.cpp", peer_tolerance("float32", "Q4_0"), {})
    assert not found[0].held and not found[1].held


def test_the_shipped_teacher_is_proven_in_bfloat16(tmp_path: Path, perform_stage: Callable[..., bool]):
    options: dict[str, Any] = {"format": "huggingface", "precision": "bfloat16", "require_peer": True}
    perform_stage("export", tmp_path / "out", checkpoint=str(TEACHER), **options)
    found = receipts(tmp_path / "out")
    # A log-probability that nobody asks for may differ by more than half a nat: no fault, hence no limit.
    assert found["peer_difference"].held and found["peer_difference"].details["max_difference"] > 0


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_llama_cpp_proves_the_shipped_teacher(tmp_path: Path, perform_stage: Callable[..., bool], kind: str):
    pytest.importorskip("llama_cpp")
    perform_stage("export", tmp_path / "out", checkpoint=str(TEACHER), format="gguf", kind=kind, require_peer=True)


def test_without_the_other_program_it_says_so_and_can_be_told_to_fail(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PEERS, "gguf", Peer("llama.cpp", ("no_such_package",)))
    perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="gguf", kind="F16")
    assert receipts(tmp_path / "out").keys() == {"reread", "kl", "top1_agreement"}
    assert "only Puna has read these files" in (tmp_path / ".runs" / "out" / "log.txt").read_text()
    with pytest.raises(ConfigError, match=r"llama\.cpp is not installed"):
        perform_stage("export", tmp_path / "b", checkpoint=str(checkpoint), format="gguf", require_peer=True)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "huggingface", "kind": "F16"},
        {"format": "gguf", "dtype": "float16"},
        {"format": "gguf", "num_shards": 2},
        {"format": "gguf", "environment": "ipython"},
    ],
    ids=str,
)
def test_a_setting_that_would_be_ignored_is_refused(
    tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool], options: dict[str, Any]
):
    with pytest.raises(ConfigError, match=f"no {list(options)[1]} with the format"):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), **options)


def test_meta_takes_llama_3s_own_vocabulary_only(tmp_path: Path, checkpoint: Path, perform_stage: Callable[..., bool]):
    with pytest.raises(CheckpointError, match="128,000 tokens"):
        perform_stage("export", tmp_path / "out", checkpoint=str(checkpoint), format="meta")


def test_metas_own_network_computes_the_same_from_what_is_written(tmp_path: Path, perform_stage: Callable[..., bool]):
    pytest.importorskip("fairscale")
    from meta_chat import META_MODEL, llama

    model = Llama(LlamaConfig(32, 64, 8, 2, 4, 2, 128_256, 131_072, rope_scaling=SCALING))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, llama())
    options: dict[str, Any] = {"format": "meta", "num_shards": 2, "max_length": 12, "require_peer": True}
    perform_stage("export", tmp_path / "out", checkpoint=str(tmp_path / "checkpoint"), **options)
    found = receipts(tmp_path / "out")
    assert found["peer_kl"].details["read_by"] == "llama-models" and all(each.held for each in found.values())
    assert found["peer_difference"].value < 1e-5
    # From a tokenizer.json.
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == META_MODEL.read_bytes()
