"""Meta's format: the same weights and logits both ways, and pickles that are looked at and never obeyed."""

import io
import json
import os
import pickletools
import random
import resource
import shutil
import socket
import struct
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_models.sku_list import all_registered_models
from meta_chat import META_MODEL, llama
from meta_directory import PARAMS, SMALL, as_meta, edit_shard, save_shards, weights_of

from puna.conversion.exchange.peers import peer_logits
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.meta.archive import read_table
from puna.formats.checkpoint.meta.confine import confinement, run_confined
from puna.formats.checkpoint.meta.params import ffn_hidden_dim, parse_params, render_params
from puna.formats.checkpoint.meta.pickled import read_state_dict
from puna.formats.checkpoint.meta.reader import open_meta
from puna.formats.checkpoint.meta.shard import Shard
from puna.formats.checkpoint.meta.writer import write_meta
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.model.attend import packed_attend
from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.errors import CheckpointError
from puna.testing.tiny_checkpoint import tokenizer

SCALING = SIZES["8b"].rope_scaling
CONFIG = LlamaConfig(64, 128, 4, 2, 16, 8, 128_256, 131_072, rope_scaling=SCALING)
TOKENS = [128_000, 9906, 1917, 11, 420, 374, 264, 1296, 315, 279, 5509, 13, 128_009, 882, 271, 17, 220, 3]


@cache
def state() -> dict[str, torch.Tensor]:
    """A random model in Meta's names and layout, made without our code."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).to(torch.bfloat16)

    tensors = {"tok_embeddings.weight": draw(128_256, 64), "output.weight": draw(128_256, 64), "norm.weight": draw(64)}
    for layer in range(2):
        shapes = {
            "attention.wq": (64, 64),
            "attention.wk": (32, 64),
            "attention.wv": (32, 64),
            "attention.wo": (64, 64),
        }
        shapes |= {"feed_forward.w1": (128, 64), "feed_forward.w2": (64, 128), "feed_forward.w3": (128, 64)}
        shapes |= {"attention_norm": (64,), "ffn_norm": (64,)}
        tensors |= {f"layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
    return tensors


def shard_of(rank: int, num_shards: int, *, has_copies: bool = True) -> dict[str, torch.Tensor]:
    """Cut a shard as Meta's tensor parallelism does; more shards than key heads may hold copies."""
    shard: dict[str, torch.Tensor] = {}
    for name, tensor in state().items():
        if "norm" in name:
            shard[name] = tensor
        elif name.endswith(("wo.weight", "w2.weight")):
            shard[name] = tensor.chunk(num_shards, dim=1)[rank].clone()
        elif name.endswith(("wk.weight", "wv.weight")) and num_shards > 8 and has_copies:
            shard[name] = tensor.chunk(8)[rank * 8 // num_shards].clone()
        else:
            shard[name] = tensor.chunk(num_shards)[rank].clone()
    return shard


def write_reference(directory: Path, num_shards: int = 1, *, with_tokenizer: bool = False) -> Path:
    """Write a directory as Meta publishes them, with torch's own writer; the tokenizer takes seconds to load."""
    directory.mkdir(parents=True)
    params = {"dim": 64, "n_layers": 2, "n_heads": 16, "n_kv_heads": 8, "vocab_size": 128_256, "multiple_of": 128}
    params |= {"ffn_dim_multiplier": 0.5, "norm_eps": 1e-5, "rope_theta": 500_000.0, "use_scaled_rope": True}
    (directory / "params.json").write_text(json.dumps(params))
    if with_tokenizer:
        shutil.copyfile(META_MODEL, directory / "tokenizer.model")
    for rank in range(num_shards):
        torch.save(shard_of(rank, num_shards), directory / f"consolidated.{rank:02d}.pth")
    return directory


def halves(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Turn rows of adjacent pairs into rotated halves, head by head: even rows first."""
    return torch.cat([torch.cat((head[0::2], head[1::2])) for head in tensor.chunk(num_heads)])


@pytest.mark.parametrize("num_shards", [1, 2, 8, 16])
def test_shards_of_torchs_writer_are_joined_to_the_model(tmp_path: Path, num_shards: int):
    source = open_meta(write_reference(tmp_path / "meta", num_shards, with_tokenizer=num_shards == 1)).source
    assert source.config == CONFIG and source.dtype == torch.bfloat16
    assert {name: tuple(source.read(name).shape) for name in tensor_shapes(CONFIG)} == tensor_shapes(CONFIG)
    layer, meta = "model.layers.1.", "layers.1."
    assert torch.equal(source.read("model.embed_tokens.weight"), state()["tok_embeddings.weight"])
    assert torch.equal(source.read("lm_head.weight"), state()["output.weight"])
    for ours, theirs in (("self_attn.v_proj", "attention.wv"), ("self_attn.o_proj", "attention.wo"),
                         ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
                         ("mlp.up_proj", "feed_forward.w3"), ("input_layernorm", "attention_norm")):  # fmt: skip
        assert torch.equal(source.read(f"{layer}{ours}.weight"), state()[f"{meta}{theirs}.weight"]), ours
    for ours, theirs, heads in (("q_proj", "wq", 16), ("k_proj", "wk", 8)):
        expected = halves(state()[f"{meta}attention.{theirs}.weight"], heads)
        assert torch.equal(source.read(f"{layer}self_attn.{ours}.weight"), expected), ours
    if num_shards == 1:
        assert source.tokenizer is not None and source.tokenizer.encode("This is a test sentence.")[:2] == [2028, 374]


@pytest.mark.parametrize("num_shards", [1, 2, 8, 16])
def test_torch_reads_what_we_write_as_what_we_read(tmp_path: Path, num_shards: int):
    source = replace(open_meta(write_reference(tmp_path / "meta")).source, tokenizer=llama())
    (tmp_path / "ours").mkdir()
    write_meta(tmp_path / "ours", source, num_shards=num_shards)
    assert len(list((tmp_path / "ours").glob("*.pth"))) == num_shards
    for rank in range(num_shards):
        path = tmp_path / "ours" / f"consolidated.{rank:02d}.pth"
        written = torch.load(path, weights_only=True, mmap=True)
        expected = shard_of(rank, num_shards, has_copies=False)
        assert written.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(written[name], expected[name])] == []
    (tmp_path / "ours" / "tokenizer.model").unlink()
    again = open_meta(tmp_path / "ours").source
    assert all(torch.equal(again.read(name), source.read(name)) for name in tensor_shapes(CONFIG))


def test_metas_own_network_gives_our_logits_from_its_files(tmp_path: Path):
    pytest.importorskip("fairscale")
    directory = write_reference(tmp_path / "meta")
    model = load_source(open_meta(directory).source, torch.float32)
    with torch.no_grad():
        hidden = model(torch.tensor(TOKENS), torch.arange(len(TOKENS)), packed_attend([len(TOKENS)]))
        ours = model.logits(hidden)
    assert ours.std() > 0.05
    (logits,) = peer_logits("meta", directory, [TOKENS], torch.float32)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["8b", "70b", "405b", "1b", "3b"])
def test_params_of_the_published_sizes_survive(size: str):
    raw = json.loads(json.dumps(render_params(SIZES[size])))
    is_tied = SIZES[size].tie_embeddings
    assert parse_params(raw, Path("params.json"), num_ids=128_256, is_tied=is_tied) == SIZES[size]


def test_published_params_give_the_published_widths():
    for size, multiple, factor in (("8b", 1024, 1.3), ("70b", 4096, 1.3), ("405b", 4096, 1.2)):
        assert ffn_hidden_dim(SIZES[size].dim, factor, multiple) == SIZES[size].hidden_dim


@pytest.mark.parametrize(
    "change", [{"quantization_args": {}}, {"lora_args": {"rank": 8}}, {"vision_chunk_size": 448}, {"n_heads": 0}]
)
def test_params_that_change_what_is_computed_are_refused_by_name(tmp_path: Path, change: dict[str, Any]):
    directory = write_reference(tmp_path / "meta")
    raw = json.loads((directory / "params.json").read_text())
    (directory / "params.json").write_text(json.dumps(raw | change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        open_meta(directory)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path):
    directory = write_reference(tmp_path / "meta", 2)
    (directory / "consolidated.01.pth").rename(directory / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"consolidated"):
        open_meta(directory)
    other = shard_of(1, 2) | {"norm.weight": torch.zeros(64, dtype=torch.bfloat16)}
    torch.save(other, directory / "consolidated.01.pth")
    (directory / "consolidated.02.pth").unlink()
    source = open_meta(directory).source
    with pytest.raises(CheckpointError, match=r"norm\.weight differs"):
        source.read("model.norm.weight")


@pytest.mark.parametrize(("num_shards", "embeddings_dim"), [(2, 1), (8, 1), (16, 0)])
def test_embeddings_split_by_width_and_heads_by_rows_are_joined(tmp_path: Path, num_shards: int, embeddings_dim: int):
    weights = weights_of(SMALL)
    save_shards(tmp_path, as_meta(weights, SMALL), num_shards, embeddings_dim)
    source, how = open_meta(tmp_path)
    assert source.config == SMALL
    assert source.dtype == torch.bfloat16
    assert how == confinement().name
    assert all(torch.equal(source.read(name), tensor) for name, tensor in weights.items())


def test_parameters_views_and_a_modules_own_state_dict_are_read(tmp_path: Path):
    weights = as_meta(weights_of(SMALL, torch.float32), SMALL)
    module = torch.nn.Module()
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        parent = module
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        # A column-major view into a storage that starts elsewhere.
        strided = torch.cat((torch.zeros(5), tensor.t().flatten()))[5:].view(tensor.t().shape).t()
        parent.register_parameter(leaf, torch.nn.Parameter(strided, requires_grad=False))
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    path = tmp_path / "consolidated.00.pth"
    for state in (module.state_dict(), dict(module.named_parameters())):
        for protocol in (2, 3, 4, 5):
            torch.save(state, path, pickle_protocol=protocol)
            table = read_table(io.BytesIO(path.read_bytes()))
            opened = Shard.open(path) if protocol in (2, 4) else None
            assert table.keys() == weights.keys()
            assert opened is None or all(torch.equal(opened.view(name), tensor) for name, tensor in weights.items())


def test_an_output_matrix_that_repeats_the_embeddings_is_tied(tmp_path: Path):
    weights = weights_of(replace(SMALL, tie_embeddings=True))
    meta = as_meta(weights, SMALL)
    save_shards(tmp_path, meta | {"output.weight": meta["tok_embeddings.weight"]}, 2, embeddings_dim=1)
    assert open_meta(tmp_path).source.config.tie_embeddings
    edit_shard(tmp_path / "consolidated.01.pth", lambda state: state["output.weight"][-1, -1].add_(1))
    source = open_meta(tmp_path).source
    assert not source.config.tie_embeddings
    assert not torch.equal(source.read("lm_head.weight"), source.read("model.embed_tokens.weight"))
    save_shards(tmp_path, meta, 2)
    assert open_meta(tmp_path).source.config.tie_embeddings


@pytest.mark.parametrize(
    ("size", "sku"), [("8b", "3.1-8B"), ("70b", "3.1-70B"), ("405b", "3.1-405B"), ("1b", "3.2-1B")]
)
def test_the_params_of_published_models_are_what_meta_publishes(size: str, sku: str):
    published = next(model.arch_args for model in all_registered_models() if model.descriptor() == f"Llama{sku}")
    config = SIZES[size]
    assert render_params(config) == published
    path = Path("params.json")
    assert parse_params(published, path, num_ids=None, is_tied=config.tie_embeddings) == config


def test_every_width_is_written_so_that_metas_rounding_gives_it_back():
    chance = random.Random(0)
    for _ in range(2000):
        dim, hidden_dim = chance.randrange(2, 9000, 2), chance.randrange(1, 40_000)
        params = render_params(
            replace(SMALL, dim=dim, hidden_dim=hidden_dim, head_dim=dim, num_heads=1, num_kv_heads=1)
        )
        assert ffn_hidden_dim(dim, params["ffn_dim_multiplier"], params["multiple_of"]) == hidden_dim


WRITTEN = replace(SMALL, vocab_size=128_256)


def source_of(config: LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> Source:
    return Source("test", config, dtype, weights_of(config, dtype).__getitem__, llama())


def test_a_tied_model_goes_to_metas_format_and_back_unchanged(tmp_path: Path):
    source = source_of(replace(WRITTEN, tie_embeddings=True))
    write_meta(tmp_path, source, num_shards=2)
    assert torch.load(tmp_path / "consolidated.00.pth")["output.weight"].shape == (64_128, 64)
    (tmp_path / "tokenizer.model").unlink()
    back = open_meta(tmp_path).source
    assert back.config == source.config
    assert all(torch.equal(back.read(name), source.read(name)) for name in tensor_shapes(source.config))


def test_what_we_write_is_a_sound_archive_of_aligned_tensors_beside_metas_ranks(tmp_path: Path):
    write_meta(tmp_path, source_of(WRITTEN))
    assert (tmp_path / "tokenizer.model").read_bytes() == META_MODEL.read_bytes()
    path = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    assert all(place["start"] % 64 == 0 for place in read_table(io.BytesIO(path.read_bytes())).values())


def test_what_metas_format_cannot_say_is_refused_before_anything_is_written(tmp_path: Path):
    plain = source_of(WRITTEN)
    strange: list[tuple[Source, int, str]] = [
        (replace(plain, config=replace(WRITTEN, head_dim=8)), 1, "head_dim"),
        (replace(plain, config=replace(WRITTEN, rope_scaling=replace(SCALING, factor=32.0))), 1, "factor=32"),
        (replace(plain, tokenizer=None), 1, "without a tokenizer"),
        (replace(plain, tokenizer=tokenizer()), 1, "a tokenizer of its own"),
        (plain, 3, "3 shards of"),
        (plain, 0, "0 shards of"),
    ]
    for source, num_shards, message in strange:
        with pytest.raises(CheckpointError, match=message):
            write_meta(tmp_path, source, num_shards=num_shards)
    with pytest.raises(CheckpointError, match="float64"):
        write_meta(tmp_path, plain, dtype=torch.float64)
    assert not list(tmp_path.iterdir())
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="already holds"):
        write_meta(tmp_path, plain)


# Pickles


class Evil:
    """What a pickle may carry: a call that is made when it is loaded."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def archive(data: bytes, *, name: str = "archive/data.pkl", storage: bytes = b"\0" * 64, method: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr(name, data)
        file.writestr("archive/data/0", storage)
    return out.getvalue()


def tensor_pickle(*, offset: int = 0, size: int = 4, stride: int = 1, count: int = 32) -> bytes:
    """Spell the state dict {"w": tensor} of torch.save by hand, protocol 2."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    storage = b"(" + text("storage") + b"ctorch\nBFloat16Storage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    shape = number(size) + b"\x85" + number(stride) + b"\x85"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape
    rebuilt += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + rebuilt + b"s."


def test_the_hand_spelled_pickle_is_a_tensor():
    table = read_table(io.BytesIO(archive(tensor_pickle())))
    assert table["w"]["shape"] == [4] or table["w"]["shape"] == (4,)


MALICIOUS = {
    "global": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "inst": b"(X\x04\x00\x00\x00trueios\nsystem\n.",
    "object": b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "new object": b"\x80\x02cos\nsystem\n)\x81.",
    "build": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "torch's own loader": b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
    "deep": b"\x80\x02" + b"]" * 3_000_000 + b".",
    "tuples in tuples": b"\x80\x02K\x01" + b"\x85" * 200_000 + b".",
    "doubling": b"\x80\x02]" + b"(2l" * 200_000 + b".",
    "huge long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "huge text": b"\x80\x02X\xff\xff\xff\xff.",
    "unknown extension": b"\x80\x02\x82\x01.",
    "nothing": b"",
    "cut short": tensor_pickle()[:60],
    "outside its storage": tensor_pickle(offset=40),
    "wide stride": tensor_pickle(stride=100),
    "negative": tensor_pickle(offset=-1),
    "larger than its file": tensor_pickle(count=10**6, size=10**6),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_pickle_that_is_no_plain_state_dict_is_refused(kind: str):
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(archive(MALICIOUS[kind])))


def test_what_torch_would_run_is_named_and_does_not_run(tmp_path: Path):
    directory = write_reference(tmp_path / "meta")
    canary = tmp_path / "canary"
    torch.save({"norm.weight": Evil(canary)}, directory / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match=r"mkdir"):
        open_meta(directory)
    assert not canary.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a zip",
        archive(tensor_pickle())[:-40],
        archive(tensor_pickle(), method=zipfile.ZIP_DEFLATED),
        archive(tensor_pickle(), name="../data.pkl"),
        archive(tensor_pickle(), storage=b""),
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",  # torch's format before zip
    ],
    ids=["empty", "other", "cut", "deflated", "path", "no storage", "legacy"],
)
def test_a_file_that_is_no_stored_archive_is_refused(raw: bytes):
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(raw))


def test_every_opcode_of_pickle_is_taken_or_refused():
    for opcode in pickletools.opcodes:
        for end in (b".", b"\x00" * 12 + b".", b"K\x01K\x02."):
            try:
                read_state_dict(b"\x80\x02" + opcode.code.encode("latin-1") + end)
            except CheckpointError:
                continue


def test_mutated_files_are_read_or_refused(tmp_path: Path):
    chance, refused = random.Random(0), 0
    torch.save({name: tensor for name, tensor in state().items() if "layers.0" in name}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    directory = [at for at in range(len(whole)) if whole.startswith(b"PK", at)]
    places = [*range(3000), *(at + n for at in directory for n in range(46))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.choice(places) % len(damaged)] = chance.randrange(256)
        try:
            read_table(io.BytesIO(bytes(damaged)))
        except CheckpointError:
            refused += 1
    assert 200 < refused < 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


# Confinement


PROBE = """
import socket, sys
try: socket.create_connection(("127.0.0.1", {port}), 2); print("connected")
except OSError as error: print("refused")
"""


def test_the_process_that_looks_into_pickles_reaches_no_server_and_no_disk(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "file").open("w+b") as file:
        answer = run_confined(PROBE.format(port=server.getsockname()[1]), file, max_bytes=100).decode()
    expected = "connected" if confinement().name.startswith("limits only") else "refused"
    assert answer.strip() == expected
    target = tmp_path / "written"
    # Unbuffered: what a buffer can't write when Python ends goes by without an error.
    write = (
        "from puna.formats.checkpoint.meta.child import confine_self; confine_self(); "
        f"open({str(target)!r}, 'wb', buffering=0).write(b'x')"
    )
    with (tmp_path / "file").open("rb") as file, pytest.raises(CheckpointError, match="ended with status"):
        run_confined(write, file, max_bytes=100)
    assert not target.exists() or not target.read_text()
    with (tmp_path / "file").open("rb") as file, pytest.raises(CheckpointError, match="expected a result of at most"):
        run_confined("print('x' * 10**6)", file, max_bytes=1000)
