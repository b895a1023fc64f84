"""docs/start/afternoon.md works as printed: its commands run on small data; what its commands print."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from pages import ROOT, shell_blocks
from test_examples import free_port

from puna.cli import _pairs, build_app

PAGE = ROOT / "docs" / "start" / "afternoon.md"
BIN = Path(sys.executable).parent
# The same steps on a tenth of the text. A student that learned so little is no measure of what 4 bits cost.
SMALL = (
    "--merge.num_tokens 512 --prune.num_tokens 512 --prune.calibration_tokens 1024 --quantize.num_tokens 512 "
    "--quantize.calibration_tokens 1024 --evaluate.max_questions 12 --evaluate.max_tokens 24 "
    "--quantize.tolerance_kl 20 --quantize.min_agreement 0 --quantize.tolerance_perplexity 20"
)


@pytest.mark.parametrize("flag", ["--dry-rum", "--untill"])
def test_a_flag_that_raise_does_not_have_would_be_noticed(flag: str):
    words = ["raise", "recipes/own_model.toml", flag, "x"]
    _, bound, _ = build_app(words).parse_args(words, print_error=False, exit_on_error=False)
    with pytest.raises(Exception, match=r"STEP\.KEY"):
        dict(_pairs(bound.arguments["settings"]))


class Shell:
    """Runs lines of the page in a folder that holds the recipes and nothing else."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "recipes").symlink_to(ROOT / "recipes")
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(self, line: str, *, status: int | None = 0) -> str:
        done = subprocess.run(
            ["bash", "-ec", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert status is None or done.returncode == status, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


def block_with(text: str) -> str:
    (found,) = [block for block in shell_blocks(PAGE) if text in block]
    return found


@pytest.mark.tenth
def test_the_page_works_as_printed_on_a_tenth_of_the_data(tmp_path: Path):
    shell = Shell(tmp_path)
    # `make demo` in small: the steps of its recipe that the page reads.
    sizes = "--synthesize.practice.num_worlds 8 --synthesize.held_out.num_worlds 4"
    shell.run(f"puna raise recipes/demo.toml --until synthesize.practice {sizes}")
    first, *rest = block_with("make demo").splitlines()
    assert first == "make demo && . .venv/bin/activate"
    ending = shell.run("\n".join(rest) + f" {SMALL}", status=None)
    assert (
        re.search(r"Step (\d+) of \1: release", ending)
        and (tmp_path / "build/own_model/release/decision.html").is_file()
    )
    assert ("NO-GO" in ending) != (tmp_path / "build/own_model/release/model.safetensors").exists()

    look_before(shell, " ".join(" ".join(rest).replace("\\", "").split("mine/held_out ")[-1:]))
    lineage = shell.run(block_with("puna lineage").splitlines()[0])
    assert "mine/train" in lineage.replace("\n", "") and "recipes/teacher" in lineage.replace("\n", "")
    into_use(shell)
    assert "--judge" in shell.run(block_with("puna answer"))


def look_before(shell: Shell, flags: str) -> None:
    """Run the page's second section with the data of the first: everything is there already."""
    names = {"MODEL": "recipes/teacher", "TRAIN": "mine/train", "HELD_OUT": "mine/held_out"}
    told: list[str] = []
    for block in (block_with("--dry-run"), block_with("--until")):
        for line in block.splitlines():
            for name, value in names.items():
                line = re.sub(rf"\b{name}\b", value, line)
            told.append(shell.run(f"{line} {flags} {SMALL}" if " raise " in f" {line}" else line, status=None))
    assert "there already" in told[0] and "nothing is run" in told[0]
    assert "Step 3 of 3: import, there already" in told[1]
    assert "⟦" in told[2] and "nothing was trained" in told[2]


def into_use(shell: Shell) -> None:
    """Run the page's fifth section; after a NO-GO with the demo's teacher, which is a release that passed its gate."""
    promote, keys, serve, rollback = block_with("puna promote").splitlines()
    if not (shell.folder / "build/own_model/release/model.safetensors").exists():
        assert "build/own_model/release" in shell.run(promote, status=1)
        promote = promote.replace("build/own_model/release", "recipes/teacher")
    assert "is in use" in shell.run(promote)
    shell.run(keys)
    assert "puna: " in shell.run(rollback, status=1), "there is no release before the first"
    port = free_port()
    words = [*shlex.split(serve, comments=True), "--port", str(port)]
    with (shell.folder / "serve.log").open("w") as log:
        server = subprocess.Popen(words, cwd=shell.folder, env=shell.environment, stdout=log, stderr=log)
        try:
            assert models(port, (shell.folder / "keys.txt").read_text().strip())
        finally:
            server.terminate()
            server.wait(30)


def models(port: int, key: str) -> list[str]:
    """Ask the server for its models as soon as it answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {key}"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return [model["id"] for model in json.load(reply)["data"]]
        except OSError:
            time.sleep(0.5)
    return []
