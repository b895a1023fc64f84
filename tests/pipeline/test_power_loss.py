"""A power loss at any write, fsync or rename of a stage: it resumes, and ends with the bytes of a run without one.

Bit flips in what an interrupted run kept: refused by the file's name, or the work is done again.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from power_loss import Recorder, write_tree
from preference_rows import row, write

from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError
from puna.pipeline.registry.registry import follow, promote

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
Settings = dict[str, Any]
NUM_FLIPS = 100
SHARES = [pytest.param(0.1, marks=pytest.mark.tenth), pytest.param(1.0, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def stages(
    perform_stage: Perform,
    checkpoint_path: Path,
    dataset_path: Path,
    training: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[str, Settings]]:
    """Name -> verb and settings of a stage that keeps something for a resumed run."""
    room = tmp_path_factory.mktemp("inputs")
    questions = [
        {
            "id": f"q{n}",
            "conversation": {"messages": [{"role": "user", "content": f"Open {n}?"}]},
            "expected": {"contains": [str(n)]},
            "grade": "contains",
        }
        for n in range(6)
    ]
    (room / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    pairs = write(room / "pairs", [row(n) for n in range(12)])
    talks = room / "conversations.jsonl"
    said = {"role": "assistant", "content": "We open at nine."}
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Open {n}?"}, said]}) for n in range(8)]
    talks.write_text("\n".join(lines))
    talking = {"data": [str(talks)], "steps": 40, "optim": {"lr": 0.03, "warmup_steps": 2}}
    perform_stage("sft", room / "talker", **{**training, **talking})
    start = {**training, "start": str(checkpoint_path), "size": None, "tokenizer": None, "batch_tokens": 256}
    start |= {"save_minutes": 1e-9, "steps": 3}
    on_policy = {"share": 0.5, "interval": 2, "answers": 2, "max_tokens": 4}
    return {
        "answer": (
            "answer",
            {"questions": [str(room / "questions.jsonl")], "checkpoint": str(room / "talker")}
            | {"max_tokens": 24, "max_batch": 1},
        ),
        "label": (
            "label",
            {"data": [str(dataset_path)], "teacher": str(checkpoint_path), "batch_tokens": 256, "shard_tokens": 600}
            | {"precision": "float32", "top_k": 4},
        ),
        "dpo": ("dpo", {**start, "data": [str(pairs)]}),
        "evaluate": (
            "evaluate",
            {"tasks": [str(room / "questions.jsonl")], "max_tokens": 8}
            | {"checkpoints": {name: str(checkpoint_path) for name in ("first", "second")}},
        ),
        "on_policy": ("distill", {**start, "teacher": str(checkpoint_path), "on_policy": on_policy}),
    }


NAMES = ("answer", "label", "dpo", "evaluate", "on_policy")


@pytest.fixture
def perform(
    name: str, stages: dict[str, tuple[str, Settings]], perform_stage: Perform, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], bool]:
    """Perform the stage of the parameter `name`, whose output the function takes."""
    verb, settings = stages[name]
    monkeypatch.setattr("puna.corpus.synthesize.answer.ROUNDS", 2)
    return lambda output: perform_stage(verb, output, **settings)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_after_a_power_loss_at_any_point_a_stage_ends_as_without_one(
    share: float, perform: Callable[[Path], bool], tmp_path: Path
):
    perform(tmp_path / "plain" / "out")
    whole = artifact.content_hash(tmp_path / "plain" / "out")
    (tmp_path / "disk").mkdir()
    with pytest.MonkeyPatch.context() as patch, Recorder(tmp_path / "disk", patch, share) as recorder:
        perform(tmp_path / "disk" / "out")
    assert artifact.content_hash(tmp_path / "disk" / "out") == whole
    assert recorder.num_points > 40
    for number, (what, tree) in enumerate(recorder.states.values()):
        place = tmp_path / str(number)
        write_tree(tree, place)
        perform(place / "out")
        assert artifact.verify(place / "out").content_hash == whole, what
        shutil.rmtree(place)
    for number, tree in enumerate(recorder.acknowledged):
        write_tree(tree, tmp_path / "acknowledged" / str(number))
        assert not perform(tmp_path / "acknowledged" / str(number) / "out"), "it is there"
        assert artifact.verify(tmp_path / "acknowledged" / str(number) / "out").content_hash == whole


def save(directory: Path, text: str) -> None:
    """Write an artifact of two files below a folder that may not be there yet."""
    path = directory / "build" / "out"
    with artifact.writing(path) as partial:
        (partial / "deep").mkdir()
        (partial / "weights").write_text(text * 100)
        (partial / "deep" / "about").write_text(text)
        about = artifact.Manifest("release", "release", "key", {"name": "Tiny"}, {}, {})
        artifact.Receipt("gate", "a", 0, 0, True).save(partial)
        artifact.commit(partial, path, about)


def found(directory: Path) -> str:
    """Return the text of the artifact that is found whole; "" for none."""
    path = directory / "build" / "out"
    if not path.exists():
        return ""
    artifact.verify(path)
    return (path / "deep" / "about").read_text()


def test_a_power_loss_at_any_point_leaves_the_old_artifact_or_the_new_one(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    for before, text in (("", "one"), ("one", "two"), ("two", "three")):
        with pytest.MonkeyPatch.context() as patch, Recorder(tmp_path / "disk", patch) as recorder:
            save(tmp_path / "disk", text)
        trees = [tree for _, tree in recorder.states.values()]
        for number, tree in enumerate([*trees, *recorder.acknowledged]):
            place = tmp_path / f"{text} {number}"
            write_tree(tree, place)
            assert found(place) in ((before, text) if number < len(trees) else (text,))
            save(place, "after")
            assert found(place) == "after"
        assert recorder.num_points > 15


def test_a_power_loss_while_a_release_is_promoted_leaves_the_old_one_in_use_or_the_new_one(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    registry = tmp_path / "disk" / "models" / "shop"
    names: list[str] = []
    for text in ("one", "two"):
        save(tmp_path / text, text)
        with pytest.MonkeyPatch.context() as patch, Recorder(tmp_path / "disk", patch) as recorder:
            promote(tmp_path / text / "build" / "out", registry)
        names.append(follow(registry).name)
        trees = [tree for _, tree in recorder.states.values()]
        for number, tree in enumerate([*trees, *recorder.acknowledged]):
            place = tmp_path / f"{text} {number}"
            write_tree(tree, place)
            now = follow(place / "models" / "shop")
            if number < len(trees) and now == place / "models" / "shop":
                assert len(names) == 1
                continue
            assert now.name in (names if number < len(trees) else names[-1:])
            assert artifact.verify(now)


# ---- bit flips


@pytest.mark.parametrize("share", [0.03, *SHARES])
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_in_what_an_interrupted_run_kept_is_refused_by_name_or_its_work_done_again(
    name: str, share: float, perform: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        # The run is interrupted as its artifact is about to be sealed: all that it keeps is there.
        patch.setattr(artifact, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path / "whole" / "out")
    shutil.copytree(tmp_path / "whole", tmp_path / "plain")
    perform(tmp_path / "plain" / "out")
    whole, chance = artifact.content_hash(tmp_path / "plain" / "out"), random.Random(0)
    kept = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    kept = [
        path for path in kept if path.name not in ("lock", "log.txt") and (tmp_path / "whole" / path).stat().st_size
    ]
    num_refused = 0
    for number in range(round(NUM_FLIPS * share)):
        place = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        file = place / kept[number % len(kept)]
        flip(file, chance)
        try:
            perform(place / "out")
        except ArtifactError as error:
            num_refused += 1
            assert str(file) in str(error) and "Delete" in str(error)
            file.unlink()
            perform(place / "out")
        assert artifact.verify(place / "out").content_hash == whole, file
        shutil.rmtree(place)
    assert num_refused or share < 0.1 or name in ("evaluate", "on_policy"), "one record a journal: done again"


def flip(file: Path, chance: random.Random) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    file.write_bytes(damaged)
