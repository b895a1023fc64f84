"""The same recipe in another folder gives the same contents: no path, speed or time of day lies in a hashed file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_rows import row, write
from test_adapter import trained

from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest
from puna.testing.tiny_checkpoint import save

Perform = Callable[..., bool]
Settings = dict[str, Any]
UNMEASURED = {"scores": "a test", "comparison": "a test", "task": "a test", "exam": "a test", "judged": "a test"}


def contents(path: Path) -> dict[str, str]:
    """Return the hashes that decide the content hash of an artifact."""
    manifest = artifact.verify(path)
    return {name: each["sha256"] for name, each in manifest.files.items() if not manifest.is_record(name)}


def raise_everything(room: Path, adapted: Path, dataset: Path, training: Settings, perform: Perform) -> dict[str, Path]:
    """Make one small artifact of every stage below `room`, from copies of the raw files there."""
    raw = shutil.copytree(dataset, room / "raw")
    write(room / "pairs", [row(n) for n in range(12)])
    shutil.copytree(adapted / "base", room / "base")
    shutil.copytree(adapted / "adapter", room / "adapter")
    made: dict[str, Path] = {}

    def make(verb: str, folder: str = "", /, **settings: Any) -> str:
        made[folder or verb] = room / (folder or verb)
        perform(verb, made[folder or verb], **settings, ignore_receipts=True)
        return str(made[folder or verb])

    data = make("ingest", source=str(raw), format="records", licence="own")
    make("synthesize", num_worlds=3)
    tokenizer = make("tokenizer", data=[data], vocab_size=560)
    rest = {**training, "data": [data], "tokenizer": tokenizer, "steps": 2}
    make("pretrain", **rest)
    model = make("sft", **rest)
    started = {**rest, "size": None, "tokenizer": None}
    make("sft", "adapted", **{**started, "start": model, "adapter": {"rank": 2}})
    pairs = {**started, "data": [str(room / "pairs")], "start": model}
    make("dpo", **pairs)
    make("reward", **pairs)
    labelled = {"data": [data], "teacher": model, "top_k": 4, "shard_tokens": 600}
    labels = make("label", **labelled)
    make("distill", **{**started, "data": [], "start": model, "labels": labels})
    on_policy = {"interval": 1, "answers": 2, "max_tokens": 4}
    make("distill", "distill-on-policy", **{**started, "start": model, "teacher": model, "on_policy": on_policy})
    talks = [{"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "At nine."}]}] * 4
    (room / "talks").mkdir()
    (room / "talks" / "conversations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talks))
    optim = {"lr": 0.03, "warmup_steps": 2}
    talker = make("sft", "talker", **{**rest, "data": [str(room / "talks")], "steps": 40, "optim": optim})
    make("answer", questions=[str(room / "talks")], checkpoint=talker, max_tokens=24)
    measured = {"num_tokens": 50, "tolerance_kl": 99.0, "min_agreement": 0.0}
    make("merge", adapter=str(room / "adapter"), base=str(room / "base"), **measured)
    pruned = {"size": {"hidden_dim": 16}, "calibration": [str(room / "talks")], "num_tokens": 50}
    make("prune", checkpoint=model, data=[data], **pruned)
    small = make("quantize", checkpoint=model, data=[data], **measured)
    make("export", checkpoint=model, format="huggingface", num_tokens=32)
    make("export", "gguf", checkpoint=model, format="gguf", kind="F16", num_tokens=32)
    make("import", source=str(made["gguf"] / "model.gguf"), licence="own")
    asked = {"teacher": model, "mine": small}
    scores = make("evaluate", checkpoints=asked, tasks=[data], max_questions=4, max_tokens=4)
    told = {"name": "Tiny", "scores": scores, "override": {**UNMEASURED, "overlap": "a test", "receipts": "a test"}}
    make("release", checkpoint=small, **told)
    return made


@pytest.mark.slow
@pytest.mark.tenth
def test_every_stage_gives_the_same_contents_in_another_folder(
    dataset_path: Path, training: Settings, perform_stage: Perform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rooms = [tmp_path / "one", tmp_path / "another" / "deeper"]
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules="all-linear")
    one, other = (raise_everything(room, tmp_path, dataset_path, training, perform_stage) for room in rooms)
    different = {
        f"{name}/{file}"
        for name in one
        for (file, sha256) in contents(one[name]).items() ^ contents(other[name]).items()
    }
    assert not different
    assert all(artifact.content_hash(one[name]) == artifact.content_hash(other[name]) for name in one)
    texts = ((path, name) for path in one.values() for name in contents(path) if name.endswith((".json", ".md")))
    assert not [path / name for path, name in texts if str(tmp_path) in (path / name).read_text()]


def test_records_do_not_count_as_content_and_manifests_without_them_read_as_before():
    files = {name: {"size": 1, "sha256": name} for name in ("scores.json", "speed.json", "run_metrics.jsonl")}
    old = Manifest("scores", "evaluate", "key", {}, {}, files)
    new = Manifest("scores", "evaluate", "key", {}, {}, files, records=["speed.json"])
    less = Manifest("scores", "evaluate", "key", {}, {}, {"scores.json": files["scores.json"]})
    assert new.content_hash == less.content_hash != old.content_hash
