"""Which release is in use: promoted, rolled back, verified each time, and whole whenever the power goes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.pipeline.artifacts.lineage import trace
from puna.pipeline.errors import ArtifactError, ConfigError, ReceiptError
from puna.pipeline.registry import command
from puna.pipeline.registry.registry import follow, promote, read_history, roll_back


def write_release(path: Path, text: str, *, held: bool = True, claim: str = "gate", **changes: Any) -> Path:
    source = path.parent / "source.txt"
    source.write_text("a source")
    inputs = {"checkpoint": {"path": "../source.txt", "kind": "raw", "hash": artifact.content_hash(source)}}
    settings = {"kind": "release", "config": {"name": "Feather"}, **changes}
    with artifact.writing(path) as partial:
        (partial / "model.safetensors").write_text(text)
        details = {} if held else {"reasons": ["NO-GO: worse than base"], "hint": "See decision.md"}
        Receipt(claim, "x", 0 if held else 1, 0, held, details).save(partial)
        manifest = Manifest(stage="release", key="k", inputs=inputs, files={}, **settings)
        artifact.commit(partial, path, manifest)
    return path


@pytest.fixture
def releases(tmp_path: Path) -> list[Path]:
    return [write_release(tmp_path / name, f"weights of {name}") for name in ("one", "two", "three")]


def weights(registry: Path) -> str:
    return (follow(registry) / "model.safetensors").read_text()


def test_what_was_promoted_last_is_in_use_and_its_lineage_holds(releases: list[Path], tmp_path: Path):
    registry = tmp_path / "registry"
    for release in releases[:2]:
        promote(release, registry)
        assert weights(registry) == f"weights of {release.name}"
        tree: dict[str, Any] = trace(follow(registry))
        assert tree["state"] == "held" and tree["inputs"]["checkpoint"]["state"] == "held"
    assert [change.how for change in read_history(registry)] == ["promoted", "promoted"]
    assert json.loads((registry / "current.json").read_text())["current"] == follow(registry).name
    assert follow(tmp_path) == tmp_path


def test_promoting_what_is_in_use_changes_nothing(releases: list[Path], tmp_path: Path):
    changes = [promote(releases[0], tmp_path / "registry") for _ in range(2)]
    assert changes[0] == changes[1] and len(read_history(tmp_path / "registry")) == 1


def test_a_release_stays_in_the_registry_when_the_stage_writes_another_in_its_place(
    releases: list[Path], tmp_path: Path
):
    registry = tmp_path / "registry"
    promote(releases[0], registry)
    write_release(tmp_path / "one", "other weights")
    assert weights(registry) == "weights of one"
    promote(tmp_path / "one", registry)
    roll_back(registry)
    assert weights(registry) == "weights of one"


def test_rolling_back_goes_further_back_each_time_and_stops_at_the_first(releases: list[Path], tmp_path: Path):
    registry = tmp_path / "registry"
    for release in releases:
        promote(release, registry)
    for name in ("two", "one"):
        roll_back(registry)
        assert weights(registry) == f"weights of {name}"
    with pytest.raises(ConfigError, match="is the first release in"):
        roll_back(registry)
    promote(releases[2], registry)
    roll_back(registry)
    assert weights(registry) == "weights of one"
    assert len(read_history(registry)) == 7


def test_one_may_roll_back_to_an_earlier_release_by_name(releases: list[Path], tmp_path: Path):
    registry = tmp_path / "registry"
    first, *_ = [promote(release, registry) for release in releases]
    with pytest.raises(ConfigError, match="--to other; expected one of Feather-"):
        roll_back(registry, "other")
    roll_back(registry, first.release)
    assert weights(registry) == "weights of one"


def test_a_release_that_was_altered_is_not_gone_back_to(releases: list[Path], tmp_path: Path):
    registry = tmp_path / "registry"
    first, *_ = [promote(release, registry) for release in releases[:2]]
    file = registry / first.release / "model.safetensors"
    file.unlink()
    file.write_text("weights of evil")
    with pytest.raises(ArtifactError, match="was altered"):
        roll_back(registry)
    assert weights(registry) == "weights of two" and len(read_history(registry)) == 2


def test_another_whole_release_under_the_same_name_is_not_gone_back_to(releases: list[Path], tmp_path: Path):
    registry = tmp_path / "registry"
    first, *_ = [promote(release, registry) for release in releases[:2]]
    write_release(registry / first.release, "weights of evil")
    with pytest.raises(ArtifactError, match="is not what was promoted"):
        roll_back(registry)


def test_what_the_gate_stopped_never_saw_or_is_no_release_is_not_promoted(tmp_path: Path):
    registry = tmp_path / "registry"
    with pytest.raises(ReceiptError, match=r"NO-GO: worse than base.*decision\.md"):
        promote(write_release(tmp_path / "bad", "w", held=False), registry)
    with pytest.raises(ArtifactError, match="was never judged"):
        promote(write_release(tmp_path / "old", "w", claim="kl"), registry)
    with pytest.raises(ArtifactError, match="kind 'checkpoint'"):
        promote(write_release(tmp_path / "raw", "w", kind="checkpoint"), registry)
    altered = write_release(tmp_path / "altered", "w")
    (altered / "model.safetensors").write_text("v")
    with pytest.raises(ArtifactError, match="was altered"):
        promote(altered, registry)
    assert follow(registry) == registry
    with pytest.raises(ConfigError, match="is an artifact"):
        promote(write_release(tmp_path / "good", "w"), tmp_path / "old")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"history": []}', '{"history": [{"release": "x"}]}'])
def test_a_pointer_that_cannot_be_read_is_told(tmp_path: Path, text: str):
    (tmp_path / "current.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"current\.json"):
        follow(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "", ".."])
def test_a_pointer_cannot_lead_out_of_its_folder(tmp_path: Path, name: str):
    entry = {"release": name, "hash": "", "how": "promoted", "at": ""}
    (tmp_path / "current.json").write_text(json.dumps({"current": name, "history": [entry]}))
    with pytest.raises(ArtifactError, match="the name of a folder in the registry"):
        follow(tmp_path)


def die_at(step: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that dies, without any cleaning up, at its step-th change of the disk."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return call(*arguments, **named)

            return instead

        try:
            for owner, name in ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "rename"), (Path, "write_text")):
                setattr(owner, name, dying(getattr(owner, name)))
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("change", ["promote", "roll back"])
def test_whenever_it_is_killed_the_old_or_the_new_release_is_in_use_and_whole(
    change: str, releases: list[Path], tmp_path: Path
):
    deaths = 0
    for step in range(1, 100):
        registry = tmp_path / f"registry {step}"
        for release in releases[:2]:
            promote(release, registry)
        died = die_at(step, lambda at=registry: promote(releases[2], at) if change == "promote" else roll_back(at))
        after = "weights of three" if change == "promote" else "weights of one"
        assert weights(registry) in ("weights of two", after)
        artifact.verify(follow(registry))
        promote(releases[2], registry)
        assert weights(registry) == "weights of three"
        if not died:
            break
        deaths += 1
    assert deaths >= 3 and not died


def test_the_verbs_say_what_is_in_use_and_how_to_go_back(
    releases: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for release in (releases[0], releases[1], releases[1]):
        command.promote(release, to=tmp_path / "registry")
    command.rollback(tmp_path / "registry")
    first, second, back, again, third, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("is in use") and "in place of Feather-" in second and back.startswith("The way back: puna")
    assert again.endswith("is in use already") and "is in use again, in place of" in third
