"""What is no model of Meta's format is refused by name; hostile pickles, archives and answers do no harm."""

import io
import json
import socket
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_directory import PARAMS, SMALL, as_meta, edit_shard, save_shards, weights_of

from puna.formats.checkpoint.meta import archive, confine, pickled, shard
from puna.formats.checkpoint.meta.archive import read_table
from puna.formats.checkpoint.meta.confine import confinement, run_confined
from puna.formats.checkpoint.meta.reader import open_meta
from puna.formats.checkpoint.meta.shard import Shard
from puna.formats.checkpoint.source import tensor_shapes
from puna.pipeline.errors import CheckpointError


def save_repeated_heads(directory: Path) -> dict[str, torch.Tensor]:
    """16 shards of 8 key/value heads, each whole head in two neighbours."""
    weights = weights_of(SMALL)
    save_shards(directory, as_meta(weights, SMALL), 16)
    meta = as_meta(weights, SMALL)
    for rank in range(16):
        heads = {name: meta[name].chunk(8)[rank // 2].clone() for name in meta if "wk" in name or "wv" in name}
        edit_shard(directory / f"consolidated.{rank:02d}.pth", lambda state, heads=heads: state.update(heads))
    return weights


@pytest.mark.parametrize(
    ("num_shards", "rank", "meta", "name"),
    [
        (2, 1, "layers.0.attention_norm.weight", "model.layers.0.input_layernorm.weight"),
        (16, 5, "layers.1.attention.wk.weight", "model.layers.1.self_attn.k_proj.weight"),
    ],
)
def test_copies_that_differ_between_shards_are_refused_with_the_file(
    tmp_path: Path, num_shards: int, rank: int, meta: str, name: str
):
    if num_shards == 16:
        save_repeated_heads(tmp_path)
    else:
        save_shards(tmp_path, as_meta(weights_of(SMALL), SMALL), num_shards)
    edit_shard(tmp_path / f"consolidated.{rank:02d}.pth", lambda state: state[meta].view(-1)[0].add_(1))
    source = open_meta(tmp_path).source
    with pytest.raises(CheckpointError, match=rf"consolidated\.{rank:02d}\.pth: " + meta):
        source.read(name)


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.1.feed_forward.w3.weight"), "no tensor 'layers.1.feed_forward.w3.weight'"),
        (lambda state: state.update(bias=torch.ones(3)), "unexpected tensor 'bias'"),
        (lambda state: state.update({"norm.weight": torch.ones(63).bfloat16()}), "norm.weight has"),
        (lambda state: state.update({"norm.weight": torch.ones(64)}), "norm.weight has"),
        (lambda state: state.update({"norm.weight": torch.ones(64, dtype=torch.int64)}), "'int64'"),
        (lambda state: state.update(step=3), "'step' is a int"),
        (lambda state: state.update(more={"a": torch.ones(1)}), "'more' is a dict"),
        (lambda state: state.update(names=["a"]), "EMPTY_LIST"),
        (lambda state: state.update({"norm.weight": torch.ones(1).bfloat16().expand(64)}), "without repeated elements"),
    ],
)
def test_tensors_that_params_json_does_not_describe_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
):
    save_shards(tmp_path, as_meta(weights_of(SMALL), SMALL), 2)
    edit_shard(tmp_path / "consolidated.01.pth", change)
    with pytest.raises(CheckpointError, match=message):
        open_meta(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 60}, "n_heads"),
        ({"dim": 0}, "dim = 0"),
        ({"n_layers": 3}, "layers.2"),
        ({"n_layers": 10**9}, "layers.2"),
        ({"n_layers": 1}, "unexpected tensor 'layers.1"),
        ({"multiple_of": 2**30}, "weights in its shards"),
        ({"n_kv_heads": 5}, "num_kv_heads"),
        ({"n_kv_heads": 16}, "attention.wk|weights in its shards"),
        ({"vocab_size": 352}, "tok_embeddings|weights in its shards"),
        ({"vocab_size": -1}, "tokenizer.model"),
        ({"norm_eps": None}, "norm_eps"),
        ({"rope_theta": None}, "rope_theta"),
        ({"ffn_dim_multiplier": "1"}, "ffn_dim_multiplier"),
        ({"use_scaled_rope": 1}, "use_scaled_rope"),
        ({"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation"}}, "quantization_args"),
        ({"lora_args": {"rank": 16, "scale": 2.0}}, "lora_args"),
        ({"vision_chunk_size": 560}, "vision_chunk_size"),
        ({"moe_args": {"num_experts": 16}}, "moe_args"),
    ],
    ids=str,
)
def test_params_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str):
    save_shards(tmp_path, as_meta(weights_of(SMALL), SMALL), 1)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | change))
    with pytest.raises(CheckpointError, match=message):
        open_meta(tmp_path)


def test_a_gap_between_the_shards_and_a_missing_file_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no params\.json"):
        open_meta(tmp_path)
    save_shards(tmp_path, as_meta(weights_of(SMALL), SMALL), 8)
    (tmp_path / "consolidated.03.pth").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.03\.pth is missing among 7 files"):
        open_meta(tmp_path)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth is missing"):
        open_meta(tmp_path)


# Code and bombs


def archive_of(data: bytes) -> bytes:
    """A file as torch.save lays it out around any pickle."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/data/0", bytes(64))
        file.writestr("a/version", "3\n")
    return written.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def spelled(
    *, key: str = "0", kind: str = "FloatStorage", count: int = 16, offset: int = 0, shape: str = "(K\x02K\x02t",
    stride: str = "(K\x02K\x01t",
) -> bytes:  # fmt: skip
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage += b"\x8a\x08" + struct.pack("<q", count) + b"tQ"
    place = b"\x8a\x08" + struct.pack("<q", offset) + shape.encode("latin-1") + stride.encode("latin-1")
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89ccollections\nOrderedDict\n)RtR"


def dict_with(item: bytes) -> bytes:
    return b"\x80\x02}(" + text("w") + item + b"u."


def test_the_hand_written_archive_is_one_that_torch_reads(tmp_path: Path):
    path = tmp_path / "a.pth"
    path.write_bytes(archive_of(dict_with(spelled())))
    assert torch.load(path)["w"].shape == (2, 2)
    assert Shard.open(path).view("w").shape == (2, 2)


def shell(canary: Path) -> bytes:
    return text(f"touch {canary}")


CALL = text("__call__") + b"tR("
CODE: dict[str, Callable[[Path], bytes]] = {
    "GLOBAL and REDUCE": lambda canary: dict_with(b"cos\nsystem\n(" + shell(canary) + b"tR"),
    "STACK_GLOBAL": lambda canary: dict_with(b"\x8c\x02os\x8c\x06system\x93" + shell(canary) + b"\x85R"),
    "INST": lambda canary: dict_with(b"(" + shell(canary) + b"ios\nsystem\n"),
    "OBJ": lambda canary: dict_with(b"(csubprocess\ncall\n" + b"(" + text("touch") + text(str(canary)) + b"lo"),
    "eval": lambda canary: dict_with(b"cbuiltins\neval\n(" + text(f"open({str(canary)!r}, 'w')") + b"tR"),
    "getattr": lambda canary: dict_with(b"cbuiltins\ngetattr\n(cos\nsystem\n" + CALL + shell(canary) + b"tR"),
    "run before the state dict": lambda canary: b"\x80\x02cos\nsystem\n(" + shell(canary) + b"tR0}.",
}  # fmt: skip


@pytest.mark.parametrize("payload", CODE.values(), ids=CODE)
def test_a_pickle_that_runs_code_is_refused_and_nothing_ran(tmp_path: Path, payload: Callable[[Path], bytes]):
    canary, path = tmp_path / "canary", tmp_path / "consolidated.00.pth"
    path.write_bytes(archive_of(payload(canary)))
    with pytest.raises(CheckpointError, match=r"it names '(os\.system|subprocess\.call|builtins\.(eval|getattr))'"):
        Shard.open(path)
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(path.read_bytes()))
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the payload works where pickles are loaded"


def exponential() -> bytes:
    """A tuple of two of a tuple of two..., 60 deep: to hash or to print it takes for ever."""
    return b")q\x00" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))


BOMBS = {
    "BUILD on a tensor": dict_with(spelled() + b"}" + text("__setstate__") + b"Nsb"),
    "BUILD with __setstate__": dict_with(b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + b"Nsb"),
    "NEWOBJ": dict_with(b"ccollections\nOrderedDict\n)\x81"),
    "a call of a storage": dict_with(b"ctorch\nFloatStorage\n)R"),
    "OrderedDict with an argument": dict_with(b"ccollections\nOrderedDict\n(Ntl\x85R"),
    "exponential value": dict_with(exponential()),
    "exponential key": b"\x80\x02}" + exponential() + b"Ns.",
    "exponential global": b"\x80\x02" + exponential() + text("a") + b"\x93.",
    "deep marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "deep tuples": dict_with(b")" + b"\x85" * 100_000),
    "huge LONG1": dict_with(b"\x8a\xff" + bytes(255)),
    "huge LONG4": dict_with(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "huge text": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b".",
    "text that is no UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "unknown memo": b"\x80\x02h\x07.",
    "memo far away": dict_with(b"j\xff\xff\xff\xff"),
    "empty stack": b"\x80\x020.",
    "pop below a mark": b"\x80\x02N(.",
    "key twice": b"\x80\x02}(" + (text("w") + spelled()) * 2 + b"u.",
    "odd items": b"\x80\x02}(" + text("w") + b"u.",
    "items of a tuple": b"\x80\x02)" + text("w") + b"Ns.",
    "protocol 0": b"(dp0\n.",
    "protocol 9": b"\x80\x09}.",
    "no end": b"\x80\x02}",
    "something behind the end": b"\x80\x02}.N",
    "nothing": b"",
    "no dict": b"\x80\x02N.",
    "extension": dict_with(b"\x82\x01"),
    "too large a storage": dict_with(spelled(count=17)),
    "negative storage": dict_with(spelled(count=-1)),
    "another kind of storage": dict_with(spelled(kind="DoubleStorage")),
    "unknown kind of storage": dict_with(spelled(kind="QInt8Storage")),
    "a storage that is not there": dict_with(spelled(key="1")),
    "a storage elsewhere": dict_with(spelled(key="../data.pkl")),
    "offset outside": dict_with(spelled(offset=13)),
    "negative offset": dict_with(spelled(offset=-1)),
    "shape outside": dict_with(spelled(shape="(K\x05K\x04t", stride="(K\x04K\x01t")),
    "stride outside": dict_with(spelled(stride="(K\x10K\x01t")),
    "negative stride": dict_with(spelled(offset=8, stride="(J\xff\xff\xff\xffK\x01t")),
    "negative shape": dict_with(spelled(shape="(J\xff\xff\xff\xffK\x02t")),
    "endless repetition": dict_with(spelled(shape="(\x8a\x05\0\0\0\0\x01K\x01t", stride="(K\x00K\x00t")),
    "rank 9": dict_with(spelled(shape="(" + "K\x01" * 9 + "t", stride="(" + "K\x01" * 9 + "t")),
    "shape without stride": dict_with(spelled(stride=")")),
    "truth as a size": dict_with(spelled(shape="(\x88\x88t")),
}  # fmt: skip


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_pickle_made_to_harm_is_refused(data: bytes):
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(archive_of(data)))


NUMBERS = torch.arange(64.0)
APART = {
    "transposed": NUMBERS.view(8, 8).T,
    "every second": NUMBERS.view(8, 8)[1::2, ::2],
    "permuted": NUMBERS.view(2, 4, 8).permute(1, 2, 0)[1:],
    "diagonals": NUMBERS.view(4, 4, 4).diagonal(),
    "one row of stride 0": NUMBERS.as_strided((1, 8), (0, 1)),
}
REPEATING = {
    "expanded": NUMBERS.expand(3, 64),
    "an expanded number": NUMBERS[3].expand(4, 4),
    "unfolded": NUMBERS.unfold(0, 4, 2),
    "as long as its storage": NUMBERS.as_strided((2, 2, 2), (1, 1, 61)),
}


@pytest.mark.parametrize("kind", [*APART, *REPEATING])
def test_a_view_is_what_torch_reads_or_refused_where_it_repeats_elements(tmp_path: Path, kind: str):
    path = tmp_path / "consolidated.00.pth"
    torch.save({"w": (APART | REPEATING)[kind]}, path)
    theirs = torch.load(path)["w"]
    assert (theirs.unique().numel() < theirs.numel()) == (kind in REPEATING)
    if kind in APART:
        assert torch.equal(Shard.open(path).view("w"), theirs)
        return
    with pytest.raises(CheckpointError, match="without repeated elements"):
        Shard.open(path)


def test_a_pickle_too_long_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pickled, "MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 opcodes"):
        read_table(io.BytesIO(archive_of(b"\x80\x02" + b"N" * 1000 + b".")))
    monkeypatch.setattr(archive, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"data\.pkl has 1,002 bytes"):
        read_table(io.BytesIO(archive_of(b"\x80\x02" + b"N" * 999 + b".")))


# Damaged archives


def zip_of(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return written.getvalue()


def patched(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new) and old in raw
    return raw.replace(old, new)


GOOD = dict_with(spelled())
WHOLE = [("a/data.pkl", GOOD), ("a/data/0", bytes(64))]
ARCHIVES = {
    "deflated": zip_of([("a/data.pkl", GOOD), ("a/data/0", bytes(64))], zipfile.ZIP_DEFLATED),
    "zip bomb": zip_of([("a/data.pkl", GOOD), ("a/data/0", bytes(50_000_000))], zipfile.ZIP_DEFLATED),
    "a second data.pkl": zip_of([*WHOLE, ("b/data.pkl", GOOD)]),
    "no data.pkl": zip_of([("a/data/0", bytes(64))]),
    "no entry": zip_of([]),
    "path upward": zip_of([*WHOLE, ("a/../x", b"")]),
    "path from the root": zip_of([*WHOLE, ("/a/x", b"")]),
    "name with a NUL": patched(zip_of([*WHOLE, ("a/x_y", b"")]), b"a/x_y", b"a/x\0y"),
    "two of one name": patched(zip_of([*WHOLE, ("a/data/1", bytes(64))]), b"a/data/1", b"a/data/0"),
    "big-endian": zip_of([*WHOLE, ("a/byteorder", b"big")]),
    "the old tar format": b"ustar" * 200,
    "the format before 1.6": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "empty": b"",
}


@pytest.mark.parametrize("raw", ARCHIVES.values(), ids=ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_torch_save_does_not_write_is_refused(raw: bytes):
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(raw))


def repeat_directory(raw: bytes, count: int) -> bytes:
    """Let a zip's central directory stand there `count` times."""
    start = raw.index(b"PK\x01\x02")
    directory = raw[start:-22] * count
    return raw[:start] + directory + raw[-22:-10] + struct.pack("<IIH", len(directory), start, 0)


def test_millions_of_entries_are_refused_before_they_are_listed():
    raw = zip_of(WHOLE)
    assert len(zipfile.ZipFile(io.BytesIO(repeat_directory(raw, 5))).infolist()) == 10
    file = io.BytesIO(repeat_directory(raw, 1_000_000))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"directory has \d{3},000,000 bytes; expected at most 2,097,152"):
        read_table(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def change_directory(raw: bytes, index: int, field: int, value: bytes) -> bytes:
    """Overwrite a field of one of the entries of a zip's central directory."""
    position = raw.index(b"PK\x01\x02")
    for _ in range(index):
        position = raw.index(b"PK\x01\x02", position + 1)
    return raw[: position + field] + value + raw[position + field + len(value) :]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (8, b"\x01\x00"),  # encrypted
        (10, b"\x08\x00"),  # deflated
        (20, struct.pack("<II", 2**31, 2**31)),  # reaches behind the end
        (20, struct.pack("<II", 63, 64)),  # its two sizes differ
        (42, struct.pack("<I", 0)),  # lies on data.pkl
        (42, struct.pack("<I", 2**31)),  # begins behind the end
        (42, struct.pack("<I", 1)),  # begins where no entry does
    ],
)
def test_an_entry_that_is_not_where_the_directory_says_is_refused(field: int, value: bytes):
    with pytest.raises(CheckpointError):
        read_table(io.BytesIO(change_directory(zip_of(WHOLE), 1, field, value)))


def test_the_format_before_1_6_is_refused_in_words(tmp_path: Path):
    path = tmp_path / "consolidated.00.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        Shard.open(path)


def small_pth() -> bytes:
    written = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.nn.Parameter(torch.ones(2, 2).bfloat16().T)}, written)
    return written.getvalue()


def test_a_file_cut_short_anywhere_is_refused():
    raw = small_pth()
    for length in range(0, len(raw), 7):
        with pytest.raises(CheckpointError):
            read_table(io.BytesIO(raw[:length]))


# The process that reads them

PROBE = """
import json, os, socket
from puna.formats.checkpoint.meta.child import confine_self
confine_self()
told = {"environment": dict(os.environ)}
def attempt(name, function):
    try:
        function(); told[name] = "possible"
    except OSError as error:
        told[name] = type(error).__name__
path, port = os.fdopen(0).read().split()
attempt("connect", lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=5))
def write():
    with open(path, "w") as file:
        file.write("x")
attempt("write", write)
attempt("read", lambda: open(path).read())
print(json.dumps(told))
"""


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def probe(tmp_path: Path) -> dict[str, Any]:
    """What a program can do in the confinement that is chosen now."""
    question, target = tmp_path / "question", tmp_path / "target"
    target.write_text("kept")
    with listening() as port:
        socket.create_connection(("127.0.0.1", port)).close()
        question.write_text(f"{target} {port}")
        with question.open("rb") as file:
            return json.loads(run_confined(PROBE, file, max_bytes=10_000))


@pytest.mark.skipif(not confinement().command, reason="this machine has neither bubblewrap nor namespaces")
def test_the_child_has_no_network_no_environment_and_writes_nothing(tmp_path: Path):
    told = probe(tmp_path)
    assert told["connect"] in ("ConnectionRefusedError", "OSError")
    assert told["write"] in ("FileNotFoundError", "OSError")
    assert not told["environment"].keys() - {"LC_CTYPE", "PWD"}
    if confinement().name == "bubblewrap":
        assert (tmp_path / "target").read_text() == "kept"
        assert told["read"] == "FileNotFoundError"


def test_without_bubblewrap_a_weaker_confinement_is_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    choose = confinement.__wrapped__
    monkeypatch.setattr(confine, "which", lambda name: None)
    assert choose().name == "limits only, neither sandbox nor network namespace"
    monkeypatch.undo()
    found = confine.which
    monkeypatch.setattr(confine, "which", lambda name: None if name == "bwrap" else found(name))
    weaker = choose()
    if weaker.name == "own network namespace, no sandbox":
        monkeypatch.setattr(confine, "confinement", lambda: weaker)
        told = probe(tmp_path)
        assert told["connect"] == "OSError"
        assert told["write"] == "OSError"


def test_the_child_loads_neither_torch_nor_pickle(tmp_path: Path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        program = "import puna.formats.checkpoint.meta.child, sys; print(*sys.modules)"
        loaded = run_confined(program, file, max_bytes=100_000).decode().split()
    assert "zipfile" in loaded
    assert not {"torch", "numpy", "pickle", "_pickle", "pickletools"} & set(loaded)


@pytest.mark.parametrize("program", ["print('x' * 10**6)", "import time; time.sleep(60)", "1 / 0", "while True: pass"])
def test_a_child_that_says_too_much_or_never_ends_or_fails_is_an_error(tmp_path: Path, program: str):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file, pytest.raises(CheckpointError, match="ended with status"):
        run_confined(program, file, max_bytes=1000, max_seconds=1.0)


def answer(**changes: Any) -> bytes:
    entry = {"dtype": "float32", "shape": [2, 2], "stride": [2, 1], "start": 0} | changes
    return json.dumps({"tensors": {"w": entry}}).encode()


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"[]",
        b"{}",
        b'{"tensors": []}',
        b'{"tensors": {"w": 1}}',
        b'{"tensors": {"w": {}, "w": {}}}',
        b'{"error": 1}',
        b"[" * 100_000,
        b"\xff",
        answer(start=-1),
        answer(start=10**30),
        answer(start=1.0),
        answer(start=True),
        answer(start=85),
        answer(shape=[2]),
        answer(shape=[2, -2]),
        answer(shape=[0, 2]),
        answer(shape=[6, 6]),
        answer(shape=[10**9, 2], stride=[0, 0]),
        answer(stride=[10**9, 1]),
        answer(stride=[-2, 1]),
        answer(stride="ab"),
        answer(shape=[1] * 100, stride=[1] * 100),
        answer(dtype="float8"),
        answer(dtype=["float32"]),
    ],
)
def test_an_answer_of_a_hostile_child_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bytes):
    monkeypatch.setattr(shard, "run_confined", lambda *_, **__: told)
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth"):
        Shard.open(path)


# Memory


class PrivateMemory(threading.Thread):
    """The greatest private memory of this process while it runs, in bytes over what it was."""

    def __init__(self):
        super().__init__()
        self.done, self.before, self.peak = threading.Event(), self.now(), 0

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    def run(self) -> None:
        while not self.done.wait(0.001):
            self.peak = max(self.peak, self.now() - self.before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_large_model_is_read_with_two_tensors_in_memory(tmp_path: Path):
    config = replace(SMALL, dim=1024, hidden_dim=8192, head_dim=64, vocab_size=8192)
    params = PARAMS | {"dim": 1024, "vocab_size": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 3.0}
    zeros = {name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()}
    save_shards(tmp_path, as_meta(zeros, config), 2)
    (tmp_path / "params.json").write_text(json.dumps(params))
    num_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.pth"))
    assert num_bytes > 200e6
    source = open_meta(tmp_path).source
    assert not source.config.tie_embeddings or source.config == replace(config, tie_embeddings=True)
    memory = PrivateMemory()
    memory.start()
    largest = 0
    for name in tensor_shapes(source.config):
        largest = max(largest, source.read(name).nbytes)
    memory.done.set()
    memory.join()
    assert 0 < memory.peak < 2 * largest + 64 * 2**20 < num_bytes
