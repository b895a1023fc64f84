"""The gate: what it lets through and what it stops, rule by rule; how often chance fools it; what its pages hold."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.data.shards import read_rows, write_jsonl
from puna.evaluation.evaluate.evaluate import Config as EvaluateConfig
from puna.evaluation.evaluate.slices import score
from puna.evaluation.release.paired_comparison import Outcome, PairedComparison
from puna.evaluation.scores import EvaluatedModel
from puna.evaluation.tasks.intervals import Interval, difference_interval
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.pipeline.errors import ArtifactError, ConfigError, ReceiptError
from puna.pipeline.registry.registry import follow, promote, roll_back
from puna.serving.serve import open_served

PAGE = "The {n} lamp costs {n} euros and weighs {n} g, and the warranty of the {n} lamp lasts for {n} years and a day."


def question(n: int) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": f"Answer from this page. {PAGE.format(n=n)}"},
        {"role": "user", "content": f"What does the {n} lamp cost?"},
    ]
    expected = {"contains": [f"{n} euros"]}
    return {"id": f"q{n}", "group": "", "conversation": {"messages": messages}, "expected": expected}


def write_artifact(path: Path, kind: str, stage: str, fill: Callable[[Path], object], **changes: Any) -> Path:
    """Write an artifact as a stage would, made of `inputs` by role."""
    inputs = {
        role: {
            "path": str(Path("..") / source.relative_to(path.parent)),
            "kind": artifact.read_manifest(source).kind,
            "hash": artifact.content_hash(source),
        }
        for role, source in changes.pop("inputs", {}).items()
    }
    settings: dict[str, Any] = {"config": {}, "licences": ["own"], **changes}
    with artifact.writing(path) as partial:
        fill(partial)
        artifact.commit(partial, path, Manifest(kind=kind, stage=stage, key="k", inputs=inputs, files={}, **settings))
    return path


class House:
    """A folder in which models, data and evaluations can be made quickly, and one release judged."""

    def __init__(self, path: Path, checkpoint: Path, perform: Callable[..., bool]):
        self.path, self.source, self.perform = path, checkpoint, perform
        self.dataset("data", [f"Lamp {n} is sold out." for n in range(5)])

    def dataset(self, name: str, texts: list[str], **changes: Any) -> Path:
        rows = [{"text": text, "id": str(n)} for n, text in enumerate(texts)]
        return write_artifact(
            self.path / name, "dataset", "ingest", lambda at: write_jsonl(at / "documents.jsonl", rows), **changes
        )

    def model(self, name: str, *, receipts: tuple[Receipt, ...] = (), stage: str = "sft", **inputs: Path) -> Path:
        def fill(at: Path) -> None:
            shutil.copytree(self.source, at, dirs_exist_ok=True)
            (at / "generation_config.json").write_text(json.dumps({"name": name}))
            if stage == "import":
                (at / "origin.json").write_text(json.dumps({"hub": "", "commit": ""}))
            for receipt in receipts:
                receipt.save(at)

        inputs = inputs or {"data.0": self.path / "data"}
        return write_artifact(self.path / name, "checkpoint", stage, fill, inputs=inputs)

    def scores(
        self, name: str, nulls: list[float] | None = None, unjudged: int = 0, left_out: int = 0, **answered: list[float]
    ) -> Path:
        """Write an evaluation in which each model, by its folder's name, got these scores, a question each.

        `nulls` are the scores of a null model: all wrong if not stated. The content of the first `unjudged` answers was
        not judged. `left_out` more questions were not asked.
        """
        everyone = [
            EvaluatedModel(
                model,
                [self.row(n, value) | {"judged": n >= unjudged} for n, value in enumerate(values)],
            )
            for model, values in answered.items()
        ]

        def fill(at: Path) -> None:
            (at / "scores.json").write_text(json.dumps(score(everyone) | {"left_out": left_out}))
            speed = {"weight_bytes": 2_000_000, "generated_tokens_per_s": 500.0}
            (at / "speed.json").write_text(json.dumps({answers.name: speed for answers in everyone}))
            constant = [0.0] * len(everyone[0].rows) if nulls is None else nulls
            null = {"name": "constant", "description": "answers every question alike", "scores": constant}
            (at / "null_models.json").write_text(json.dumps({"models": [null]}))
            for answers in everyone:
                write_jsonl(at / f"conversations-{answers.name}.jsonl", answers.rows)

        inputs = {f"checkpoints.{model}": self.path / model for model in answered}
        config = {"tasks": ["x/shop"], "temperature": 0.0}
        return write_artifact(self.path / name, "scores", "evaluate", fill, inputs=inputs, config=config)

    def row(self, n: int, value: float) -> dict[str, Any]:
        return {"task": "shop", **question(n), "grade": "contains", "parts": {}, "score": value}

    def judge(self, **settings: Any) -> Path:
        """Release the model "mine"; ReceiptError tells a NO-GO."""
        roles = ("scores", "general", "base", "start", "teacher", "in_use")
        given = {role: str(self.path / settings.pop(role)) for role in roles if role in settings}
        told = {"checkpoint": str(self.path / "mine"), "name": "Feather", **given, **settings}
        self.perform("release", self.path / "out", **told)
        return self.path / "out"

    def refused(self, match: str, **settings: Any) -> str:
        """Judge, expect a NO-GO with this reason and no model, and return the page."""
        with pytest.raises(ReceiptError, match=match):
            self.judge(**settings)
        assert not list((self.path / "out").glob("*.safetensors")) and not (self.path / "out" / "README.md").exists()
        page = (self.path / "out" / "decision.md").read_text()
        assert page.startswith("# NO-GO: ") and json.loads((self.path / "out" / "release.json").read_text())["gate"]
        return page


@pytest.fixture
def house(tmp_path: Path, checkpoint_path: Path, perform_stage: Callable[..., bool]) -> House:
    """Models "base" and "mine", and scores of both: 30 and 70 of 100."""
    house = House(tmp_path, checkpoint_path, perform_stage)
    house.model("base")
    house.model("mine")
    house.scores("scores", base=right(30), mine=right(70))
    return house


def right(number: int, of: int = 100) -> list[float]:
    return [1.0] * number + [0.0] * (of - number)


# Rules


@pytest.mark.parametrize("scores", [[float("nan")] * 100, [-1.0] * 100, [5.0] * 100, ["a"] * 100, [0.0] * 99, []])
def test_null_models_that_cannot_be_read_are_an_error_and_no_go(house: House, scores: list[Any]):
    house.scores("odd", nulls=scores, base=right(30), mine=right(70))
    with pytest.raises(ArtifactError, match=r"null_models\.json.*Evaluate again"):
        house.judge(scores="odd", base="base")


def test_a_model_that_meets_every_demand_goes_out_with_page_card_and_record(house: House):
    house.model("old")
    house.model("teacher")
    house.scores("scores", base=right(30), mine=right(70), teacher=right(72), old=right(60))
    house.scores("general", base=right(50), mine=right(50), old=right(50))
    gate = {"usd_per_hour": 1.8, "max_megabytes": 2.0, "min_tokens_per_s": 500, "max_usd_per_million": 1.0}
    settings = {"teacher_margin": 0.08, "general_margin": 0.04}
    told = {"scores": "scores", "general": "general", "base": "base", "teacher": "teacher", "in_use": "old"}
    out = house.judge(**told, gate={**gate, **settings})
    page = (out / "decision.md").read_text()
    assert page.startswith(
        "# GO: 40.0 points better than the base model; 2.0 points below the teacher (8.0 are allowed); 10.0"
    )
    row = "| this model | 70.0 % (60.4 to 78.1) of 100 | 50.0 % (40.4 to 59.6) of 100 | 2.0 MB | 500 tokens/s |"
    assert row in page and "| this model | 1.00 USD |" in page and "at 1.80 USD an hour" in page
    assert "usd_per_hour" not in page
    assert (out / "model.safetensors").exists() and "`GO: 40.0 points" in (out / "README.md").read_text()
    record = json.loads((out / "release.json").read_text())["gate"]
    assert record["decision"] == "GO" and not record["reasons"] and len(record["comparisons"]) == 5
    assert artifact.read_receipts(out)[0].held


def test_a_model_that_is_not_better_than_its_base_is_stopped(house: House):
    house.scores("scores", base=right(70), mine=right(70))
    page = house.refused(
        r"as good as the base model on the task .*has to be better by more than 0\.0", base="base", scores="scores"
    )
    assert "| Good enough at the task | not passed |" in page
    house.scores("scores", base=right(70), mine=right(80))
    house.refused(r"better by more than 10\.0", base="base", scores="scores", gate={"base_gain": 0.1})
    house.judge(base="base", scores="scores")


@pytest.mark.parametrize(("role", "setting"), [("teacher", "teacher_margin"), ("in_use", "in_use_margin")])
def test_a_model_that_falls_behind_by_more_than_the_margin_is_stopped(house: House, role: str, setting: str):
    house.model("other")
    house.scores("scores", other=right(90), mine=right(70))
    told = {role: "other", "scores": "scores"}
    house.refused(
        r"20\.0 points below the .* on the task .*, where at most 10\.0 below is allowed", **told, gate={setting: 0.1}
    )
    out = house.judge(**told, gate={setting: 0.3})
    assert "| above -30.0 | met |" in (out / "decision.md").read_text()


def test_a_model_that_forgot_is_stopped_and_its_teacher_is_not_asked_of_it(house: House):
    house.model("teacher")
    house.scores("general", base=right(80), mine=right(50), teacher=right(99))
    told = {"scores": "scores", "general": "general", "base": "base"}
    house.refused(r"30\.0 points below the base model on the general suite", **told)
    house.scores("general", base=right(50), mine=right(50), teacher=right(99))
    house.scores("scores", base=right(30), mine=right(70), teacher=right(70))
    out = house.judge(**told, teacher="teacher", gate={"general_margin": 0.04})
    assert "| not demanded |" in (out / "decision.md").read_text()


def test_too_few_questions_are_told_with_the_number_that_would_do(house: House):
    house.model("old")
    house.scores("scores", old=right(21, 30), mine=right(21, 30))
    page = house.refused(r"30 questions are too few to tell, about [\d,]+ of this kind", in_use="old", scores="scores")
    assert "too few questions to tell" in page


def test_scores_of_another_checkpoint_than_the_one_released_are_no_scores(house: House):
    house.model("mine", receipts=(Receipt("kl", "x", 0, 1, True),))  # trained again since
    house.refused("the scores of the task are of other checkpoints", base="base", scores="scores")


def test_models_that_were_not_asked_and_lonely_or_missing_scores_stop_it(house: House):
    house.model("other")
    house.refused("the teacher, other, is missing from the evaluation of the task", teacher="other", scores="scores")
    house.refused("compared with no other model", scores="scores")
    house.refused("quality on the task was not measured", base="base")


def test_a_model_that_was_not_compared_with_the_open_model_it_was_made_from_is_stopped(house: House):
    house.model("open", stage="import", source=house.model("llama-files", stage="release"))
    house.model("pruned", stage="prune", checkpoint=house.path / "open")
    house.model("mine", start=house.path / "pruned")
    house.scores("scores", pruned=right(10), mine=right(70), open=right(40))
    house.refused("not compared with the open model you started from, llama-files", base="pruned", scores="scores")
    out = house.judge(start="pruned", base="open", scores="scores")
    headline = (out / "decision.md").read_text().splitlines()[0]
    assert "60.0 points better than the same model without your data" in headline
    assert "30.0 points better than the open model you started from" in headline


def test_a_model_that_is_no_better_than_without_the_data_is_stopped_however_good_it_is(house: House):
    house.model("untrained")
    house.scores("scores", base=right(30), untrained=right(70), mine=right(70))
    house.refused("as good as the same model without your data", start="untrained", base="base", scores="scores")


@pytest.mark.parametrize("role", ["base", "teacher"])
def test_answers_whose_content_nobody_judged_decide_nothing_and_stop_it(house: House, role: str):
    house.model("other")
    house.scores("scores", unjudged=30, mine=right(95), other=right(60))
    told = {role: "other", "scores": "scores"}
    page = house.refused(r"30 of 100 answers on the task were not judged for what they say", **told)
    assert "puna review" in page and "70 in 70 groups" in page  # the comparison rests on the others alone
    house.refused("30 of 100 answers", **told, gate={"max_unjudged": 0.29})
    out = house.judge(**told, gate={"max_unjudged": 0.3})
    assert "70 of 100 answers were judged for what they say" in (out / "decision.md").read_text().splitlines()[0]


def test_the_first_line_counts_questions_that_were_left_out_because_nothing_could_judge_them(house: House):
    house.scores("scores", left_out=1234, base=right(30), mine=right(70))
    page = (house.judge(scores="scores", base="base") / "decision.md").read_text()
    more = "1,234 more questions were left out because nothing could judge them"
    told = f"all 100 answers were judged for what they say; {more}"
    assert told in page.splitlines()[0] and told in outside_folds(page)
    house.scores("scores", base=right(30), mine=right(70))
    assert "left out" not in (house.judge(scores="scores", base="base", description="b") / "decision.md").read_text()


def test_answers_that_a_judge_left_undecided_are_not_judged(house: House, monkeypatch: pytest.MonkeyPatch):
    plain = house.row

    def row(n: int, value: float) -> dict[str, Any]:
        reason = "undecided: the two orders disagree" if n < 12 and not value else "the same"
        return plain(n, value) | {"judged_by": "judge", "reason": reason}

    monkeypatch.setattr(house, "row", row)
    house.scores("scores", base=[0.0] * 40 + [1.0] * 60, mine=right(95))
    told = {"base": "base", "scores": "scores"}
    house.refused("12 of 100 answers on the task were not judged", **told)
    assert house.judge(**told, gate={"max_unjudged": 0.12})


def test_an_exam_of_words_that_nobody_judged_shows_nothing(house: House):
    house.scores("scores", unjudged=100, base=right(0), mine=right(100))
    page = house.refused("nothing is known of the base model on the task", base="base", scores="scores")
    assert "100 of 100 answers on the task were not judged" in page
    assert "exam-too-weak: no answer on the task was judged" in page
    # No figure of an answer that nobody judged: no score, no bar of 0 %, no comparison on 0 questions.
    assert "Could a model that knows nothing pass?" not in page and "0.0 %" not in page
    assert "0 of 0 questions" not in page and "Right answers on the task" not in page
    house.model("other")
    house.scores("scores", unjudged=100, base=right(0), other=right(50), mine=right(100))
    told = "nothing is known of the base model and the teacher on the task: no answer was judged"
    page = house.refused(told, base="base", teacher="other", scores="scores")
    assert page.splitlines()[0].count("nothing is known") == 1


def test_an_exam_that_a_model_that_knows_nothing_passes_stops_even_a_good_model(house: House):
    house.scores("scores", nulls=right(66), base=right(30), mine=right(70))
    told = {"base": "base", "scores": "scores"}
    page = house.refused(r"exam-too-weak: on the task a model that answers every question alike scores 66\.0 %", **told)
    assert "this one 70.0 %" in page
    house.scores("scores", nulls=right(40), base=right(30), mine=right(70))
    assert "30.0 points better than any model that knows nothing" in (house.judge(**told) / "decision.md").read_text()
    house.refused("not shown to be 29 points more", **told, gate={"null_margin": 0.29})


def test_an_evaluation_without_null_models_is_asked_for_again(house: House):
    house.scores("scores", base=right(30), mine=right(70))
    with_nulls, manifest = house.path / "scores", artifact.read_manifest(house.path / "scores")
    copy = house.path / "older"
    inputs = {role: house.path / role.removeprefix("checkpoints.") for role in manifest.inputs}

    def fill(at: Path) -> None:
        shutil.copytree(with_nulls, at, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        (at / "null_models.json").unlink()

    write_artifact(copy, "scores", "evaluate", fill, inputs=inputs, config=manifest.config)
    house.refused("has no null models; evaluate again with this version", base="base", scores="older")


def test_a_receipt_that_does_not_hold_anywhere_in_the_lineage_stops_it(house: House):
    house.model("first", receipts=(Receipt("kl", "x", 0.5, 0.02, False),))
    house.model("mine", start=house.path / "first")
    house.scores("scores", base=right(30), mine=right(70))
    page = house.refused(r"the receipt kl of first does not hold: 0\.5, at most 0\.02", base="base", scores="scores")
    assert "| first | kl | 0.5 | at most 0.02 | no |" in page


def test_test_questions_in_training_data_stop_it_and_are_listed(house: House):
    leaked = [f"{PAGE.format(n=n)} What does the {n} lamp cost? {n} euros." for n in (3, 4)]
    house.dataset("data", ["Nothing of it.", *leaked])
    for name in ("mine", "base"):
        house.model(name)
    house.scores("scores", base=right(30), mine=right(70))
    told = {"base": "base", "scores": "scores"}
    page = house.refused(
        "2 of 100 test questions and expected answers stand in the training data, as 'shop q3'", **told
    )
    assert "n = 13 words" in page and "| shop q4 |" in page and "data/documents.jsonl row 3 |" in page
    assert [row["name"] for row in read_rows(house.path / "out" / "overlaps.jsonl")] == ["shop q3", "shop q4"]
    page = (house.judge(**told, gate={"max_overlaps": 2}) / "decision.md").read_text()
    assert "| shop q3 |" in page and page.startswith("# GO")


def test_a_short_question_that_stands_in_the_training_data_word_for_word_is_found(house: House):
    asked = [{"role": "user", "content": "Where is my card?"}]
    house.row = lambda n, value: {  # pyright: ignore[reportAttributeAccessIssue]
        "task": "shop",
        **question(n),
        "grade": "contains",
        "parts": {},
        "score": value,
        **({"conversation": {"messages": asked}} if n == 7 else {}),
    }
    for words, is_found in (("where is my CARD", True), ("Where is my new card?", False)):
        answered = [{"role": "user", "content": words}, {"role": "assistant", "content": "Sure."}]
        rows = [{"messages": [*answered, {"role": "user", "content": "Thanks"}]}]
        write_artifact(
            house.path / "data",
            "dataset",
            "ingest",
            lambda at, rows=rows: write_jsonl(at / "conversations.jsonl", rows),
        )
        for name in ("mine", "base"):
            house.model(name)
        house.scores("scores", base=right(30), mine=right(70))
        told = {"base": "base", "scores": "scores", "description": words}
        if is_found:
            assert "| shop q7 |" in house.refused("1 of 100 test questions", **told)
        else:
            assert house.judge(**told)


def test_an_answer_that_people_give_to_many_questions_is_no_leak(house: House, monkeypatch: pytest.MonkeyPatch):
    usual = "Thank you for calling us today, one of my colleagues will ring you back within the next two hours."

    def row(n: int, value: float) -> dict[str, Any]:
        asked = question(n) | {"expected": {"reference": usual}}
        return {"task": "shop", **asked, "grade": "facts", "parts": {}, "score": value}

    monkeypatch.setattr(house, "row", row)
    house.dataset("data", ["Nothing of it.", f"Who repairs my bicycle? {usual}"])
    for name in ("mine", "base"):
        house.model(name)
    house.scores("scores", base=right(30), mine=right(70))
    assert house.judge(base="base", scores="scores")
    house.dataset("data", [f"{PAGE.format(n=3)} What does the 3 lamp cost? {usual}"])
    for name in ("mine", "base"):
        house.model(name)
    house.scores("scores", base=right(30), mine=right(70))
    house.refused("1 of 100 test questions", base="base", scores="scores", description="a")


def test_data_that_only_measured_is_not_looked_at_and_data_that_is_gone_stops_it(house: House):
    held_out = house.dataset("held_out", [f"{PAGE.format(n=n)} What does the {n} lamp cost?" for n in range(100)])
    house.model("first")
    house.model("mine", stage="quantize", **{"checkpoint": house.path / "first", "data.0": held_out})
    house.scores("scores", base=right(30), mine=right(70))
    told = {"base": "base", "scores": "scores"}
    page = (house.judge(**told) / "decision.md").read_text()
    assert "Only measured on, never learned from: held_out." in page
    shutil.rmtree(house.path / "data")
    house.refused("no search for test questions was possible in data, which is gone", **told, description="a")
    house.dataset("data", ["Other lines."])
    house.refused("was possible in data, which is changed", **told, description="b")


def test_what_an_imported_model_learned_from_elsewhere_is_told_and_stops_nothing(house: House):
    house.dataset("theirs", ["Other lines."])
    house.model("given", stage="release", **{"data.0": house.path / "theirs"})
    house.model("open", stage="import", source=house.path / "given")
    house.model("mine", **{"start": house.path / "open", "data.0": house.path / "data"})
    house.scores("scores", open=right(30), mine=right(70))
    told = {"base": "open", "scores": "scores"}
    assert "in 6 rows of theirs, data." in (house.judge(**told) / "decision.md").read_text()
    shutil.rmtree(house.path / "theirs")
    page = (house.judge(**told, description="a") / "decision.md").read_text()
    assert page.startswith("# GO") and "an imported model learned from it before it came here: theirs." in page
    shutil.rmtree(house.path / "given")  # as if somebody else had published the model
    assert "given (checkpoint" in (house.judge(**told, description="b") / "README.md").read_text()


def test_an_import_of_ones_own_model_hides_no_data(house: House):
    house.model("tuned", **{"data.0": house.path / "data"})
    house.model("rounded", stage="import", source=house.path / "tuned")
    (house.path / "rounded" / "origin.json").write_text(json.dumps({"hub": "", "commit": ""}))
    house.model("mine", start=house.path / "rounded")
    house.scores("scores", base=right(30), mine=right(70))
    shutil.rmtree(house.path / "data")
    house.refused("was possible in data, which is gone", base="base", scores="scores")


def test_labels_preferences_and_what_a_teacher_learned_from_are_training_data(house: House):
    def fill(at: Path) -> None:
        asked = [{"role": "user", "content": PAGE.format(n=5) + " What does the 5 lamp cost?"}]
        answers = {key: [{"role": "assistant", "content": f"{key} euros"}] for key in ("chosen", "rejected")}
        write_jsonl(at / "preferences.jsonl", [{"prompt": asked, **answers}])

    preferences = write_artifact(house.path / "preferences", "dataset", "ingest", fill)
    label = [f"{PAGE.format(n=6)} What does the 6 lamp cost?"]
    labels = house.dataset("labels", label, inputs={"data.0": house.path / "data"})
    manifest = json.loads((labels / "manifest.json").read_text())
    (labels / "manifest.json").write_text(json.dumps({**manifest, "kind": "labels", "stage": "label"}))
    house.model("teacher", stage="dpo", **{"data.0": preferences})
    house.model("mine", stage="distill", labels=labels, teacher=house.path / "teacher")
    house.scores("scores", base=right(30), mine=right(70))
    page = house.refused("2 of 100 test questions", base="base", scores="scores")
    assert "preferences/preferences.jsonl row 1" in page and "labels/documents.jsonl row 1" in page


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_megabytes": 1.9}, r"its weights take 2\.0 MB, at most 1\.9 are allowed"),
        ({"min_tokens_per_s": 501}, "it writes 500 tokens/s, at least 501 are demanded"),
        ({"max_usd_per_million": 1}, "no price of the machine"),
        ({"max_usd_per_million": 1, "usd_per_hour": 3.6}, r"a million tokens cost 2\.00 USD, at most 1\.00 are"),
    ],
)
def test_a_model_beyond_the_limits_of_size_speed_and_cost_is_stopped(house: House, limits: dict, reason: str):
    house.refused(reason, base="base", scores="scores", gate=limits)


def test_unknown_terms_stop_it_with_a_page(house: House):
    house.model("mine", receipts=())
    write_artifact(
        house.path / "mine",
        "checkpoint",
        "sft",
        lambda at: shutil.copytree(house.source, at, dirs_exist_ok=True),
        licences=["unknown"],
    )
    house.scores("scores", base=right(30), mine=right(70))
    house.refused("the terms 'unknown' come from", base="base", scores="scores")


def test_every_reason_is_told_not_only_the_first(house: House):
    house.scores("scores", base=right(70), mine=right(30))
    page = house.refused(
        "points below the base model.*; its weights take", base="base", scores="scores", gate={"max_megabytes": 1}
    )
    assert page.splitlines()[0].count(";") >= 1


# Overrides


def test_an_override_stays_on_page_card_record_and_receipt(house: House):
    house.scores("scores", base=right(70), mine=right(69))
    reason = "The board wants it on Monday"
    out = house.judge(base="base", scores="scores", override={"task": reason, "limits": "not needed"})
    page, card = ((out / name).read_text() for name in ("decision.md", "README.md"))
    assert page.startswith("# GO, by an override: 'task' did not hold")
    assert f"overridden: {reason}" in page and f"overridden: {reason}" in card
    assert "| Good enough at the task | overridden |" in page and "not needed" not in page
    record = json.loads((out / "release.json").read_text())
    assert reason in record["gate"]["overrides"][0] and reason in record["exceptions"][0]
    receipt = next(each for each in artifact.read_receipts(out) if each.claim == "gate")
    assert receipt.held and reason in receipt.details["overrides"][0]


@pytest.mark.parametrize("override", [{"licences": "fine"}, {"task": " "}, {"everything": "why not"}])
def test_an_override_needs_a_rule_that_can_be_overridden_and_a_reason(house: House, override: dict[str, str]):
    with pytest.raises(ConfigError, match="a reason in words for a rule of scores, comparison"):
        house.judge(base="base", scores="scores", override=override)


# How often chance decides


def passes(difference: float, least: float, seed: int, *, num_groups: int, alike: float) -> bool:
    """Draw two models whose true scores differ by this much on grouped questions; tell whether the demand is met."""
    source = np.random.default_rng(seed)
    sizes = source.integers(1, 9, num_groups)
    level = source.beta(0.6 * (1 - alike) / alike, 0.4 * (1 - alike) / alike, num_groups)
    chance = np.repeat(0.15 + 0.7 * level, sizes)
    ours, theirs = source.random(sizes.sum()) < chance + difference, source.random(sizes.sum()) < chance
    groups = np.repeat(np.arange(num_groups), sizes).astype(str).tolist()
    interval = difference_interval(ours.astype(float).tolist(), theirs.astype(float).tolist(), groups)
    return PairedComparison("task", "base", "b", interval, least, len(ours), num_groups, 0, 0).outcome is Outcome.MET


@pytest.mark.parametrize(("difference", "least"), [(0.0, 0.0), (-0.1, -0.1)])
@pytest.mark.parametrize("num_groups", [20, 60])
def test_chance_lets_a_wrong_model_through_in_few_of_a_hundred_cases(difference: float, least: float, num_groups: int):
    num_passed = sum(passes(difference, least, seed, num_groups=num_groups, alike=0.3) for seed in range(600))
    assert num_passed / 600 <= 0.025 + 3 * (0.025 * 0.975 / 600) ** 0.5


def test_models_that_deserve_it_get_through():
    assert sum(passes(0.15, 0.0, seed, num_groups=100, alike=0.3) for seed in range(100)) >= 90
    assert sum(passes(0.0, -0.12, seed, num_groups=100, alike=0.3) for seed in range(100)) >= 80


@pytest.mark.parametrize(("mean", "least"), [(0.0, -0.02), (-0.03, -0.02), (0.04, 0.0), (-0.01, -0.03)])
def test_the_number_of_questions_that_is_told_decides(mean: float, least: float):
    def comparison(n: int) -> PairedComparison:
        half = 0.9 / n**0.5
        return PairedComparison("task", "base", "b", Interval(mean, mean - half, mean + half), least, n, n, 0, 0)

    small = comparison(100)
    assert small.outcome is Outcome.UNDECIDED and small.num_needed
    assert comparison(small.num_needed + 1).outcome in (Outcome.MET, Outcome.MISSED)
    assert comparison(small.num_needed // 2).outcome is Outcome.UNDECIDED


def test_a_gain_that_was_not_seen_is_not_a_matter_of_more_questions():
    worse = PairedComparison("task", "base", "b", Interval(-0.01, -0.2, 0.18), 0.0, 20, 20, 0, 0)
    assert worse.outcome is Outcome.MISSED and worse.num_needed is None


# The pages


class Page(HTMLParser):
    """Reads a page: its tags, what they hold, and that each is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_the_html_stands_alone_has_its_pictures_and_tells_what_the_markdown_tells(house: House):
    house.scores("general", base=right(50), mine=right(50))
    settings = {"scores": "scores", "general": "general", "base": "base", "gate": {"general_margin": 0.04}}
    out = house.judge(**settings, description="<script>alert(1)</script> & `code` | [a](b)")
    text, markdown = ((out / f"decision.{kind}").read_text() for kind in ("html", "md"))
    page = Page(text)
    assert not page.open
    assert page.texts["h1"][0].startswith("GO: ") and page.texts["title"][0] == page.texts["h1"][0]
    assert f"# {page.texts['h1'][0]}" == markdown.splitlines()[0]
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 3 and not {"script", "img", "link", "iframe", "a"} & set(names)
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in page.tags for key in attrs)
    headings = [line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")]
    assert headings == page.texts["h2"] and "What was not measured" in headings and "Licences" in headings
    assert "<script>alert(1)</script> & `code` | [a](b)" in page.texts["p"][0]
    assert "\\<script\\>" in markdown and "\\[a\\](b)" in markdown


SNAPSHOT = "0e9e39f249a16976918f6564b8830bc894c89659"


def outside_folds(page: str) -> str:
    """Return the Markdown of a page without its folds."""
    shown, depth = [], 0
    for line in page.splitlines():
        depth += line.startswith("<details")
        shown += [] if depth else [line]
        depth -= line == "</details>"
    assert depth == 0
    return "\n".join(shown)


@pytest.mark.parametrize("is_asked", [True, False])
def test_no_hash_stands_outside_the_folds_nor_in_the_headline(house: House, is_asked: bool):
    house.model(SNAPSHOT)
    others = {SNAPSHOT: right(30)} if is_asked else {"base": right(30)}
    house.scores("scores", mine=right(70), **others)
    if is_asked:
        page = (house.judge(scores="scores", base=SNAPSHOT) / "decision.md").read_text()
    else:
        page = house.refused("the base model, 0e9e39f2.*, is missing from", scores="scores", base=SNAPSHOT)
        assert page.startswith("# NO-GO: the base model, 0e9e39…, is missing from")
    assert SNAPSHOT in page and not re.search("[0-9a-f]{12}", outside_folds(page))
    receipt = next(each for each in artifact.read_receipts(house.path / "out") if each.claim == "gate")
    assert receipt.held == is_asked


def test_the_page_says_how_many_questions_could_be_looked_for_and_no_more(house: House):
    house.scores("scores", base=right(30), mine=right(70))
    page = (house.judge(scores="scores", base="base") / "decision.md").read_text()
    assert page.splitlines()[0].endswith("all 100 questions were looked for in the training data; none was found")
    short = [question(n) for n in range(100)]
    for each in short[30:]:
        each["conversation"]["messages"] = [{"role": "user", "content": f"What does it cost? {each['id']}"}]
    rows = {each["id"]: {**house.row(0, 1.0), **each} for each in short}
    house.row = lambda n, value: {**rows[f"q{n}"], "score": value}  # pyright: ignore[reportAttributeAccessIssue]
    house.scores("scores", base=right(30), mine=right(70))
    page = (house.judge(scores="scores", base="base", description="b") / "decision.md").read_text()
    told = "30 of 100 questions were long enough to be looked for in the training data"
    aside = ", 70 shorter ones only as a whole prompt or beside their right answers; none was found"
    assert page.splitlines()[0].endswith(told + aside)
    assert "30 of 100 questions were long enough to be looked for in the 5 rows" in outside_folds(page)
    for each in short[30:50]:  # nine words: a row counts only if it has the right answer too
        each["conversation"]["messages"] = [
            {"role": "user", "content": f"What does number {each['id']} of your list cost today?"}
        ]
        each["expected"] = {"contains": [f"{each['id']} euros"]}
    house.scores("scores", base=right(30), mine=right(70))
    page = (house.judge(scores="scores", base="base", description="d") / "decision.md").read_text()
    assert page.splitlines()[0].endswith(
        f"30 of 100 questions were long enough to be looked for in the training data{aside}"
    )
    assert f"5 rows of training data{aside}" in page
    for each in rows.values():
        each["conversation"]["messages"] = [{"role": "user", "content": f"Hello, {each['id']}!"}]
    house.scores("scores", base=right(30), mine=right(70))
    page = (house.judge(scores="scores", base="base", description="c") / "decision.md").read_text()
    assert "none of 100 questions was long enough" in page.splitlines()[0]
    assert "none was found" not in outside_folds(page)


def test_a_page_without_a_price_asks_for_it(house: House):
    page = outside_folds((house.judge(scores="scores", base="base") / "decision.md").read_text())
    assert "usd_per_hour = 1.80" in page and "| this model | 0.56 USD |" in page  # 500 tokens/s: 1e6 / 500 / 3600 h


def test_the_tables_of_the_markdown_are_whole_and_its_pictures_are_there(house: House):
    out = house.judge(scores="scores", base="base")
    lines = (out / "decision.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 15
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|")
    pictures = [line.split("](")[1].rstrip(")") for line in lines if line.startswith("![")]
    assert pictures == ["decision-task.svg", "decision-differences.svg"]
    assert all(Page((out / picture).read_text()).tags[0][0] == "svg" for picture in pictures)


# The way into use, and back


def test_a_release_is_promoted_served_compared_with_and_rolled_back(house: House):
    first = house.judge(scores="scores", base="base")
    registry = house.path / "registry"
    promote(first, registry)
    assert open_served(registry).name == "registry"
    asked = EvaluateConfig(checkpoints={"in_use": registry}, tasks=[house.path / "x"]).checkpoints
    assert asked == {"in_use": follow(registry)} and follow(registry) != registry
    second = house.judge(scores="scores", base="base", description="the second")
    before = follow(registry)
    promote(second, registry)
    assert follow(registry) != before
    roll_back(registry)
    assert follow(registry) == before
    house.scores("scores", base=right(90), mine=right(70))
    with pytest.raises(ReceiptError, match="NO-GO"):
        house.judge(scores="scores", base="base")
    with pytest.raises(ReceiptError, match="NO-GO: 20"):
        promote(house.path / "out", registry)
    assert follow(registry) == before
