"""An artifact is there as a whole or not at all, and says when a file of it is not what was written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.pipeline.errors import ArtifactError, ReceiptError


def make(path: Path, files: dict[str, str], **about: str) -> Path:
    with artifact.writing(path) as partial:
        for name, text in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)
        artifact.commit(partial, path, replace(MANIFEST, **about))
    return path


MANIFEST = Manifest("dataset", "stage", "key", {}, {}, {})
FILES = {"a.txt": "one", "deep/b.txt": "two", "deep/manifest.json": "a file of the same name"}


def test_a_block_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), artifact.writing(tmp_path / "out") as partial:
        (partial / "half.txt").write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_the_old_artifact(tmp_path: Path):
    path = make(tmp_path / "out", FILES)
    with pytest.raises(ZeroDivisionError), artifact.writing(path) as partial:
        (partial / "a.txt").write_text("other")
        _ = 1 / 0
    assert artifact.verify(path) and (path / "a.txt").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_does_not_get_into_the_next(tmp_path: Path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old.txt").write_text("old")
    assert set(artifact.verify(make(tmp_path / "out", FILES)).files) == set(FILES)


def test_an_artifact_replaces_the_one_before(tmp_path: Path):
    make(tmp_path / "out", {"a.txt": "one", "only_in_first.txt": "x"})
    path = make(tmp_path / "out", {"a.txt": "two"})
    assert set(artifact.verify(path).files) == {"a.txt"} and (path / "a.txt").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_crash_before_the_rename_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make(tmp_path / "out", FILES)
    monkeypatch.setattr(artifact, "replace_directory", lambda new, path: fail())
    with pytest.raises(SystemExit):
        make(path, {"a.txt": "two"})
    assert artifact.verify(path) and (path / "a.txt").read_text() == "one"


def test_at_no_moment_of_a_replacement_is_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make(tmp_path / "out", {"a.txt": "one"})
    seen: list[str] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append((path / "a.txt").read_text())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    make(path, {"a.txt": "two"})
    assert seen and set(seen) <= {"one", "two"} and (path / "a.txt").read_text() == "two"


def test_where_the_disk_cannot_exchange_two_renames_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puna.pipeline.storage.files._exchange", lambda one, other: False)
    make(tmp_path / "out", {"a.txt": "one", "only_in_first.txt": "x"})
    assert set(artifact.verify(make(tmp_path / "out", {"a.txt": "two"})).files) == {"a.txt"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def fail() -> None:
    raise SystemExit("the power failed")


def test_verify_names_a_file_that_was_cut_altered_removed_or_added(tmp_path: Path):
    whole = make(tmp_path / "whole", FILES)
    for number, (change, word) in enumerate(
        [
            (lambda path: (path / "a.txt").write_text("on"), "a.txt was altered or cut"),
            (lambda path: (path / "a.txt").write_text("onf"), "a.txt was altered or cut"),
            (lambda path: (path / "deep" / "b.txt").unlink(), "b.txt is missing"),
            (
                lambda path: (path / "deep" / "manifest.json").write_text("b file of the same name"),
                "deep/manifest.json",
            ),
            (lambda path: (path / "new.txt").write_text(""), "new.txt is not part"),
        ]
    ):
        path = Path(shutil.copytree(whole, tmp_path / str(number)))
        assert artifact.verify(path)
        change(path)
        with pytest.raises(ArtifactError, match=word):
            artifact.verify(path)


def test_what_is_not_whole_is_seen_without_reading_it(tmp_path: Path):
    path = make(tmp_path / "out", FILES)
    manifest = artifact.read_manifest(path)
    assert artifact.is_whole(path, manifest)
    (path / "a.txt").write_text("on")
    assert not artifact.is_whole(path, manifest)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}', "\udcff", '{"format": 99}'])
def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path: Path, text: str):
    path = make(tmp_path / "out", FILES)
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifact.content_hash(path)


def test_another_format_version_is_refused(tmp_path: Path):
    path = make(tmp_path / "out", FILES)
    about = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ArtifactError, match="format = 2; expected a manifest of format 1"):
        artifact.read_manifest(path)


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path):
    assert not artifact.is_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        artifact.read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        artifact.content_hash(tmp_path / "nothing")


def test_equal_content_has_equal_hashes_whoever_made_it(tmp_path: Path):
    first = make(tmp_path / "one", {**FILES, "run_metrics.jsonl": "12 tokens/s"}, key="k1", stage="s1")
    second = make(tmp_path / "two", {**FILES, "run_metrics.jsonl": "34 tokens/s"}, key="k2", stage="s2")
    assert artifact.content_hash(first) == artifact.content_hash(second)
    for changed in ({**FILES, "a.txt": "One"}, {"A.txt": "one", "deep/b.txt": "two"}, {"a.txt": "one"}):
        other = make(tmp_path / "other", changed)
        assert artifact.content_hash(other) != artifact.content_hash(first)


def test_raw_folders_are_hashed_by_names_and_contents(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "page.md").write_text("text")
    one, two = tmp_path / "one", tmp_path / "two"
    assert artifact.content_hash(one) == artifact.content_hash(two)
    (two / ".git").mkdir()
    (two / ".git" / "index").write_text("changes at every look")
    assert artifact.content_hash(one) == artifact.content_hash(two)
    (two / "sub" / "page.md").rename(two / "sub" / "side.md")
    assert artifact.content_hash(one) != artifact.content_hash(two)


def test_a_file_of_an_artifact_leads_to_it(tmp_path: Path):
    path = make(tmp_path / "out", FILES)
    (path / "stranger.txt").write_text("")
    assert artifact.find_artifact(path) == path == artifact.find_artifact(path / "a.txt")
    assert artifact.find_artifact(path / "stranger.txt") is None
    assert artifact.find_artifact(tmp_path) is None


def test_a_receipt_that_does_not_hold_is_refused_with_its_numbers(tmp_path: Path):
    path = tmp_path / "out"
    with artifact.writing(path) as partial:
        Receipt("kl_divergence", "parent", 0.01, 0.05, held=True).save(partial)
        artifact.commit(partial, path, MANIFEST)
    artifact.require_receipts(path)
    with artifact.writing(path) as partial:
        Receipt("kl_divergence", "parent", 0.01, 0.05, held=True).save(partial)
        Receipt("top_1", "parent", 0.31, 0.02, held=False, details={"n": 7}).save(partial)
        artifact.commit(partial, path, MANIFEST)
    with pytest.raises(ReceiptError, match=r"top_1 is 0\.31; expected at most 0\.02.*--ignore-receipts"):
        artifact.require_receipts(path)
    assert [receipt.held for receipt in artifact.read_receipts(path)] == [True, False]


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "note.json"
    artifact.write_text(path, "one ü")
    monkeypatch.setattr("puna.pipeline.storage.files.fsync", lambda path: fail())
    with pytest.raises(SystemExit):
        artifact.write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "one ü"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"claim": "kl"}', "[" * 100_000])
def test_a_receipt_that_cannot_be_read_proves_nothing(tmp_path: Path, text: str):
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "kl.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"kl\.json.* expected a receipt as Puna writes it"):
        artifact.require_receipts(tmp_path)
