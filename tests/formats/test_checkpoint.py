"""A checkpoint directory gives the same logits here and in transformers, whoever wrote it; int8 weights survive it."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from puna.formats.chat.template import CHAT_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.hf import weights
from puna.formats.checkpoint.hf.config import parse_config, render_config
from puna.model.config import SIZES
from puna.model.llama import Llama
from puna.pipeline import machine
from puna.pipeline.errors import CheckpointError
from puna.testing.tiny_checkpoint import (
    CONFIG,
    INDEX,
    TOKENS,
    WEIGHTS,
    edit_json,
    logits_of,
    random_llama,
    save,
    tokenizer,
)

# Between us and transformers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 60_000])
def test_transformers_loads_what_we_write(tmp_path: Path, tied: bool, shard_bytes: int):
    model = save(tmp_path, tied=tied, shard_bytes=shard_bytes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "LlamaForCausalLM" and theirs.dtype == torch.float32
    torch.testing.assert_close(theirs(TOKENS[None]).logits[0], logits_of(model), atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == list(tokenizer().stop_ids)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer.chat_template == CHAT_TEMPLATE
    text = "the lazy fox, 123 <|eot_id|> Ünï"
    assert their_tokenizer.encode("the lazy fox", add_special_tokens=False) == tokenizer().encode("the lazy fox")
    assert Checkpoint.open(tmp_path).tokenizer().encode(text) == tokenizer().encode(text)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_load_what_transformers_writes(tmp_path: Path, tied: bool, dtype: torch.dtype):
    save(tmp_path, tied=tied)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    written = tmp_path / "theirs"
    theirs.save_pretrained(written, max_shard_size="60KB")
    assert (written / INDEX).exists() and "rope_parameters" in json.loads((written / CONFIG).read_text())
    checkpoint = Checkpoint.open(written)
    assert checkpoint.config == Checkpoint.open(tmp_path).config
    assert checkpoint.load().embed_tokens.weight.dtype == dtype
    with torch.no_grad():
        expected = theirs.float()(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits_of(checkpoint.load(torch.float32)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_config_survives_writing_and_reading(size: str):
    raw = render_config(SIZES[size], dtype=torch.bfloat16, stop_ids=(1, 2, 3), bos_id=0, pad_id=4)
    assert parse_config(json.loads(json.dumps(raw)), Path(CONFIG)) == SIZES[size]
    assert {"torch_dtype", "rope_theta", "rope_scaling"} <= raw.keys() and "rope_parameters" not in raw


def test_both_spellings_of_the_8b_config_are_read():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    sizes |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}
    shared = sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-05}
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope["rope_type"] = "llama3"
    published = shared | {"torch_dtype": "bfloat16", "rope_theta": 500000.0, "rope_scaling": rope}
    newer = shared | {"dtype": "bfloat16", "rope_parameters": rope | {"rope_theta": 500000.0}}
    assert parse_config(published, Path(CONFIG)) == parse_config(newer, Path(CONFIG)) == SIZES["8b"]


def test_stop_ids_are_those_that_generate_would_use(tmp_path: Path):
    save(tmp_path)
    assert Checkpoint.open(tmp_path).stop_ids == tokenizer().stop_ids
    edit_json(tmp_path / "generation_config.json", lambda raw: raw.update(eos_token_id=7))
    assert Checkpoint.open(tmp_path).stop_ids == (7,)
    (tmp_path / "generation_config.json").unlink()
    assert Checkpoint.open(tmp_path).stop_ids == tokenizer().stop_ids


# Writing and loading


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_weights_survive_writing_and_loading(tmp_path: Path, dtype: torch.dtype | None):
    model = save(tmp_path, dtype=dtype)
    loaded = Checkpoint.open(tmp_path).load()
    assert not loaded.training
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours.to(dtype or ours.dtype), theirs), name
    assert json.loads((tmp_path / CONFIG).read_text())["torch_dtype"] == str(dtype or torch.float32)[6:]


def test_shards_keep_to_their_size_and_tied_embeddings_are_stored_once(tmp_path: Path):
    save(tmp_path, tied=True, shard_bytes=60_000)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * random_llama(tied=True).config.num_parameters
    assert "lm_head.weight" not in index["weight_map"]
    shards = set(index["weight_map"].values())
    assert shards == {path.name for path in tmp_path.glob("*.safetensors")} and len(shards) > 2
    embeddings = index["weight_map"]["model.embed_tokens.weight"]
    assert all((tmp_path / shard).stat().st_size < 62_000 for shard in shards - {embeddings})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_weights_are_mapped_not_read(tmp_path: Path):
    save(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    model = checkpoint.load()
    assert str(tmp_path / WEIGHTS) in Path("/proc/self/maps").read_text()
    before = (tmp_path / WEIGHTS).read_bytes()
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
    assert (tmp_path / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("limit", "available", "is_read"),
    [("max", 2**30, True), (str(2**63), 2**30, True), ("1000", 2**30, False), ("", 1, False), (str(2**30), None, True)],
)
def test_files_are_read_ahead_only_where_the_memory_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, available: int | None, is_read: bool
):
    class Immediate(threading.Thread):
        def start(self) -> None:
            self.run()

    save(tmp_path, shard_bytes=60_000)
    system = {"limit": limit, "meminfo": f"MemTotal: 9 kB\nMemAvailable:   {available} kB\n"}
    for name, text in system.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "LIMITS", (tmp_path / "gone", tmp_path / "limit"))
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(threading, "Thread", Immediate)
    read: list[Path] = []
    monkeypatch.setattr(weights, "read_through", read.extend)
    Checkpoint.open(tmp_path).prefetch()
    assert read == (sorted(tmp_path.glob("*.safetensors")) if is_read else [])


@pytest.mark.parametrize("num_spaces", [1, 2, 4])
def test_a_foreign_file_whose_tensors_lie_anywhere_is_read(tmp_path: Path, num_spaces: int):
    model = save(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end] + b" " * num_spaces
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    assert torch.equal(logits_of(Checkpoint.open(tmp_path).load()), logits_of(model))


def test_a_file_that_is_cut_after_it_was_opened_is_refused(tmp_path: Path):
    save(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(tmp_path / WEIGHTS, (tmp_path / WEIGHTS).stat().st_size - 1)
    with pytest.raises(CheckpointError, match="the file changed"):
        checkpoint.load()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in its cache")
@pytest.mark.parametrize("can_send", [True, False])
def test_files_are_read_into_the_systems_cache(tmp_path: Path, can_send: bool, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: int) -> int:
        raise OSError("a socket was expected")

    if not can_send:
        monkeypatch.setattr(os, "sendfile", refuse)
    monkeypatch.setattr(weights, "SENT_BYTES", 100_000)
    path, size = tmp_path / "weights", 300_000
    path.write_bytes(b"7" * size)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        weights.read_through([tmp_path / "gone", path])
        # Reads what is in the cache alone.
        assert os.preadv(file.fileno(), [bytearray(size)], 0, os.RWF_NOWAIT) == size


def test_nothing_is_written_over_a_checkpoint(tmp_path: Path):
    save(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="already holds"):
        save(tmp_path, tied=True)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path: Path):
    small = Llama(replace(random_llama().config, vocab_size=tokenizer().vocab_size - 1))
    with pytest.raises(CheckpointError, match="embeddings"):
        save_checkpoint(tmp_path, small, tokenizer())
    assert not list(tmp_path.iterdir())
