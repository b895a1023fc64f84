"""A full disk, a limit, a read-only folder: every stage names the file and says what to do, and nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_adapter import trained

from puna.pipeline.artifacts import artifact
from puna.pipeline.registry.registry import is_registry, promote
from puna.pipeline.run import Run
from puna.pipeline.storage.faults import WRITE_FAULTS, explain, naming_newest
from puna.testing.tiny_checkpoint import save

Perform = Callable[..., bool]
LIMITED = """
import json, resource, sys
from puna.cli import main
limit, flags = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = ["puna", *flags]
main()
"""


@pytest.mark.parametrize("number", sorted(WRITE_FAULTS))
def test_a_write_that_fails_is_told_with_the_file_and_what_to_do(number: int):
    told = explain(OSError(number, os.strerror(number), "out/scores.json"))
    assert told.startswith(f"out/scores.json cannot be written: {os.strerror(number)}. ")
    assert told.endswith("the same command resumes where this one stopped")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied. Change the permissions"),
        (
            OSError(errno.EMFILE, "Too many open files", "a.json"),
            "a.json: Too many open files. Raise the limit",
        ),
        (OSError(errno.ENFILE, "Too many open files in system"), "a file: Too many open files in system. Close other"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file or the terminal cannot be written: No space left"),
        (OSError(errno.ENOSPC, "No space left", "from", None, "to"), "to cannot be written: No space left. Free space"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.toml"), "a.toml: No such file or directory"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "No usable temporary"),
        (OSError("not from the system"), "not from the system"),
    ],
)
def test_other_faults_are_told_with_the_file(error: OSError, told: str):
    assert explain(error).startswith(told)


def test_a_failed_write_without_a_name_gets_that_of_the_file_being_written(tmp_path: Path):
    (tmp_path / "old").write_text("whole")
    os.utime(tmp_path / "old", (0, 0))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "new").write_text("half")
    with pytest.raises(OSError, match=r"No space left.*deep/new"), naming_newest(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"'a\.json'"), naming_newest(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "a.json")
    with pytest.raises(OSError, match=r"^no number$"), naming_newest(tmp_path):
        raise OSError("no number")


def test_log_and_metrics_name_themselves(tmp_path: Path):
    from rich.console import Console

    run = Run("sft", "key", tmp_path, tmp_path, Console(quiet=True))
    os.symlink("/dev/full", tmp_path / "log.txt")
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"No space left on device: '.*log\.txt'"):
        run.log("a line")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        run.metrics(1, loss=1.0)


@pytest.fixture(scope="module")
def commands(
    perform_stage: Perform,
    checkpoint_path: Path,
    dataset_path: Path,
    tokenizer_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str]]:
    """Verb -> flags of a stage that takes a moment."""
    room = tmp_path_factory.mktemp("inputs")
    data, model = str(dataset_path), str(checkpoint_path)
    (room / "base").mkdir()
    save(room / "base")
    trained(room / "base", room / "adapter", target_modules="all-linear")
    (room / "talks").mkdir()
    shutil.copy(dataset_path / "conversations.jsonl", room / "talks")
    settings = {"checkpoint": model, "data": [data], "num_tokens": 32, "tolerance_kl": 99.0, "min_agreement": 0.0}
    perform_stage("quantize", room / "small", **settings)
    start = ["--data", data, "--init-from", model, "--steps", "2", "--batch-tokens", "512", "--max-length", "256"]
    measured = ["--num-tokens", "32", "--tolerance-kl", "99", "--min-agreement", "0"]
    return {
        "ingest": ["--source", data, "--format", "records"],
        "synthesize": ["--num-worlds", "3"],
        "tokenizer": ["--data", data, "--vocab-size", "560"],
        "sft": start,
        "pretrain": start,
        "label": ["--data", data, "--teacher", model, "--top-k", "4"],
        "distill": [*start, "--teacher", model],
        "answer": ["--questions", data, "--checkpoint", model, "--max-tokens", "8"],
        "evaluate": ["--checkpoints.a", model, "--tasks", data, "--max-tokens", "4"],
        "quantize": ["--checkpoint", model, "--data", data, *measured],
        "prune": [
            "--checkpoint",
            model,
            "--data",
            data,
            "--calibration",
            str(room / "talks"),
            "--size.hidden-dim",
            "16",
        ],
        "merge": ["--adapter", str(room / "adapter"), "--base", str(room / "base"), *measured],
        "export": ["--checkpoint", model, "--format", "gguf", "--kind", "F16", "--num-tokens", "32"],
        "import": ["--source", model],
        "release": ["--checkpoint", str(room / "small"), "--name", "Tiny"],
    }


def limited(limit: int, flags: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where no file may grow beyond `limit` bytes."""
    command, told = [sys.executable, "-c", LIMITED], json.dumps([limit, flags])
    return subprocess.run(command, input=told, capture_output=True, text=True, cwd=folder, timeout=200)


FAST = ("ingest",)
OTHERS = (
    "synthesize",
    *("tokenizer", "sft", "pretrain", "label", "distill", "answer", "evaluate", "quantize", "prune", "merge", "export"),
    *("import", "release"),
)


@pytest.mark.parametrize(
    ("verb", "limits"),
    [
        *((verb, (100,)) for verb in FAST),
        *(pytest.param(verb, (700,), marks=pytest.mark.tenth) for verb in OTHERS),
        *(pytest.param(v, (100, 3000, 20_000), marks=pytest.mark.slow) for v in (*FAST, *OTHERS)),
    ],
)
def test_where_no_file_may_grow_a_stage_names_the_one_that_would(
    verb: str, limits: tuple[int, ...], commands: dict[str, list[str]], tmp_path: Path
):
    for limit in limits:
        folder = tmp_path / str(limit)
        folder.mkdir()
        done = limited(limit, [verb, *commands[verb], "--out", str(folder / "out")], folder)
        if done.returncode == 0:
            assert artifact.verify(folder / "out") and limit >= 700
            continue
        assert done.returncode == 1 and "Traceback" not in done.stderr, (limit, done.stderr)
        if "File too large" not in done.stderr:
            assert limit >= 700 and done.stderr.startswith("puna: "), (limit, done.stderr)
            continue
        assert str(folder) in done.stderr, (limit, done.stderr)
        assert not (folder / "out").exists()


def test_a_registry_on_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with artifact.writing(tmp_path / "release") as partial:
        (partial / "weights").write_text("a")
        artifact.Receipt("gate", "a", 0, 0, True).save(partial)
        artifact.commit(partial, tmp_path / "release", artifact.Manifest("release", "release", "key", {}, {}, {}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*registry.*/(weights|gate\.json)'"):
        promote(tmp_path / "release", tmp_path / "registry")
    assert not is_registry(tmp_path / "registry")
