"""From an artifact back to the raw files, with what has changed or gone since."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest
from puna.pipeline.artifacts.lineage import print_lineage, trace
from puna.pipeline.errors import ArtifactError

WORDS = "We open at nine and we close at six."


@pytest.fixture
def tokenizer(tmp_path: Path, perform_stage: Any) -> Path:
    """A tokenizer made from an artifact, from one file of another artifact, and from a raw folder."""
    for name in ("pages", "letters"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "one.md").write_text(WORDS * 2)
        perform_stage(
            "ingest", tmp_path / "made" / name, source=str(tmp_path / "raw" / name), licence=f"terms of {name}"
        )
    shutil.copytree(tmp_path / "made" / "pages", tmp_path / "raw" / "plain", ignore=lambda *_: ["manifest.json"])
    data = [tmp_path / "made" / "pages", tmp_path / "made" / "letters" / "documents.jsonl", tmp_path / "raw" / "plain"]
    perform_stage("tokenizer", tmp_path / "made" / "tokenizer", data=[str(path) for path in data], vocab_size=520)
    return tmp_path / "made" / "tokenizer"


def states(node: dict[str, Any]) -> dict[str, str]:
    """Flatten a trace: {"stage or file name": state}."""
    found = {f"{Path(node['path']).parent.name}/{Path(node['path']).name}": node["state"]}
    for child in node["inputs"].values():
        found |= states(child)
    return found


HELD = {
    "made/tokenizer": "held",
    "made/pages": "held",
    "raw/pages": "held",
    "letters/documents.jsonl": "held",
    "made/letters": "held",
    "raw/letters": "held",
    "raw/plain": "held",
}


def test_an_artifact_is_walked_back_to_its_raw_files(tokenizer: Path):
    node: dict[str, Any] = trace(tokenizer)
    assert states(node) == HELD
    assert node["licences"] == ["terms of letters", "terms of pages", "unknown"]
    pages = node["inputs"]["data.0"]
    assert pages["stage"] == "ingest" and pages["inputs"]["source"]["kind"] == "raw"


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("raw/pages/one.md", {"raw/pages"}),
        ("made/pages/documents.jsonl", {"made/pages"}),
        ("made/letters/documents.jsonl", {"letters/documents.jsonl", "made/letters"}),
        ("made/tokenizer/tokenizer.json", {"made/tokenizer"}),
        ("raw/plain/documents.jsonl", {"raw/plain"}),
    ],
)
def test_what_changed_since_is_named(tokenizer: Path, tmp_path: Path, file: str, changed: set[str]):
    (tmp_path / file).write_text("{}")
    found = states(trace(tokenizer))
    assert {name for name, state in found.items() if state == "changed"} == changed
    assert {name for name, state in found.items() if state == "held"} == set(HELD) - changed


def test_what_is_gone_is_named_and_the_rest_is_still_told(tokenizer: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "raw" / "pages")
    shutil.rmtree(tmp_path / "raw" / "plain")
    found = states(trace(tokenizer))
    assert {name for name, state in found.items() if state == "missing"} == {"raw/pages", "raw/plain"}
    shutil.rmtree(tmp_path / "made" / "pages")
    found = states(trace(tokenizer))
    assert found["made/pages"] == "missing" and "raw/pages" not in found and found["raw/letters"] == "held"


def test_an_input_that_was_made_again_otherwise_is_named(tokenizer: Path, tmp_path: Path, perform_stage: Any):
    (tmp_path / "raw" / "pages" / "one.md").write_text("We are closed.")
    perform_stage("ingest", tmp_path / "made" / "pages", source=str(tmp_path / "raw" / "pages"))
    found = states(trace(tokenizer))
    assert found["made/pages"] == "changed" and found["raw/pages"] == "held"


def test_an_input_whose_manifest_is_broken_ends_its_branch(tokenizer: Path, tmp_path: Path):
    (tmp_path / "made" / "pages" / "manifest.json").write_text("{")
    found = states(trace(tokenizer))
    assert found["made/pages"] == "changed" and found["raw/letters"] == "held"


def made_of(path: Path, *sources: Path) -> Path:
    """An artifact that read others of `path`'s folder."""
    inputs = {each.name: {"path": f"../{each.name}", "kind": "dataset", "hash": artifact.content_hash(each)}
              for each in sources}  # fmt: skip
    with artifact.writing(path) as partial:
        (partial / "content.txt").write_text(path.name)
        artifact.commit(partial, path, Manifest("dataset", "ingest", "key", {}, inputs, {}))
    return path


def test_what_two_artifacts_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one.md").write_text(WORDS)
    shared = made_of(tmp_path / "shared", tmp_path / "raw")
    sides = [made_of(tmp_path / name, shared, tmp_path / "raw") for name in ("left", "right")]
    top = made_of(tmp_path / "top", *sides)
    read, hash_file = list[Path](), artifact.hash_file
    monkeypatch.setattr(artifact, "hash_file", lambda path: read.append(path) or hash_file(path))
    assert set(states(trace(top)).values()) == {"held"}
    assert sorted(f"{path.parent.name}/{path.name}" for path in read) == [
        "left/content.txt",
        "raw/one.md",
        "right/content.txt",
        "shared/content.txt",
        "top/content.txt",
    ]


def test_the_tree_shows_every_origin(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "raw" / "pages" / "one.md").write_text("We are closed.")
    shutil.rmtree(tmp_path / "raw" / "letters")
    print_lineage(tokenizer, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(HELD) and all(any(name in line for line in lines) for name in HELD)
    assert next(line for line in lines if "raw/pages" in line).endswith("changed since")
    assert next(line for line in lines if "raw/letters" in line).endswith("missing")


def test_a_path_with_brackets_is_shown_as_it_is(tmp_path: Path, perform_stage: Any, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "[red]pages"
    source.mkdir()
    (source / "one.md").write_text(WORDS)
    perform_stage("ingest", tmp_path / "out", source=str(source))
    print_lineage(tmp_path / "out", Console(width=80))
    assert "[red]pages" in capsys.readouterr().out


def test_lineage_as_json_is_the_same_tree(tokenizer: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]):
    from puna import cli

    monkeypatch.setattr("sys.argv", ["puna", "lineage", str(tokenizer), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == trace(tokenizer)


def test_a_folder_that_is_no_artifact_has_no_lineage(tmp_path: Path):
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        trace(tmp_path)
