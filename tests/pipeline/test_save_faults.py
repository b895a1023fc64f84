"""Killed, out of room or failing at any point of a save: what was acknowledged before is there, and nothing partial."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from puna.agents.command import chat
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest
from puna.pipeline.errors import ArtifactError, PunaError
from puna.serving.serve import open_served
from puna.training.loop.state import TrainState, load_state, save_state

CONFIG = LlamaConfig(
    dim=8,
    hidden_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=40,
    max_context=16,
    tie_embeddings=True,
)
NUM_SAVES = 4  # the last ones drop states before them
ENDLESS = 10_000
CALLS = ("write", "fsync", "rename", "renameat", "renameat2", "mkdir", "unlink", "unlinkat", "rmdir")
ERRORS = [("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("renameat2", "EIO"), ("mkdir", "ENOSPC")]
NUM_RANDOM_KILLS = 200
SHARES = [0.1, pytest.param(1.0, marks=pytest.mark.slow)]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

Save = Callable[[Path, int], str]
Found = Callable[[Path], tuple[int, str]]


# Two things that are saved, and what must be found of them afterwards


def network(value: float = 0.0) -> tuple[Llama, torch.optim.Optimizer]:
    """A network whose every weight is `value`, and an optimizer that has moments for it."""
    model = Llama(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return model, optimizer


def save_training(directory: Path, step: int) -> str:
    save_state(directory, *network(step), TrainState(step=step), "key")
    return artifact.content_hash(directory / f"step-{step:08d}")


def found_training(directory: Path) -> tuple[int, str]:
    model, optimizer = network()
    passed_over: list[str] = []
    step = load_state(directory, model, optimizer, passed_over.append, "key").step
    assert not passed_over, "a partial state stood under a state's name"
    assert all(bool((parameter == step).all()) for parameter in model.parameters())
    return step, artifact.content_hash(directory / f"step-{step:08d}") if step else ""


def save_artifact(directory: Path, step: int) -> str:
    with artifact.writing(directory / "out") as partial:
        (partial / "weights").write_bytes(bytes([step % 256]) * 100_000)
        (partial / "deep").mkdir()
        (partial / "deep" / "about").write_text(str(step))
        artifact.commit(partial, directory / "out", Manifest("dataset", "stage", f"key {step}", {}, {}, {}))
    return artifact.content_hash(directory / "out")


def found_artifact(directory: Path) -> tuple[int, str]:
    path = directory / "out"
    if not path.exists():
        return 0, ""
    manifest = artifact.verify(path)
    step = int((path / "deep" / "about").read_text())
    assert (path / "weights").read_bytes() == bytes([step % 256]) * 100_000
    return step, manifest.content_hash


KINDS = {"training state": (save_training, found_training), "artifact": (save_artifact, found_artifact)}


# A process that saves, and what is done to it


class Saving:
    """A forked process that saves again and again once told to; `acknowledged` is what it said it had saved."""

    def __init__(self, save: Save, directory: Path, num_saves: int = NUM_SAVES):
        directory.mkdir()
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._save_all(save, directory, writing, num_saves)
        os.close(writing)
        self._reading = reading
        os.waitpid(self.pid, os.WUNTRACED)

    def _save_all(self, save: Save, directory: Path, writing: int, num_saves: int) -> None:
        try:
            os.kill(os.getpid(), signal.SIGSTOP)
            for step in range(1, num_saves + 1):
                content_hash = save(directory, step)
                os.write(writing, f"{step} {content_hash}\n".encode())
            os._exit(0)
        except (OSError, PunaError):  # what the command line shows as one line
            os._exit(1)
        finally:
            os._exit(2)

    def go(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> tuple[int, dict[int, str]]:
        """Wait for its end; return its status (negative: the signal) and what it acknowledged."""
        with os.fdopen(self._reading) as pipe:
            lines = [line.split() for line in pipe if line.endswith("\n")]
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), {int(step): content_hash for step, content_hash in lines}


def traced(save: Save, directory: Path, *flags: str) -> tuple[int, dict[int, str]]:
    """Run a Saving under strace with these flags."""
    saving = Saving(save, directory)
    tracer = subprocess.Popen(["strace", "-qq", *flags, "-p", str(saving.pid)], stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{saving.pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        assert tracer.poll() is None, "strace may not attach to a process here"
        time.sleep(0.001)
    saving.go()
    ended = saving.end()
    tracer.wait()
    return ended


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Save, Found]:
    save, found = KINDS[request.param]
    save(tmp_path / "first", 1)  # whatever is imported at the first save is there before a process is forked
    return save, found


def points(save: Save, directory: Path) -> Iterator[tuple[str, int]]:
    """Yield each call of a run without faults, as (its name, its number among those of the name)."""
    log = directory / "calls"
    status, acknowledged = traced(save, directory / "whole", "-o", str(log), "-e", f"trace={','.join(CALLS)}")
    assert status == 0 and len(acknowledged) == NUM_SAVES
    counted: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        name = line.partition("(")[0]
        if name in CALLS:
            counted[name] += 1
            yield name, counted[name]


def hold(directory: Path, found: Found, acknowledged: dict[int, str]) -> None:
    """Assert that the newest acknowledged save, or the one under way after it, is found whole."""
    newest = max(acknowledged, default=0)
    step, content_hash = found(directory)
    assert newest <= step <= newest + 1, f"{step} is there after {newest} was acknowledged"
    assert step != newest or content_hash == acknowledged.get(newest, "")


@needs_strace
@pytest.mark.parametrize("share", SHARES)
def test_killed_at_any_call_it_has_what_was_acknowledged(kind: tuple[Save, Found], tmp_path: Path, share: float):
    save, found = kind
    every = list(points(save, tmp_path))
    assert {"write", "fsync"} < {name for name, _ in every} and len(every) > 15 * NUM_SAVES
    for number, (name, count) in enumerate(every[:: round(1 / share)]):
        directory = tmp_path / str(number)
        status, acknowledged = traced(
            save, directory, "-o", os.devnull, "-e", f"inject={name}:signal=KILL:when={count}"
        )
        assert status == -signal.SIGKILL, (name, count)
        hold(directory, found, acknowledged)
        assert save(directory, NUM_SAVES + 1) and found(directory)[0] == NUM_SAVES + 1, "it goes on after the kill"


@needs_strace
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("call", "error"), ERRORS)
def test_a_disk_that_fails_or_is_full_costs_nothing_that_was_acknowledged(
    kind: tuple[Save, Found], tmp_path: Path, call: str, error: str, share: float
):
    save, found = kind
    counts = [count for name, count in points(save, tmp_path) if name == call]
    for count in counts[:: round(1 / share)]:
        directory = tmp_path / str(count)
        status, acknowledged = traced(
            save, directory, "-o", os.devnull, "-e", f"inject={call}:error={error}:when={count}+"
        )
        # NOTE: a disk that cannot exchange two names is served by two renames, so that error is none.
        assert status == (0 if call == "renameat2" else 1), (count, status)
        hold(directory, found, acknowledged)


@pytest.mark.parametrize("share", SHARES)
def test_killed_at_any_moment_it_has_what_was_acknowledged(kind: tuple[Save, Found], tmp_path: Path, share: float):
    save, found = kind
    chance = random.Random(0)
    start = time.perf_counter()
    whole = Saving(save, tmp_path / "whole")
    whole.go()
    assert whole.end()[0] == 0
    seconds = time.perf_counter() - start
    for number in range(round(NUM_RANDOM_KILLS * share)):
        directory = tmp_path / str(number)
        saving = Saving(save, directory, ENDLESS)
        saving.go()
        time.sleep(chance.uniform(0, seconds))
        os.kill(saving.pid, signal.SIGKILL)
        status, acknowledged = saving.end()
        assert status == -signal.SIGKILL
        hold(directory, found, acknowledged)


def test_every_file_is_on_the_disk_before_its_directory_gets_its_name(
    kind: tuple[Save, Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, _ = kind
    synced: list[int] = []
    sync, replace_directory = os.fsync, artifact.replace_directory

    def watched_sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def watched_replace(new: Path, path: Path) -> None:
        unsynced = [each for each in (new, *new.rglob("*")) if each.stat().st_ino not in synced]
        assert not unsynced
        synced.clear()
        replace_directory(new, path)
        assert path.parent.stat().st_ino in synced

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(artifact, "replace_directory", watched_replace)
    for step in (1, 2):
        save(tmp_path, step)


def test_one_bit_flipped_in_a_stored_tensor_is_found_and_its_file_named(
    checkpoint_path: Path, dataset_path: Path, tmp_path: Path, perform_stage: Callable[..., bool]
):
    path = tmp_path / "model"
    with artifact.writing(path) as partial:
        shutil.copytree(checkpoint_path, partial, dirs_exist_ok=True)
        artifact.commit(partial, path, Manifest("checkpoint", "sft", "key", {}, {}, {}))
    file = path / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    for _ in range(100):
        raw = bytearray(whole)
        raw[chance.randrange(header, len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"model\.safetensors was altered"):
            perform_stage("quantize", tmp_path / "quantized", checkpoint=path, data=[dataset_path])
        for load in (open_served, chat):
            with pytest.raises(ArtifactError, match=r"model\.safetensors was altered"):
                load(path)
    assert not (tmp_path / "quantized").exists()
    file.write_bytes(whole)
    assert perform_stage("quantize", tmp_path / "quantized", checkpoint=path, data=[dataset_path])
