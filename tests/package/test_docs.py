"""The documentation agrees with the code: links, commands, Python blocks, lists."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import GENERATED, PAGES, RECORDS, ROOT, anchors, commands, links, name_of, python_blocks

from puna.cli import _pairs, build_app
from puna.pipeline.execution.recipe import Recipe, override
from puna.pipeline.execution.walk import configs_of
from puna.testing import tiny_checkpoint

COMMANDS = {
    tuple(words): page for page in PAGES if page not in RECORDS for words in commands(page) if "--help" not in words
}
# Pages whose Python blocks do not run in a test, and why.
NOT_RUN = {
    "docs/internals/engine.md": "needs a trained model with adapters",
    "docs/stages/reward.md": "needs a trained reward model",
    "docs/start/recipes.md": "runs the demo up to its plain student, which takes minutes",
    "docs/guides/serve.md": "needs a running server; examples/serve_and_call.py runs the same calls",
}
DEMO = Recipe.read(ROOT / "recipes" / "demo.toml")
WITH_PYTHON = [page for page in PAGES if python_blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    broken: list[str] = []
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if target in GENERATED:
            continue
        is_missing = not target.exists()
        if is_missing or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}" if anchor else path)
    assert not broken


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_the_pages_parses(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    arguments = ["sft" if word == "STAGE" else word for word in words if word != "--offline"]
    if arguments[1:3] == ["--config", "my.toml"]:  # a recipe of the reader's, which has the stage's table
        table = next(step.name for step in DEMO.steps if step.stage.verb == arguments[0])
        arguments[2:3] = ["recipes/demo.toml", "--table", table]
    _, bound, _ = build_app(arguments).parse_args(arguments, print_error=False, exit_on_error=False)
    if arguments[0] == "raise" and Path(arguments[1]).exists():
        recipe = override(Recipe.read(Path(arguments[1])), dict(_pairs(bound.arguments.get("settings", ()))))
        assert configs_of(recipe)


def test_pages_have_commands():
    verbs = {words[0] for words in COMMANDS}
    assert len(COMMANDS) > 60 and len(verbs) >= 20


@pytest.mark.tenth
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_compile_and_run(page: Path, tmp_path: Path):
    program = "\n".join(python_blocks(page))
    if name_of(page) in NOT_RUN:
        nodes = [node for node in ast.parse(program).body if isinstance(node, ast.Import | ast.ImportFrom)]
        program = "\n".join(map(ast.unparse, nodes))
    tiny_checkpoint.save(tmp_path / "runs" / "student")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "page.py").write_text(program)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_pages_without_a_run_have_python_blocks():
    assert set(NOT_RUN) <= set(map(name_of, WITH_PYTHON))


def test_the_navigation_lists_every_page_once():
    def files(entries: list[dict[str, object]]) -> list[str]:
        listed: list[str] = []
        for entry in entries:
            for target in entry.values():
                listed += files(target) if isinstance(target, list) else [str(target)]
        return listed

    listed = files(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    pages = {name_of(page).removeprefix("docs/") for page in (ROOT / "docs").rglob("*.md")} | {
        name_of(page).removeprefix("docs/") for page in GENERATED
    }
    moved = {f"internals/{name}.md" for name in ("contributing", "changelog", "security", "findings")}
    assert sorted(listed) == sorted(pages | moved)


def test_the_architecture_page_is_current():
    program = "import generate; print(generate.architecture(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "docs", capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "internals" / "architecture.md").read_text()
    assert page == done.stdout, "run `python docs/generate.py`"


def test_the_readme_fits_on_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pictures_load_nothing():
    pictures = [*(ROOT / "docs").rglob("*.svg")]
    assert pictures
    for picture in pictures:
        text = picture.read_text().replace("http://www.w3.org/", "")
        assert not re.search(r"https?://|@import|@font-face|<script|<image", text), picture


def test_findings_are_listed():
    listed = re.findall(r"^\| `(\w+\.sh)` \|", (ROOT / "findings" / "README.md").read_text(), flags=re.MULTILINE)
    assert listed == sorted(path.name for path in (ROOT / "findings").glob("*.sh"))


def test_paths_named_for_contributors_exist():
    named = re.findall(
        r"`((?:src|tests|docs|recipes|examples|benchmarks)/[\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    examples_of_names = {"verb", "name", "test_verb"}
    paths = [path for path in named if Path(path).stem not in examples_of_names]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_glossary_is_alphabetic():
    words = re.findall(
        r"^\| ([^|]+?) \|", (ROOT / "docs" / "reference" / "glossary.md").read_text(), flags=re.MULTILINE
    )[2:]
    assert len(words) > 40
    assert words == sorted(words, key=str.lower)


def test_the_citation_file_has_the_required_keys():
    """Required keys and types of the Citation File Format 1.2.0; the file uses plain keys and lists only."""
    text = (ROOT / "CITATION.cff").read_text()
    keys = dict(re.findall(r"^([\w-]+): ?(.*)$", text, flags=re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= set(keys)
    assert keys["cff-version"] == "1.2.0" and keys["type"] == "software" and keys["license"] == "Apache-2.0"
    assert keys["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
