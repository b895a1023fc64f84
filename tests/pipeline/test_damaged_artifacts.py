"""Damaged, cut and forged files of artifacts: every verb that reads one says which file, and no verb opens another."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.evaluation.diagnose.comparison_group import ComparisonGroup, GroupMember
from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules.table import explain
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.pipeline.artifacts.lineage import trace
from puna.pipeline.errors import ArtifactError, PunaError
from puna.pipeline.registry.registry import promote

HASH = "0" * 64
Perform = Callable[..., bool]


def manifest(**changes: Any) -> str:
    """A manifest of one empty file, changed at its first level; a change to None takes the field out."""
    empty = {"a.txt": {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}
    whole = {"kind": "checkpoint", "stage": "sft", "key": HASH, "config": {}, "inputs": {}, "files": empty}
    whole |= {"licences": ["own"], "version": "0.1.0", "created": "2026-12-01T10:00:00+00:00", "format": 1}
    return json.dumps({name: value for name, value in (whole | changes).items() if value is not None})


def entry(**changes: Any) -> dict[str, Any]:
    return {"size": 0, "sha256": HASH} | changes


def source(**changes: Any) -> dict[str, Any]:
    return {"path": "../raw", "kind": "raw", "hash": HASH} | changes


BAD_MANIFESTS = {
    "empty": "",
    "cut": manifest()[:-20],
    "zeros": "\0" * 300,
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "not UTF-8": b"\xff\xfe{}",
    "deep": "[" * 100_000,
    "deep config": manifest(config=None)[:-1] + ', "config": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    "a key twice": manifest()[:-1] + ', "kind": "dataset"}',
    "NaN": manifest()[:-1].replace('"size": 0', '"size": NaN') + "}",
    "beyond numbers": manifest(config=None)[:-1] + ', "config": {"lr": 1e999}}',
    "two values": manifest() + manifest(),
    "files is null": manifest(files=0),
    "files is a list": manifest(files=["a.txt"]),
    "a file without a size": manifest(files={"a.txt": {"sha256": HASH}}),
    "a file without a hash": manifest(files={"a.txt": {"size": 0}}),
    "a file that is null": manifest(files={"a.txt": None}),
    "a file that is a text": manifest(files={"a.txt": HASH}),
    "a negative size": manifest(files={"a.txt": entry(size=-1)}),
    "a size in words": manifest(files={"a.txt": entry(size="0")}),
    "a fractional size": manifest(files={"a.txt": entry(size=0.5)}),
    "a size that is true": manifest(files={"a.txt": entry(size=True)}),
    "an enormous size": manifest(files={"a.txt": entry(size=10**30)}),
    "a short hash": manifest(files={"a.txt": entry(sha256="abc")}),
    "a hash of other characters": manifest(files={"a.txt": entry(sha256="g" * 64)}),
    "a hash that is a number": manifest(files={"a.txt": entry(sha256=7)}),
    "a file outside": manifest(files={"../secret.txt": entry()}),
    "a file deep outside": manifest(files={"a/../../secret.txt": entry()}),
    "an absolute file": manifest(files={"/etc/hostname": entry()}),
    "a file without a name": manifest(files={"": entry()}),
    "a file with a name too long": manifest(files={"a" * 256: entry()}),
    "a file too deep": manifest(files={"a/" * 2048 + "b": entry()}),
    "a file with a zero byte": manifest(files={"a\0b": entry()}),
    "inputs is a list": manifest(inputs=[source()]),
    "an input that is a path": manifest(inputs={"data": "../raw"}),
    "an input without a path": manifest(inputs={"data": {"kind": "raw", "hash": HASH}}),
    "an input's path is a number": manifest(inputs={"data": source(path=3)}),
    "an input's path has a zero byte": manifest(inputs={"data": source(path="a\0b")}),
    "an input's path is too long": manifest(inputs={"data": source(path="../" * 1500)}),
    "an input's name is too long": manifest(inputs={"data": source(path="../" + "é" * 128)}),
    "an input's path is empty": manifest(inputs={"data": source(path="")}),
    "an input's hash is null": manifest(inputs={"data": source(hash=None)}),
    "licences in one text": manifest(licences="own"),
    "licences of numbers": manifest(licences=[1]),
    "config is a list": manifest(config=[]),
    "kind is a list": manifest(kind=[]),
    "kind with an escape": manifest(kind="\x1b[31mcheckpoint"),
    "another format": manifest(format=2),
    "a format in words": manifest(format="1"),
    "a field that nobody knows": manifest(more=1),
    "without a stage": manifest(stage=None),
}


def write_artifact(path: Path, text: str | bytes) -> Path:
    path.mkdir(parents=True)
    (path / "a.txt").write_bytes(b"")
    (path / artifact.MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_by_name_wherever_it_is_read(name: str, tmp_path: Path):
    path = write_artifact(tmp_path / "model", BAD_MANIFESTS[name])
    (tmp_path / "secret.txt").write_text("nobody opens this")
    os.chmod(tmp_path / "secret.txt", 0)
    for read in (artifact.read_manifest, artifact.verify, artifact.content_hash, trace):
        with pytest.raises(ArtifactError, match=r"model/manifest\.json"):
            read(path)
    with pytest.raises(ArtifactError), artifact.verifying(path):
        raise ArtifactError("whatever fails while an artifact is loaded")
    with pytest.raises(ArtifactError, match=r"model/manifest\.json"):
        promote(path, tmp_path / "registry")


def test_a_whole_manifest_is_read_as_it_was_written(tmp_path: Path):
    path = write_artifact(tmp_path / "model", manifest())
    assert artifact.verify(path) == artifact.read_manifest(path)
    assert artifact.read_manifest(path).licences == ["own"] and artifact.read_manifest(path).records == []


def test_a_manifest_too_large_or_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_artifact(tmp_path / "model", manifest())
    monkeypatch.setattr("puna.pipeline.storage.records.read_bounded.__kwdefaults__", {"max_bytes": 100})
    with pytest.raises(ArtifactError, match=r"manifest\.json has \d+ bytes; expected at most 100"):
        artifact.read_manifest(path)
    (path / artifact.MANIFEST).unlink()
    os.mkfifo(path / artifact.MANIFEST)
    with pytest.raises(ArtifactError, match="not a regular file"):
        artifact.read_manifest(path)


BAD_RECEIPTS = {
    "no number": {"value": "0.1"},
    "held in words": {"held": "yes"},
    "details is a list": {"details": []},
    "reasons in one text": {"details": {"reasons": "it is bad"}},
    "reasons of numbers": {"details": {"reasons": [1]}},
    "passes over a number": {"details": {"passes_over": 3}},
    "a hint that is a number": {"details": {"hint": 3}},
    "no claim": {"claim": None},
    "held without a number": {"value": float("nan")},
    "an unknown field": {"more": 1},
}


@pytest.mark.parametrize("name", BAD_RECEIPTS)
def test_a_bad_receipt_is_refused_by_name(name: str, tmp_path: Path):
    told = {"claim": "kl", "parent": "a", "value": 0.1, "tolerance": 0.2, "held": True} | BAD_RECEIPTS[name]
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "kl.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=r"kl\.json.*a receipt as Puna writes it"):
        artifact.require_receipts(tmp_path)


def test_a_claim_without_a_number_can_be_read_where_it_did_not_hold(tmp_path: Path):
    Receipt("kl", "a", float("nan"), 0.2, False).save(tmp_path)
    (found,) = artifact.read_receipts(tmp_path)
    assert not found.held and found.value != found.value


def test_a_receipt_of_another_name_is_refused_before_a_copy_of_it_is_written_elsewhere(tmp_path: Path):
    told = {"claim": "../../outside", "parent": "a", "value": 0.1, "tolerance": 0.2, "held": True}
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "kl.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=r"kl\.json: claim = '\.\./\.\./outside'; expected 'kl'"):
        artifact.read_receipts(tmp_path)


@pytest.mark.parametrize("name", [name for name in BAD_MANIFESTS if name not in ("a list", "a number", "null")])
def test_a_file_beside_a_damaged_manifest_is_not_taken_for_a_raw_one(name: str, tmp_path: Path):
    path = write_artifact(tmp_path / "model", BAD_MANIFESTS[name])
    with pytest.raises(ArtifactError, match=r"model/manifest\.json"):
        artifact.find_artifact(path / "a.txt")


def test_a_file_beside_another_programs_manifest_is_a_raw_one(tmp_path: Path):
    path = write_artifact(tmp_path / "site", json.dumps({"name": "a page", "files": ["a.txt"], "version": 3}))
    assert artifact.find_artifact(path / "a.txt") is None


def test_lineage_that_leads_in_a_circle_ends(tmp_path: Path):
    for one, other in (("a", "b"), ("b", "a"), ("self", "self")):
        write_artifact(tmp_path / one, manifest(inputs={"start": source(path=f"../{other}", kind="checkpoint")}))
    for name in ("a", "self"):
        node = trace(tmp_path / name)
        assert json.dumps(node).count('"stage"') <= 2


def test_a_release_whose_name_leads_outside_the_registry_is_not_placed(tmp_path: Path):
    with artifact.writing(tmp_path / "release") as partial:
        (partial / "a.txt").write_text("a")
        Receipt("gate", "a", 0, 0, True).save(partial)
        about = Manifest("release", "release", HASH, {"name": "../../outside"}, {}, {})
        artifact.commit(partial, tmp_path / "release", about)
    with pytest.raises(PunaError, match="outside"):
        promote(tmp_path / "release", tmp_path / "deep" / "registry")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["deep", "release"], ["release"])


# ---- every verb, as a process

VERBS = [
    ["lineage", "ART"],
    ["doctor", "ART"],
    ["sft", "--init-from", "ART", "--data", "DATA", "--steps", "1", "--out", "OUT"],
    ["quantize", "--checkpoint", "ART", "--data", "DATA", "--out", "OUT"],
    ["export", "--checkpoint", "ART", "--format", "gguf", "--out", "OUT"],
    ["evaluate", "--checkpoints.a", "ART", "--tasks", "DATA", "--out", "OUT"],
    ["release", "--checkpoint", "ART", "--name", "Tiny", "--out", "OUT"],
    ["label", "--teacher", "ART", "--data", "DATA", "--out", "OUT"],
    ["answer", "--checkpoint", "ART", "--questions", "DATA", "--out", "OUT"],
    ["import", "--source", "ART", "--out", "OUT"],
    ["promote", "ART", "--to", "OUT"],
    ["review", "ART", "--out", "OUT"],
    ["chat", "ART"],
    ["serve", "ART", "--port", "0"],
]
RUN_VERBS = """
import contextlib, io, json, sys, traceback
from puna.cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ["puna", *arguments]
    said, status = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


def run_verbs(commands: list[list[str]]) -> list[tuple[Any, str]]:
    """Run the command line for each, in one process; return exit status or message, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_VERBS],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=None,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands), done.stderr[-2000:]
    return [(status, said) for status, said in found]


@pytest.mark.parametrize(
    "share", [pytest.param(0.1, marks=pytest.mark.tenth), pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_every_verb_says_which_file_is_damaged(checkpoint_path: Path, dataset_path: Path, tmp_path: Path, share: float):
    names = list(BAD_MANIFESTS)[:: round(1 / share)]
    commands, expected = [], []
    for number, name in enumerate(names):
        path = tmp_path / str(number) / "model"
        shutil.copytree(checkpoint_path, path)
        text = BAD_MANIFESTS[name]
        (path / artifact.MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        places = {"ART": str(path), "DATA": str(dataset_path), "OUT": str(tmp_path / str(number) / "out")}
        commands += [[places.get(word, word) for word in verb] for verb in VERBS]
        expected += [(name, verb[0]) for verb in VERBS]
    for (status, said), what in zip(run_verbs(commands), expected, strict=True):
        told = f"{status}\n{said}"
        assert "Traceback" not in told and status not in (None, 0), (what, told)
        assert "manifest.json" in told, (what, told)


@pytest.mark.parametrize("change", [{"answers": 3}, {"epochs": "many"}, {"num_too_long": "x"}])
def test_records_of_a_run_that_do_not_fit_stop_a_comparison_with_a_message(
    change: dict[str, Any], perform_stage: Perform, training: dict[str, Any], tmp_path: Path, no_picture: None
):
    perform_stage("sft", tmp_path / "out", **{**training, "steps": 2})
    record = Record.read(tmp_path / "out")
    assert record is not None
    side = GroupMember("mine", replace(record, facts=record.facts | change), "", "")
    with pytest.raises(ArtifactError, match=r"the training records of mine.*run_facts\.json"):
        explain(ComparisonGroup(side, None, None, None, {}, {}))
    (tmp_path / "out" / "run_facts.json").write_text(json.dumps(record.facts | change))
    with pytest.raises(ArtifactError, match=r"run_facts\.json was altered"):
        Record.read(tmp_path / "out")
