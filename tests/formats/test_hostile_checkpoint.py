"""Mutated checkpoint files: each loads or is refused within a second, in little memory, and opens nothing elsewhere."""

import random
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import PunaError
from puna.testing.tiny_checkpoint import CONFIG, INDEX, WEIGHTS, save, save_quantized

NUM_WEIGHTS, NUM_OTHERS = 200_000, 20_000
SHARES = [0.01, pytest.param(0.1, marks=pytest.mark.tenth), pytest.param(1.0, marks=pytest.mark.slow)]
EXTRA_BYTES = 64 * 2**20
JSON_FILES = (CONFIG, "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json")
# What means something in JSON and in these files, put in the place of something else.
PIECES = tuple(
    piece.encode()
    for piece in (
        *'{}[]",:-0', "1e999", "NaN", "null", "true", "-1", "9" * 30, "2147483648", "[" * 2000, "../../etc/passwd",
        "/etc/hostname", '"auto_map": {"AutoModel": "evil.py"},', "F32", "BF16", "I64", "data_offsets", "shape",
        "pack-quantized", '"symmetric": false', '"group_size": 0', '["re:(a*)*b"]', "model.norm.weight",
        "\u0000", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    )
)  # fmt: skip

opened: set[str] = set()
is_watching = False


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and is_watching:
        opened.add(str(arguments[0]))


sys.addaudithook(note_opened)


def mutate(whole: bytes, reach: int, chance: random.Random) -> bytes:
    """Damage one to three places of a file, mostly in its first `reach` bytes."""
    raw = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(max(1, reach if chance.random() < 0.9 else len(raw))) % max(1, len(raw))
        match chance.choice(("bit", "byte", "piece", "piece", "digit", "delete", "cut", "length")):
            case "bit" if raw:
                raw[at] ^= 1 << chance.randrange(8)
            case "byte" if raw:
                raw[at] = chance.randrange(256)
            case "piece":
                raw[at : at + chance.choice((0, 1, 5))] = chance.choice(PIECES)
            case "digit":
                digits = [place for place in range(at, min(at + 60, len(raw))) if 48 <= raw[place] < 58]
                for place in digits[:1]:
                    raw[place] = chance.choice(b"0123456789-e.")
            case "delete":
                del raw[at : at + chance.choice((1, 4, 40))]
            case "cut" if chance.random() < 0.3:
                del raw[chance.randrange(len(raw) + 1) :]
            case "length" if len(raw) >= 8:
                old = struct.unpack_from("<Q", raw)[0]
                new = chance.choice((0, 1, old + 1, old - 1, 2 * old, len(raw) - 8, 10**8, 2**31, 2**63, 2**64 - 1))
                struct.pack_into("<Q", raw, 0, new % 2**64)
            case _:
                continue
    return bytes(raw)


def load_all(directory: Path, *, has_tokenizer: bool) -> None:
    global is_watching
    is_watching = True
    try:
        checkpoint = Checkpoint.open(directory)
        checkpoint.load(torch.float32)
        if has_tokenizer:
            checkpoint.tokenizer()
    finally:
        is_watching = False


def assault(directory: Path, names: tuple[str, ...], count: int, *, reach: int | None = None) -> int:
    """Load a checkpoint `count` times with one file mutated each time; return how many times it was refused."""
    wholes = {name: (directory / name).read_bytes() for name in names}
    chance = random.Random(0)
    refused = 0
    slowest = 0.0
    opened.clear()
    has_tokenizer = names != (WEIGHTS,)  # mutated weights leave it as it is
    load_all(directory, has_tokenizer=has_tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(count):
        name = names[number % len(names)]
        whole = wholes[name]
        damaged = mutate(whole, reach or len(whole), chance)
        # NOTE: another file under the same name: the mapping of the one before may still be alive.
        (directory / "new").write_bytes(damaged)
        (directory / "new").replace(directory / name)
        start = time.process_time()  # the cores are shared with other work
        try:
            load_all(directory, has_tokenizer=has_tokenizer)
        except PunaError as error:
            refused += 1
            assert str(error).encode(), name
        slowest = max(slowest, time.process_time() - start)
        (directory / "new").write_bytes(whole)
        (directory / "new").replace(directory / name)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert slowest < 1.0, f"{slowest:.2f} s"
    assert grown <= max(map(len, wholes.values())) + EXTRA_BYTES, f"{grown / 2**20:.0f} MiB"
    elsewhere = {path for path in opened if not path.startswith((str(directory), sys.prefix, sys.base_prefix))}
    assert not {path for path in elsewhere if path.startswith(("/", ".."))}, elsewhere
    return refused


def header_len(path: Path) -> int:
    return 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]


def assault_quantized(tmp_path: Path, count: int) -> None:
    save_quantized(tmp_path, scheme=Scheme("int", 4, 16))
    shards = tuple(path.name for path in sorted(tmp_path.glob("*.safetensors")))
    reach = max(header_len(tmp_path / name) for name in shards)
    refused = assault(tmp_path, (CONFIG, CONFIG, *shards), count, reach=reach)
    assert 0.4 * count < refused < count


def assault_weights(tmp_path: Path, count: int) -> None:
    save(tmp_path)
    refused = assault(tmp_path, (WEIGHTS,), count, reach=header_len(tmp_path / WEIGHTS))
    assert 0.5 * count < refused < count


def assault_others(tmp_path: Path, count: int) -> None:
    save(tmp_path, shard_bytes=60_000)
    refused = assault(tmp_path, JSON_FILES, count)
    assert 0.3 * count < refused < count


@pytest.mark.parametrize("share", SHARES)
def test_mutated_weights_load_or_are_refused(tmp_path: Path, share: float):
    assault_weights(tmp_path, round(share * NUM_WEIGHTS))


@pytest.mark.parametrize("share", SHARES)
def test_mutated_configs_indices_and_tokenizers_load_or_are_refused(tmp_path: Path, share: float):
    assault_others(tmp_path, round(share * NUM_OTHERS))


@pytest.mark.parametrize("share", SHARES)
def test_mutated_quantized_weights_and_their_configs_load_or_are_refused(tmp_path: Path, share: float):
    assault_quantized(tmp_path, round(share * NUM_OTHERS))
