"""docs/start/afternoon.md works as printed: its commands run on small data; its commands and the README's parse."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.cli import _pairs, build_app
from puna.pipeline.execution.recipe import Recipe, override
from puna.pipeline.execution.walk import configs_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "start" / "afternoon.md"
BIN = Path(sys.executable).parent
PATHS = re.compile(r"(?<![\w./~-])(?:recipes|docs|tests|benchmarks|src)/[\w./-]*\w")
LINKS = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# The same steps on a tenth of the text. A student that learned so little is no measure of what 4 bits cost.
SMALL = (
    "--merge.num_tokens 512 --prune.num_tokens 512 --prune.calibration_tokens 1024 --quantize.num_tokens 512 "
    "--quantize.calibration_tokens 1024 --evaluate.max_questions 12 --evaluate.max_tokens 24 "
    "--quantize.tolerance_kl 20 --quantize.min_agreement 0 --quantize.tolerance_perplexity 20"
)


def blocks(page: Path) -> Iterator[str]:
    """Yield the shell blocks of a page: indented lines below an empty one, of which the first is a command."""
    for block in re.findall(r"(?:\A|\n)\n((?: {4,}\S.*\n)+)", page.read_text(encoding="utf-8")):
        if re.match(r"\s+(puna|make|mkdir|git|pip) ", block):
            yield "\n".join(line.strip() for line in block.splitlines())


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `puna` command of a page, without comments."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words[:1] == ["puna"]:
                    yield words[1:]


COMMANDS = [
    pytest.param(words, id=" ".join(words)[:60]) for page in (PAGE, ROOT / "README.md") for words in commands(page)
]


def test_both_pages_have_commands():
    assert len(COMMANDS) > 12 and sum(words.values[0][0] == "raise" for words in COMMANDS) >= 4  # type: ignore[index]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_the_pages_parses(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    words = ["sft" if word == "STAGE" else word for word in words]
    _, bound, _ = build_app(words).parse_args(words, print_error=False, exit_on_error=False)
    if words[0] == "raise" and Path(words[1]).exists():
        recipe = override(Recipe.read(Path(words[1])), dict(_pairs(bound.arguments.get("settings", ()))))
        assert configs_of(recipe)


@pytest.mark.parametrize("flag", ["--dry-rum", "--untill"])
def test_a_flag_that_raise_does_not_have_would_be_noticed(flag: str):
    words = ["raise", "recipes/own_model.toml", flag, "x"]
    _, bound, _ = build_app(words).parse_args(words, print_error=False, exit_on_error=False)
    with pytest.raises(Exception, match=r"STEP\.KEY"):
        dict(_pairs(bound.arguments["settings"]))


@pytest.mark.parametrize(
    "page", [PAGE, ROOT / "README.md", ROOT / "docs" / "start" / "recipes.md"], ids=lambda page: page.name
)
def test_every_file_that_a_page_names_is_there(page: Path):
    text = page.read_text(encoding="utf-8")
    named = [ROOT / path for path in PATHS.findall(text) if not path.startswith("tests/test_x")]
    linked = [page.parent / target for target in LINKS.findall(text)]
    assert named and linked
    assert not [str(path) for path in (*named, *linked) if not path.exists()]


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
    (found,) = [block for block in blocks(PAGE) if text in block]
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
    lineage = shell.run(next(line for line in block_with("puna lineage").splitlines()))
    assert "mine/train" in lineage.replace("\n", "") and "recipes/teacher" in lineage.replace("\n", "")
    into_use(shell)
    assert "--grade" in shell.run(block_with("puna answer")) or "tasks" in shell.run(block_with("puna answer"))


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
