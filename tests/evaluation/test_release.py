"""The release stage: what may go out under which name, and what goes with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer

from puna.evaluation.release.terms import find_texts, governing_licence
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.pipeline.artifacts.artifact import commit, read_manifest, verify, writing
from puna.pipeline.artifacts.licence import LICENCES
from puna.pipeline.artifacts.lineage import trace
from puna.pipeline.errors import ConfigError, ReceiptError

AGREEMENT = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\nLlama 3.1 Version Release Date: July 23, 2024\n\n(its text)\n"
POLICY = "# Acceptable Use Policy\n"
UNMEASURED = {"scores": "licences alone are looked at here", "comparison": "as above", "task": "as above"}
UNTRAINED = {
    "exam": "the models are random here",
    "judged": "as above",
    "overlap": "the same rows are data and task here",
}
MEASURE = {"num_tokens": 50, "tolerance_kl": 9, "min_agreement": 0}

Perform = Callable[..., bool]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_path: Path,
    dataset_path: Path,
    training: dict[str, Any],
    perform_stage: Perform,
) -> Path:
    """A folder with data under CC BY 4.0, a model trained on it from a "Llama 3.1", its int8 form, and their scores.

    "scratch" is a model from scratch, on data under Apache-2.0.
    """
    path = tmp_path_factory.mktemp("made")
    base = shutil.copytree(checkpoint_path, path / "models--meta-llama--Llama-3.1-8B")
    (base / "LICENSE").write_text(AGREEMENT)
    (base / "USE_POLICY.md").write_text(POLICY)
    rest = {key: value for key, value in training.items() if key not in ("size", "tokenizer", "data")} | {"steps": 1}
    for name, licence in (("data", "CC BY 4.0"), ("free", "Apache-2.0")):
        perform_stage("ingest", path / name, source=str(dataset_path), format="records", licence=licence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.training.loop.loop.plot_losses", lambda *_, **__: None)
        perform_stage("sft", path / "sft", **rest, data=[str(path / "data")], start=str(base))
        perform_stage("tokenizer", path / "tokenizer", data=[str(path / "free")], vocab_size=560)
        settings = {**rest, "size": training["size"], "tokenizer": str(path / "tokenizer")}
        perform_stage("sft", path / "scratch", **settings, data=[str(path / "free")])
    data = [str(path / "data")]
    perform_stage("quantize", path / "int8", checkpoint=str(path / "sft"), data=data, **MEASURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.evaluation.evaluate.evaluate.draw_scores", lambda *_: True)
        asked = {"teacher": str(base), "mine": str(path / "int8")}
        perform_stage("evaluate", path / "scores", checkpoints=asked, tasks=data, max_questions=6, max_tokens=4)
    return path


@pytest.fixture
def release(made: Path, tmp_path: Path, perform_stage: Perform) -> Callable[..., Path]:
    """Return a function that releases one of the models: release("int8", "Llama-Acme", scores=...)."""

    def release_one(model: str, name: str, **settings: Any) -> Path:
        out = tmp_path / "out"
        told = {"checkpoint": str(made / model), "name": name, "override": UNMEASURED, **settings}
        perform_stage("release", out, **told)
        return out

    return release_one


def read(path: Path, name: str) -> str:
    return (path / name).read_text(encoding="utf-8")


def front_matter(path: Path) -> dict[str, Any]:
    """Read the head of the card as the hub's own library does."""
    return ModelCard.load(path / "README.md").data.to_dict()


def test_a_model_made_from_llama_goes_out_with_agreement_notice_policy_and_badge(release: Callable[..., Path]):
    out = release("int8", "Llama-Acme-1B", credits=["Pages by Jane Roe"])
    assert read(out, "LICENSE") == AGREEMENT and read(out, "USE_POLICY.md") == POLICY
    assert LICENCES["llama3.1"].notice in read(out, "NOTICE") and "Jane Roe" in read(out, "NOTICE")
    card = read(out, "README.md")
    assert "# Llama-Acme-1B\n\n**Built with Llama**\n" in card
    assert "700 million" in card and "Creative Commons Attribution 4.0" in card
    head = front_matter(out)
    assert (head["license"], head["base_model"]) == ("llama3.1", "meta-llama/Llama-3.1-8B")
    assert read_manifest(out).licences == ["cc-by-4.0", "llama3.1"]


def test_a_release_opens_here_and_in_transformers_and_can_be_walked_back(release: Callable[..., Path], made: Path):
    out = release("int8", "Llama-Acme-1B")
    verify(out)
    mine, theirs = Checkpoint.open(out), Checkpoint.open(made / "int8")
    weights = zip(mine.load().state_dict().values(), theirs.load().state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    assert AutoConfig.from_pretrained(out).num_hidden_layers == mine.config.num_layers
    text = "Where is my order 40037?"
    assert AutoTokenizer.from_pretrained(out)(text, add_special_tokens=False).input_ids == mine.tokenizer().encode(text)
    tree: dict[str, Any] = trace(out)
    assert tree["inputs"]["checkpoint"]["inputs"]["checkpoint"]["inputs"]["start"]["kind"] == "raw"
    assert (out / "model.safetensors").stat().st_ino == (made / "int8" / "model.safetensors").stat().st_ino


def test_only_the_files_of_a_checkpoint_go_along(
    release: Callable[..., Path], made: Path, tmp_path: Path, perform_stage: Perform
):
    raw = shutil.copytree(made / "models--meta-llama--Llama-3.1-8B", tmp_path / "raw")
    (raw / "modeling_evil.py").write_text("print('boo')")
    (raw / "pytorch_model.bin").write_text("")
    told = {"checkpoint": str(raw), "name": "Llama-Copy", "base_model": "acme/base", "override": UNMEASURED}
    perform_stage("release", tmp_path / "out", **told)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE", "NOTICE", "USE_POLICY.md"),
        *(
            "manifest.json",
            "release.json",
            "run_config.json",
            "run_cost.json",
            "decision.md",
            "decision.html",
            "receipts",
        ),
    }
    assert front_matter(tmp_path / "out")["base_model"] == "acme/base"


def test_a_model_fetched_from_the_hub_is_told_with_its_commit(
    checkpoint_path: Path, tmp_path: Path, perform_stage: Perform
):
    fetched = tmp_path / "fetched"
    perform_stage("import", fetched, source=str(checkpoint_path), licence="apache-2.0")
    origin = json.loads(read(fetched, "origin.json")) | {"hub": "acme/tiny", "commit": "0123abcd"}
    with writing(fetched) as partial:
        shutil.copytree(fetched, partial, dirs_exist_ok=True)
        (partial / "origin.json").write_text(json.dumps(origin))
        commit(partial, fetched, replace(read_manifest(fetched), inputs={}))
    perform_stage("release", tmp_path / "out", checkpoint=str(fetched), name="Tiny", override=UNMEASURED)
    assert front_matter(tmp_path / "out")["base_model"] == "acme/tiny"
    assert "made from `acme/tiny` at commit `0123abcd`" in read(tmp_path / "out", "README.md")


def test_where_files_cannot_be_linked_they_are_copied(release: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: Any) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", no_links)
    out = release("int8", "Llama-Acme-1B")
    assert Checkpoint.open(out).is_quantized and (out / "model.safetensors").stat().st_nlink == 1


def test_the_card_tells_scores_receipts_data_and_lineage(release: Callable[..., Path], made: Path):
    override = {**UNMEASURED, **UNTRAINED}
    out = release("int8", "Llama-Acme-1B", scores=str(made / "scores"), languages=["en", "de"], override=override)
    card = read(out, "README.md")
    found = json.loads(read(made / "scores", "scores.json"))["checkpoints"]
    for name, shown in (("teacher", "teacher"), ("mine", "**mine**")):
        score, low, high = (100 * found[name]["overall"][key] for key in ("score", "low", "high"))
        assert f"| {shown} | {found[name]['overall']['n']} | {score:.1f} ({low:.1f}, {high:.1f}) |" in card
    assert f"{found['mine']['overall']['n']} questions" in card
    for claim in ("| `int8` | kl |", "| `int8` | top1_agreement |", "at most 9 | yes |", "at least 0 | yes |"):
        assert claim in card
    assert "| `data` | 6 | 12 | cc-by-4.0 | `sft (data)`, `int8 (data)` |" in card
    assert "└── start: models--meta-llama--Llama-3.1-8B (raw, " in card
    assert "- `sft` (sft): " in card and "optim.lr = 0.01" in card
    assert str(made) not in card and str(made) not in read(out, "release.json")
    record = json.loads(read(out, "release.json"))
    assert record["licence"] == "llama3.1" and record["badges"] == ["Built with Llama"]
    assert {each["claim"] for each in record["receipts"]} == {"kl", "perplexity", "top1_agreement"}
    assert record["scores"]["overall"] == found["mine"]["overall"]


def test_what_was_not_measured_is_said(release: Callable[..., Path]):
    card = read(release("scratch", "Feather"), "README.md")
    assert "how well it answers was not measured" in card and "no step made a measured claim" in card
    assert "For which languages it is meant was not stated" in card


def test_scores_of_another_checkpoint_are_refused(release: Callable[..., Path], made: Path):
    with pytest.raises(ReceiptError, match=r"NO-GO: the scores of the task are of other checkpoints.* of sft"):
        release("sft", "Llama-Acme-1B", scores=str(made / "scores"), override={})
    with pytest.raises(ConfigError, match=r"scores = .* kind 'dataset'"):
        release("sft", "Llama-Acme-1B", scores=str(made / "data"))


def test_scores_with_a_llama_do_not_bind_a_model_that_is_not_made_from_it(
    made: Path, tmp_path: Path, perform_stage: Perform, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("puna.evaluation.evaluate.evaluate.draw_scores", lambda *_: True)
    asked = {"base": str(made / "sft"), "mine": str(made / "scratch")}
    settings = {"tasks": [str(made / "data")], "max_questions": 2, "max_tokens": 2}
    perform_stage("evaluate", tmp_path / "scores", checkpoints=asked, **settings)
    perform_stage(
        "release",
        tmp_path / "out",
        checkpoint=str(made / "scratch"),
        name="Feather",
        scores=str(tmp_path / "scores"),
        override={"comparison": "it is about licences", **UNTRAINED},
    )
    assert read_manifest(tmp_path / "out").licences == ["apache-2.0"]
    assert "Built with" not in read(tmp_path / "out", "README.md")


def test_a_model_from_scratch_needs_no_badge_and_has_the_licence_of_its_data(release: Callable[..., Path]):
    out = release("scratch", "Feather-Helper", author="Acme Ltd")
    assert "Feather-Helper is released under the Apache License 2.0" in read(out, "LICENSE")
    assert LICENCES["apache-2.0"].url in read(out, "LICENSE") and "Acme Ltd" in read(out, "LICENSE")
    assert "Built with" not in read(out, "README.md") and not (out / "USE_POLICY.md").exists()
    assert front_matter(out)["license"] == "apache-2.0"


@pytest.mark.parametrize("name", ["Acme-1B", "acme-Llama", "llama-acme", "Llamazing"])
def test_a_name_that_the_licence_forbids_is_refused(release: Callable[..., Path], tmp_path: Path, name: str):
    with pytest.raises(ReceiptError, match=rf"name = '{name}'.*Llama 3.1 Community License.*begins with 'Llama'"):
        release("int8", name)
    assert not list((tmp_path / "out").glob("*.safetensors")) and "NO-GO" in read(tmp_path / "out", "decision.md")


def test_a_forbidden_name_is_released_on_the_users_word_and_that_is_recorded(release: Callable[..., Path]):
    out = release("int8", "Acme-1B", allow_name=True)
    assert "## Exceptions" in read(out, "README.md") and "does not begin with 'Llama'" in read(out, "README.md")
    assert json.loads(read(out, "release.json"))["exceptions"] and read_manifest(out).config["allow_name"] is True


@pytest.mark.parametrize("name", ["", "a/b", "Llama Acme", "-x", "x-", "a--b", "a..b", "../x", "x" * 97, "Llama\n"])
def test_a_name_that_is_no_file_name_is_refused(release: Callable[..., Path], name: str):
    with pytest.raises(ConfigError, match="at most 96 letters, digits"):
        release("scratch", name)


def test_a_missing_agreement_is_named_and_can_be_given(
    made: Path, tmp_path: Path, perform_stage: Perform, checkpoint_path: Path
):
    base = shutil.copytree(checkpoint_path, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    settings = {"checkpoint": str(base), "name": "Llama-Acme-1B", "override": UNMEASURED}
    with pytest.raises(ReceiptError, match=r"text of the Llama 3\.1 Community License.*licence_files"):
        perform_stage("release", tmp_path / "out", **settings)
    texts = made / "models--meta-llama--Llama-3.1-8B"
    perform_stage("release", tmp_path / "out", **settings, licence_files=str(texts))
    assert read(tmp_path / "out", "LICENSE") == AGREEMENT


def test_terms_that_nobody_knows_are_refused_by_their_origin_unless_accepted(
    made: Path, tmp_path: Path, perform_stage: Perform, checkpoint_path: Path
):
    measured = {"data": [str(made / "free")], **MEASURE}
    perform_stage("quantize", tmp_path / "int8", checkpoint=str(checkpoint_path), **measured)
    settings = {"checkpoint": str(tmp_path / "int8"), "name": "Feather", "override": UNMEASURED}
    with pytest.raises(ReceiptError, match=rf"'unknown' come from .*int8, made from .*{checkpoint_path.name}"):
        perform_stage("release", tmp_path / "out", **settings)
    perform_stage("release", tmp_path / "out", **settings, accepted_terms=["unknown"])
    assert "'unknown' were accepted" in read(tmp_path / "out", "README.md")


def test_a_non_commercial_licence_is_refused_unless_allowed(
    tmp_path: Path, perform_stage: Perform, checkpoint_path: Path
):
    base = shutil.copytree(checkpoint_path, tmp_path / "base")
    (base / "LICENSE").write_text("Attribution-NonCommercial 4.0 International\n")
    settings = {"checkpoint": str(base), "name": "Feather", "override": UNMEASURED}
    with pytest.raises(ReceiptError, match="forbids commercial use"):
        perform_stage("release", tmp_path / "out", **settings)
    perform_stage("release", tmp_path / "out", **settings, allow_noncommercial=True)
    assert "no commercial use" in read(tmp_path / "out", "README.md")
    assert read(tmp_path / "out", "LICENSE-cc-by-nc-4.0").startswith("Attribution-NonCommercial")


def test_a_receipt_that_does_not_hold_stops_the_release_unless_overridden(
    made: Path, tmp_path: Path, perform_stage: Perform
):
    settings = {"checkpoint": str(made / "sft"), "data": [str(made / "data")], "num_tokens": 50, "tolerance_kl": 0}
    perform_stage("quantize", tmp_path / "bad", **settings, ignore_receipts=True)
    told = {"checkpoint": str(tmp_path / "bad"), "name": "Llama-Acme", "override": UNMEASURED}
    with pytest.raises(ReceiptError, match=r"NO-GO: the receipt kl of bad does not hold: .*, at most 0"):
        perform_stage("release", tmp_path / "out", **told)
    with pytest.raises(ReceiptError, match="the receipt kl of bad"):  # of the page that is there
        perform_stage("release", tmp_path / "out", **told)
    perform_stage("release", tmp_path / "out", **told, ignore_receipts=True)
    assert "NO-GO" in read(tmp_path / "out", "decision.md") and not (tmp_path / "out" / "config.json").exists()
    told["override"] = {**UNMEASURED, "receipts": "it is a test"}
    perform_stage("release", tmp_path / "out", **told)
    assert "at most 0 | **no** |" in read(tmp_path / "out", "README.md")


def test_a_release_may_be_trained_on_and_released_again(
    release: Callable[..., Path], tmp_path: Path, perform_stage: Perform
):
    first = release("sft", "Llama-Acme-1B")
    told = {"checkpoint": str(first), "name": "Llama-Acme-2B", "override": UNMEASURED}
    perform_stage("release", tmp_path / "second", **told)
    assert read(tmp_path / "second", "LICENSE") == AGREEMENT
    assert read(tmp_path / "second", "NOTICE").count(LICENCES["llama3.1"].notice) == 1
    shutil.copytree(first, tmp_path / "downloaded", ignore=lambda *_: ["manifest.json"])
    perform_stage("release", tmp_path / "third", **{**told, "checkpoint": str(tmp_path / "downloaded")})
    assert read_manifest(tmp_path / "third").licences == ["cc-by-4.0", "llama3.1"]


def test_every_text_of_a_licence_that_applies_goes_along_once(tmp_path: Path):
    texts = {"a": "MIT License\nAnn", "b": "MIT License\nBob", "c": "MIT License\nAnn", "d": "BSD 3-Clause License"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(text)
    found = find_texts([tmp_path / name for name in texts], {"mit"}, LICENCES["mit"])
    assert found == {"LICENSE-mit": tmp_path / "a" / "LICENSE", "LICENSE-mit-2": tmp_path / "b" / "LICENSE"}


@pytest.mark.parametrize(
    ("inherited", "stated", "expected"),
    [
        (set(), "", "own"),
        (set(), "Apache 2.0", "apache-2.0"),
        ({"mit"}, "", "mit"),
        ({"mit", "own"}, "", "own"),
        ({"mit", "apache-2.0"}, "", "own"),
        ({"mit", "cc-by-sa-4.0"}, "", "cc-by-sa-4.0"),
        ({"llama3.1", "cc-by-sa-4.0", "mit"}, "", "llama3.1"),
        ({"llama3.1", "llama3.3"}, "llama3.1", "llama3.1"),
    ],
)
def test_what_binds_the_whole_governs_and_else_the_owner_chooses(inherited: set[str], stated: str, expected: str):
    assert governing_licence(inherited, stated).id == expected


@pytest.mark.parametrize(
    ("inherited", "stated", "error"), [({"llama3.1"}, "MIT", "inherits llama3.1"), (set(), "house rules", "one of")]
)
def test_a_licence_that_cannot_be_given_is_refused(inherited: set[str], stated: str, error: str):
    with pytest.raises(ConfigError, match=error):
        governing_licence(inherited, stated)
