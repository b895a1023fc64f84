"""Every GGUF file that doesn't fit is refused with an error that names it, at once and in little memory."""

import io
import os
import random
import re
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console

from puna.formats.checkpoint.gguf import reader
from puna.formats.checkpoint.gguf.container import Strings, padding, read_gguf, render_header
from puna.formats.checkpoint.gguf.reader import open_gguf
from puna.formats.checkpoint.gguf.writer import WrittenKind, write_gguf
from puna.formats.checkpoint.source import Source, disk_name, tensor_shapes
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.examine import examine
from puna.testing.tiny_checkpoint import SCALING, tokenizer

Q_PROJ, NORM = "blk.0.attn_q.weight", "output_norm.weight"
MEMORY_LIMIT = 64 * 2**20


def write(path: Path, kind: WrittenKind = "F32") -> Path:
    """A file of one layer, with a tokenizer and a scaled RoPE."""
    config = LlamaConfig(32, 64, 16, 1, 2, 1, tokenizer().vocab_size, 16_384, rope_scaling=SCALING)
    network = Llama(config)
    network.initialize(seed=0)
    tensors = {disk_name(name): tensor.detach() for name, tensor in network.state_dict().items()}
    source = Source("test", config, torch.float32, tensors.__getitem__, tokenizer())
    write_gguf(path, source, kind=kind, name="tiny", template="{{ messages }}", licence="none")
    return path


class Parts:
    """A file taken apart: what a test changes here stands in the file that `save` writes."""

    def __init__(self, path: Path):
        file = read_gguf(path)
        self.path = path
        self.metadata = {key: self._plain(value) for key, value in file.metadata.items()}
        self.shapes = {name: (tensor.kind, tensor.shape) for name, tensor in file.tensors.items()}
        self.contents = {name: bytes(file.content(name)) for name in file.tensors}

    def _plain(self, value: Any) -> Any:
        return list(value) if isinstance(value, Strings) else value.tolist() if isinstance(value, np.ndarray) else value

    def save(self) -> None:
        data = b"".join(content + padding(len(content)) for content in self.contents.values())
        self.path.write_bytes(render_header(self.metadata, self.shapes) + data)


# Settings

WRONG_KEYS: list[dict[str, Any]] = [
    {"general.architecture": "qwen2"},
    {"general.architecture": None},
    {"general.type": "adapter"},
    {"general.quantization_version": 1},
    {"general.architecture": [1, 2]},
    {"general.type": [1, 2]},
    {"split.count": [0, 1]},
    {"llama.rope.scale_linear": ["a", "b"]},
    {"tokenizer.ggml.model": [1, 2]},
    {"tokenizer.ggml.pre": [1, 2]},
    {"general.sampling.temp": "hot"},
    {"split.count": 3},
    {"llama.expert_count": 8},
    {"llama.rope.scaling.type": "yarn"},
    {"llama.rope.scaling.factor": 8.0},
    {"llama.rope.scale_linear": 4.0},
    {"llama.attention.sliding_window": 4096},
    {"llama.logit_scale": 0.5},
    {"llama.block_count": 0},
    {"llama.block_count": 2},
    {"llama.block_count": 2**31 - 1},
    {"llama.block_count": 1.0},
    {"llama.block_count": True},
    {"llama.attention.head_count": 3},
    {"llama.attention.head_count": [2]},
    {"llama.attention.head_count_kv": 3},
    {"llama.attention.key_length": 2**31 - 2},
    {"llama.attention.value_length": 8},
    {"llama.attention.layer_norm_rms_epsilon": -1.0},
    {"llama.attention.layer_norm_rms_epsilon": float("nan")},
    {"llama.attention.layer_norm_rms_epsilon": None},
    {"llama.rope.freq_base": float("inf")},
    {"llama.rope.dimension_count": 8},
    {"llama.embedding_length": 64},
    {"llama.feed_forward_length": 2**31 - 1},
    {"llama.context_length": None},
    {"llama.vocab_size": 7},
    {"tokenizer.ggml.model": "llama"},
    {"tokenizer.ggml.pre": "qwen2"},
    {"tokenizer.ggml.pre": None},
    {"tokenizer.ggml.tokens": "fox"},
    {"tokenizer.ggml.tokens": ["fox"]},
    {"tokenizer.ggml.token_type": None},
    {"tokenizer.ggml.token_type": [6] * 530},
    {"tokenizer.ggml.merges": None},
    {"tokenizer.ggml.merges": ["q u i"]},
    {"tokenizer.ggml.merges": ["Ġ Ġ"] * 20_000},
]


@pytest.mark.parametrize("change", WRONG_KEYS, ids=lambda change: f"{change!a:.60}")
def test_a_setting_that_we_do_not_compute_is_refused_by_name(tmp_path: Path, change: dict[str, Any]):
    parts = Parts(write(tmp_path / "m.gguf"))
    parts.metadata = {key: value for key, value in (parts.metadata | change).items() if value is not None}
    parts.save()
    with pytest.raises(CheckpointError, match=re.escape(str(parts.path))) as caught:
        open_gguf(parts.path)
    assert len(str(caught.value)) < 500


def test_the_doctor_tells_of_arrays_where_ids_belong(tmp_path: Path):
    parts = Parts(write(tmp_path / "m.gguf"))
    parts.metadata |= {f"tokenizer.ggml.{role}_token_id": [1, 2] for role in ("eos", "eot", "padding")}
    parts.save()
    report = examine(parts.path, quick=True, console=Console(file=io.StringIO()))
    assert {"id-out-of-range", "stop-missing"} <= {finding.code for finding in report.findings}


def test_more_layers_than_the_file_holds_are_refused_before_the_network_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = Parts(write(tmp_path / "m.gguf"))
    parts.metadata["llama.block_count"] = 10**9
    parts.save()
    monkeypatch.delattr(reader, "tensor_shapes")
    with pytest.raises(CheckpointError, match="9,000,000,003 tensors"):
        open_gguf(parts.path)


def drop(name: str) -> Callable[[Parts], Any]:
    return lambda parts: (parts.shapes.pop(name), parts.contents.pop(name))


def add(name: str) -> Callable[[Parts], Any]:
    return lambda parts: (parts.shapes.update({name: ("F32", (32,))}), parts.contents.update({name: bytes(128)}))


def turn(parts: Parts) -> None:
    parts.shapes["blk.0.ffn_up.weight"] = ("F32", (32, 64))


def rescale(parts: Parts) -> None:
    parts.contents["rope_freqs.weight"] = np.linspace(1, 5, 8, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(NORM), "11 tensors"),
        (drop("token_embd.weight"), "token_embd.weight is missing"),
        (drop("output.weight"), ""),
        (add("blk.0.attn_q.bias"), "13 tensors"),
        (lambda parts: (drop(NORM)(parts), add("blk.0.attn_q.bias")(parts)), f"{NORM} is missing"),
        (turn, r"ffn_up\.weight has shape \[32, 64\]"),
        (rescale, r"rope_freqs\.weight scales RoPE by up to 5.*8 or by 32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: Callable[[Parts], Any], told: str):
    parts = Parts(write(tmp_path / "m.gguf"))
    change(parts)
    parts.save()
    if not told:  # Without its output the model is one with tied embeddings.
        assert open_gguf(parts.path).config.tie_embeddings
        return
    with pytest.raises(CheckpointError, match=told):
        open_gguf(parts.path)


# The file itself


def put(at: int, code: str, *values: int) -> Callable[[bytearray], None]:
    return lambda raw: struct.pack_into(f"<{code}", raw, at, *values)


def behind(text: str, skip: int, code: str, *values: int) -> Callable[[bytearray], None]:
    """Overwrite what stands `skip` bytes behind the first place where `text` is spelled."""
    return lambda raw: struct.pack_into(f"<{code}", raw, raw.index(text.encode()) + len(text) + skip, *values)


def rename(old: str, new: bytes) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        assert len(old) == len(new)
        at = raw.index(old.encode())
        raw[at : at + len(new)] = new

    return change


TOKENS, KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
DAMAGES: list[tuple[Callable[[bytearray], Any], str]] = [
    (put(0, "I", 7), "begins with"),
    (put(4, "I", 1), "version 1"),
    (put(4, "I", 3 << 24), "version 3, big-endian"),
    (put(4, "I", 99), "version 99"),
    (put(8, "Q", 2**63), "tensors and"),
    (put(16, "Q", 2**64 - 1), "at most 65,536"),
    (put(16, "Q", 60_000), "claims"),
    (put(24, "Q", 2**63), "the name of key 0 claims"),
    (behind("general.name", 4, "Q", 2**40), "general.name"),
    (behind("general.name", 0, "I", 13), "general.name' has type 13"),
    (rename("tiny", b"t\xffny"), "general.name' is no text"),
    (rename("general.name", b"general.type"), "is a duplicate"),
    (rename("blk.0.attn_k.weight", b"blk.0.attn_q.weight"), f"{Q_PROJ}' is a duplicate"),
    (behind("add_bos_token", 4, "B", 2), "a boolean of value 2"),
    (behind(TOKENS, 8, "Q", 2**61), f"{TOKENS}' claims"),
    (behind(TOKENS, 8, "Q", 2**64 - 1), f"{TOKENS}' claims"),
    (behind(TOKENS, 4, "I", 9), f"{TOKENS}' is an array of type 9"),
    (behind(TOKENS, 16, "Q", 2**62), f"{TOKENS}', text 0, leads out"),
    (behind(TOKENS, 24, "B", 0xFF), f"{TOKENS}', text 0: "),
    (behind(KINDS, 8, "Q", 2**62), f"{KINDS}' claims"),
    (behind("general.alignment", 4, "I", 0), "general.alignment = 0"),
    (behind("general.alignment", 4, "I", 33), "general.alignment = 33"),
    (behind("general.alignment", 4, "I", 2**31), "general.alignment"),
    (behind(Q_PROJ, 0, "I", 0), f"{Q_PROJ}' has 0 dimensions"),
    (behind(Q_PROJ, 0, "I", 2**32 - 1), "4,294,967,295 dimensions"),
    (behind(Q_PROJ, 4, "Q", 0), "no empty dimension"),
    (behind(Q_PROJ, 4, "Q", 2**63), "inside the file"),
    (behind(Q_PROJ, 4, "QQ", 2**63, 2**63), "inside the file"),
    (behind(Q_PROJ, 20, "I", 26), f"{Q_PROJ}' is stored as I32; expected one of F32, F16"),
    (behind(Q_PROJ, 20, "I", 12), f"{Q_PROJ}', Q4_K, has shape [32, 32]; expected rows of a multiple of 256"),
    (behind(Q_PROJ, 20, "I", 999), f"{Q_PROJ}' is stored as kind 999"),
    (behind(Q_PROJ, 20, "I", 1), "without gap or overlap"),
    (behind(Q_PROJ, 24, "Q", 0), "without gap or overlap"),
    (behind(Q_PROJ, 24, "Q", 2**63), "without gap or overlap"),
    (behind(Q_PROJ, 24, "Q", 33), "without gap or overlap"),
    (lambda raw: raw.extend(bytes(64)), "at most the"),
]


@pytest.mark.parametrize(("change", "told"), DAMAGES, ids=[told for _, told in DAMAGES])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: Callable[[bytearray], Any], told: str):
    path = write(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    for kept in (0, 3, 23, 24, 100, 2000, *range(0, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            open_gguf(path)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "Q8_0")
    raw = bytearray(path.read_bytes())
    behind(Q_PROJ, 4, "Q", 31)(raw)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="rows of a multiple of 32"):
        open_gguf(path)


def test_an_array_of_arrays_as_the_gguf_package_writes_it_is_refused(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("deep", [[1, 2], [3, 4]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'deep' is an array of type 9"):
        read_gguf(tmp_path / "m.gguf")


def test_what_is_no_file_of_its_directory_is_refused(tmp_path: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    write(tmp_path / "m.gguf")
    (inside / "link.gguf").symlink_to(tmp_path / "m.gguf")
    os.mkfifo(inside / "pipe.gguf")
    (inside / "folder.gguf").mkdir()
    for name, told in (("link", "link"), ("pipe", "not a regular"), ("folder", "not a regular"), ("no", "not exist")):
        with pytest.raises(CheckpointError, match=told):
            open_gguf(inside / f"{name}.gguf")


# Mutations


def mutate(whole: bytes, header_len: int, numbers: list[int], chance: random.Random) -> bytes:
    """Damage a file in one to three of five ways, mostly in its header."""
    raw = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(header_len if chance.random() < 0.9 else len(raw)) % len(raw)
        match chance.choice(("byte", "length", "number", "number", "insert", "delete", "cut")):
            case "byte":
                raw[at] = chance.randrange(256)
            case "length" if len(raw) > header_len:
                at = chance.choice(numbers)
                old = struct.unpack_from("<Q", raw, at)[0]
                new = chance.choice((0, 1, old + 1, old - 1, old * 2, len(raw), 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                struct.pack_into("<Q", raw, at, new % 2**64)
            case "number" if len(raw) > header_len:
                new = chance.choice((0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 64, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
                struct.pack_into("<I", raw, chance.choice(numbers), new)
            case "insert":
                raw[at:at] = chance.randbytes(chance.choice((1, 4, 8, 32)))
            case "delete":
                del raw[at : at + chance.choice((1, 4, 8, 32))]
            case _:
                del raw[chance.randrange(len(raw)) :]
        if not raw:
            break
    return bytes(raw)


def header_numbers(whole: bytes, header_len: int) -> list[int]:
    """Where in the header small numbers stand: lengths, counts, types and settings."""
    return [at for at in range(4, header_len - 8) if 0 < struct.unpack_from("<I", whole, at)[0] < 2**17]


opened: list[str] = []
is_watching = False


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and is_watching:
        opened.append(str(arguments[0]))


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def load_all(path: Path) -> None:
    global is_watching
    is_watching = True
    try:
        source = open_gguf(path)
        for name in tensor_shapes(source.config):
            source.read(name)
    finally:
        is_watching = False


class Outcome(NamedTuple):
    """How many mutations were refused, seconds of the slowest, and by how many bytes memory grew at its peak."""

    refused: int
    slowest: float
    growth: int


def try_mutations(path: Path, kind: WrittenKind, count: int) -> Outcome:
    whole = write(path, kind).read_bytes()
    header_len = min(tensor.offset for tensor in read_gguf(path).tensors.values())
    numbers, chance = header_numbers(whole, header_len), random.Random(count)
    load_all(path)
    has_status = Path("/proc/self/clear_refs").exists()
    if has_status:
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak so far.
    before = memory("VmRSS") if has_status else 0
    refused, slowest = 0, 0.0
    for _ in range(count):
        path.unlink()
        path.write_bytes(mutate(whole, header_len, numbers, chance))
        started = time.perf_counter()
        try:
            load_all(path)
        except CheckpointError as error:
            refused += 1
            str(error).encode()
        slowest = max(slowest, time.perf_counter() - started)
    return Outcome(refused, slowest, memory("VmHWM") - before if has_status else 0)


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
@pytest.mark.parametrize("count", [2500, pytest.param(25_000, marks=pytest.mark.slow)])
def test_mutated_files_load_or_are_refused_quickly_and_in_little_memory(tmp_path: Path, kind: WrittenKind, count: int):
    path = tmp_path / "m.gguf"
    load_all(write(path))  # Imports what is imported late.
    path.unlink()
    sys.addaudithook(note_opened)
    opened.clear()
    outcome = try_mutations(path, kind, count)
    assert count // 2 < outcome.refused < count
    assert outcome.slowest < 1
    assert outcome.growth < len(write(tmp_path / "whole.gguf", kind).read_bytes()) + MEMORY_LIMIT
    assert set(opened) == {str(path)}
