"""What is wrong with data is told when it is read, with numbers, examples and the setting that removes it."""

import json
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from puna.corpus.ingest.checks.near_duplicates import THRESHOLD, NearDuplicates, similarity
from puna.data.shards import read_rows
from puna.evaluation.release.facts import read_lineage
from puna.evaluation.release.overlap.leaks import find_leaks
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError

Row = dict[str, Any]
LONG = "Could you please tell me which of your two branches is open on the second Sunday in December"


class Ingested(NamedTuple):
    """The rows and rejected rows of a dataset, its run_findings.json, and the lines of its log."""

    rows: list[Row]
    rejected: list[Row]
    told: dict[str, Any]
    log: str

    def codes(self) -> list[str]:
        return [finding["code"] for finding in self.told["findings"]]

    def finding(self, code: str) -> dict[str, Any]:
        return next(finding for finding in self.told["findings"] if finding["code"] == code)


@pytest.fixture
def ingest(tmp_path: Path, perform_stage: Callable[..., bool]) -> Callable[..., Ingested]:
    """Return a function that ingests rows of conversations from train.jsonl and reads everything that comes of it."""

    def ingest_rows(rows: list[Row], *, format: str = "records", **settings: Any) -> Ingested:
        write_rows(tmp_path / "raw" / "train.jsonl", rows)
        out = tmp_path / "out"
        perform_stage("ingest", out, source=str(tmp_path / "raw"), format=format, **settings)
        kind = "preferences" if format == "preferences" else "conversations"
        kept = list(read_rows(out / f"{kind}.jsonl"))
        told = json.loads((out / "run_findings.json").read_text())
        log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
        return Ingested(kept, list(read_rows(out / "rejected.jsonl")), told, log)

    return ingest_rows


def write_rows(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dialogue(*texts: str, system: str = "", **more: Any) -> Row:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + messages, **more}


def various(count: int) -> list[Row]:
    """Questions and answers that have nothing in common."""
    source = random.Random(1)

    def words() -> str:
        return " ".join("".join(source.choices("abcdefghijklm", k=6)) for _ in range(9))

    return [dialogue(words(), words()) for _ in range(count)]


def test_data_without_a_fault_have_no_finding(ingest: Callable[..., Ingested]):
    found = ingest(various(40))
    assert found.codes() == [] and not found.rejected and len(found.rows) == 40
    assert "  no two of 40 answers are equal" in found.log
    assert found.told["most_frequent_answers"]["conversations"]["share"] == 1 / 40


# Equal answers


def test_six_hundred_equal_answers_are_told_with_number_example_and_remedy(ingest: Callable[..., Ingested]):
    rows = [dialogue(f"{n} {LONG}?", "Sure." if n % 2 else " sure") for n in range(600)]
    found = ingest(rows)
    finding = found.finding("answers-equal")
    assert (finding["count"], finding["total"], finding["share"]) == (600, 600, 1.0)
    assert finding["seen"].startswith("600 of 600 answers (100.0%) are 'sure', first train.jsonl row 1")
    assert "max_equal_answers = 10" in finding["remedy"] and finding["examples"][0]["place"] == "train.jsonl row 1"
    assert "answers-equal: 600 of 600 answers (100.0%)" in found.log


def test_the_cap_on_equal_answers_keeps_the_first_and_rejects_the_others_by_name(ingest: Callable[..., Ingested]):
    rows = [row for pair in zip(various(60), equal_rows(60), strict=True) for row in pair]
    found = ingest(rows, max_equal_answers=5)
    assert len(found.rows) == 65 and "answers-equal" not in found.codes()
    assert [row["place"] for row in found.rejected] == [f"train.jsonl row {2 * n}" for n in range(6, 61)]
    assert found.rejected[0]["row"]["messages"] == rows[11]["messages"]
    assert {row["reason"] for row in found.rejected} == {"more than max_equal_answers = 5 rows have this answer"}
    assert "  most frequent answer: 'Sure.', 5 of 65 (7.7%)" in found.log
    assert "65 conversations, 55 rejected" in found.log and "rejected 55: more than max_equal_answers = 5" in found.log


def equal_rows(count: int) -> list[Row]:
    return [dialogue(f"Question {n} about {n * n}?", "Sure.") for n in range(count)]


def test_a_farewell_that_many_dialogues_end_with_is_no_equal_answer(ingest: Callable[..., Ingested]):
    rows = [dialogue(*(message["content"] for message in row["messages"]), "No, thanks.", "Goodbye!", "Wait", other)
            for row, other in zip(various(30), "abcdefghijklmnopqrstuvwxyzäöüß", strict=True)]  # fmt: skip
    found = ingest(rows, max_equal_answers=2)
    assert len(found.rows) == 30 and "answers-equal" not in found.codes()


def test_calls_of_a_tool_are_neither_empty_nor_equal_answers(ingest: Callable[..., Ingested]):
    call = {"type": "function", "function": {"name": "find_order", "arguments": {"order": "1"}}}
    rows = various(20)
    for row in rows:
        row["messages"][1] = {"role": "assistant", "content": "", "tool_calls": [call]}
    found = ingest(rows, max_equal_answers=1, drop_empty=True)
    assert len(found.rows) == 20 and found.codes() == []


def test_the_chosen_answers_of_preferences_are_counted(ingest: Callable[..., Ingested]):
    rows = [{"prompt": f"{n}?", "chosen": "Of course.", "rejected": f"No {n}."} for n in range(20)]
    found = ingest(rows, format="preferences")
    assert found.finding("answers-equal")["seen"].startswith("20 of 20 answers (100.0%) are 'Of course.'")
    assert len(ingest(rows, format="preferences", max_equal_answers=3).rows) == 3


# Empty answers


def test_empty_answers_are_left_out_or_told_on_request(ingest: Callable[..., Ingested]):
    rows = [*various(18), dialogue("Open?", " \n"), dialogue("Closed?", "")]
    finding = ingest(rows, drop_empty=False).finding("answers-empty")
    assert (finding["count"], finding["total"]) == (2, 20) and "drop_empty = true" in finding["remedy"]
    assert "first train.jsonl row 19: 'Open?'" in finding["seen"]
    found = ingest(rows)
    assert [row["place"] for row in found.rejected] == ["train.jsonl row 19", "train.jsonl row 20"]
    assert len(found.rows) == 18 and "answers-empty" not in found.codes()


# Duplicates

TWICE = [
    dialogue(f"{LONG}?", "The one at the harbour is open from ten.", id="a"),
    dialogue(f"{LONG}?", "The one at the harbour is open from ten.", id="b", rank=3),
    dialogue(f"{LONG.upper()} ...", "the one at the harbour is open from ten!", id="c"),
]


def test_exact_and_near_duplicates_are_told_apart_and_left_out_apart(ingest: Callable[..., Ingested]):
    rows = [*various(10), *TWICE]
    found = ingest(rows)
    exact, near = found.finding("data-duplicated"), found.finding("data-near-duplicated")
    assert (exact["count"], near["count"]) == (1, 1)
    assert exact["examples"][0]["place"] == "train.jsonl row 12" and exact["examples"][0]["id"] == "b"
    assert exact["examples"][0]["earlier"] == near["examples"][0]["earlier"] == "train.jsonl row 11"
    assert found.codes() == ["data-duplicated", "data-near-duplicated"]
    assert [row["id"] for row in ingest(rows, drop_duplicates="exact").rejected] == ["b"]
    found = ingest(rows, drop_duplicates="near")
    assert [row["id"] for row in found.rejected] == ["b", "c"] and found.codes() == []
    assert found.rejected[1]["reason"] == "nearly a copy of an earlier row: train.jsonl row 11"
    assert [row["id"] for row in found.rows[-1:]] == ["a"]


PAGE = "The harbour branch is open from ten. " * 20


@pytest.mark.parametrize(
    "rows",
    [
        [
            dialogue(f"Where is {what}?", f"On floor {n}.", system=PAGE)
            for n, what in enumerate(("milk", "tea", "soap"))
        ],
        [dialogue("Where is the milk?", "On floor two.", system=page) for page in (PAGE, "Milk: floor two.")],
        [dialogue(f"Please find order {n}?", f"Order {n} is parcel {7 * n}.") for n in range(40_000, 40_020)],
        [dialogue(f"{LONG}?", answer) for answer in ("The one at the harbour.", "Neither of them, I am afraid.")],
    ],
    ids=["one page, many questions", "one question, two pages", "a template with numbers", "two answers"],
)
def test_rows_that_share_a_page_a_question_or_a_template_are_no_near_duplicates(
    ingest: Callable[..., Ingested], rows: list[Row]
):
    found = ingest([*various(5), *rows], drop_duplicates="near")
    assert len(found.rows) == 5 + len(rows)


def test_a_question_with_two_answers_is_told(ingest: Callable[..., Ingested]):
    found = ingest([*various(5), dialogue("Open today?", "Yes, we are."), dialogue("open today", "No.")])
    finding = found.finding("answers-differ")
    assert finding["count"] == 1 and finding["examples"][0]["earlier"] == "train.jsonl row 6"


def test_every_near_pair_that_comparing_all_with_all_finds_is_proposed():
    source = random.Random(0)
    rows = [[f"w{source.randrange(40)}" for _ in range(source.randrange(1, 60))] for _ in range(60)]
    for row in list(rows):
        near = list(row)
        for _ in range(source.randrange(3)):
            near[source.randrange(len(near))] = "other"
        rows.append(near)
    rows.append([])
    sought = NearDuplicates()
    for index, words in enumerate(rows):
        sought.add(index, words)
    proposed = {pair for pair in sought.pairs() if similarity(rows[pair[0]], rows[pair[1]]) >= THRESHOLD}
    pairs = ((later, earlier) for earlier, later in combinations(range(len(rows) - 1), 2))
    similar = {pair for pair in pairs if similarity(rows[pair[0]], rows[pair[1]]) >= THRESHOLD}
    # Of several rows that are alike only the first is named, so the later rows are compared.
    assert len(similar) > 20 and {later for later, _ in similar} == {later for later, _ in proposed}
    again = NearDuplicates()
    for index, words in enumerate(rows):
        again.add(index, words)
    assert list(again.pairs()) == list(sought.pairs())


# Held-out data


@pytest.fixture
def held_out(tmp_path: Path, perform_stage: Callable[..., bool]) -> Path:
    """A dataset of one long question, one short one, and one dialogue of two turns."""
    rows = [
        dialogue(f"{LONG}?", "The one at the harbour."),
        dialogue("Open today?", "Yes, until six."),
        dialogue("Hello", "Hi, how can I help?", "Where is parcel 48151?", "At the station."),
    ]
    write_rows(tmp_path / "held" / "rows.jsonl", rows)
    perform_stage("ingest", tmp_path / "held_out", source=str(tmp_path / "held"), format="records", licence="CC BY 4.0")
    return tmp_path / "held_out"


def test_rows_that_hold_a_held_out_question_are_left_out_with_the_place_of_both(
    ingest: Callable[..., Ingested], held_out: Path
):
    rows = [
        *various(5),
        dialogue(f"Hi! {LONG.lower()}", "Both of them.", "Thanks.", "Welcome."),  # long, in the middle of another text
        dialogue("open TODAY", "No."),  # short, but the whole prompt
        dialogue("Open today?", "Yes, until six.", system="You are a bakery."),  # asked of somebody else
        dialogue("Hello", "Hi there!", "Open on Sundays?", "No."),  # begins alike, asks something else
        dialogue("Is anything open today at all?", "Yes."),
    ]
    found = ingest(rows, apart_from=[str(held_out)])
    reasons = {row["place"]: row["reason"] for row in found.rejected}
    assert reasons == {
        "train.jsonl row 6": "overlaps with held-out data: held_out/conversations.jsonl row 1",
        "train.jsonl row 7": "overlaps with held-out data: held_out/conversations.jsonl row 2",
    }
    assert len(found.rows) == 8 and "rejected 2: overlaps with held-out data" in found.log
    assert "looked for 4 held-out questions: 2 by their words" in found.log
    assert "; 1 of these only beside the answer or as a whole prompt)" in found.log
    assert "2 of too few words only where the whole prompt is the same" in found.log


def test_held_out_rows_may_stand_in_a_raw_file_or_as_questions_of_a_task(
    ingest: Callable[..., Ingested], tmp_path: Path
):
    asked = {"messages": [{"role": "user", "content": f"{LONG}?"}]}
    question = {"id": "1", "group": "", "conversation": asked, "expected": {"contains": "harbour"}, "grade": "contains"}
    odd = {"prompt": 7, "messages": "none", "note": [LONG]}
    row = dialogue(f"{LONG}?", "The one at the harbour.")
    for name, held in (("questions", question), ("raw", row), ("odd", odd), ("unanswered", asked)):
        path = write_rows(tmp_path / f"{name}.jsonl", [held])
        found = ingest([*various(3), row], apart_from=[str(path)])
        assert [each["place"] for each in found.rejected] == ["train.jsonl row 4"], name
        assert found.rejected[0]["reason"].endswith(f"{name}.jsonl row 1")


def test_held_out_data_that_are_not_there_are_refused(ingest: Callable[..., Ingested], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"apart_from has .*empty; expected a dataset"):
        ingest(various(3), apart_from=[str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match=r"drop_duplicates = 'all'"):
        ingest(various(3), drop_duplicates="all")


def test_held_out_data_are_no_training_data_and_pass_on_no_licence(
    ingest: Callable[..., Ingested], held_out: Path, tmp_path: Path, perform_stage: Callable[..., bool]
):
    """The gate reads the lineage: without this the held-out set itself would count as learned from."""
    ingest([*various(30), *list(read_rows(held_out / "conversations.jsonl"))], apart_from=[str(held_out)])
    assert artifact.read_manifest(tmp_path / "out").licences == ["unknown"]
    assert artifact.read_manifest(held_out).licences == ["cc-by-4.0"]
    perform_stage("tokenizer", tmp_path / "tokenizer", data=[str(tmp_path / "out")], vocab_size=600)
    asked = {"messages": [{"role": "user", "content": f"{LONG}?"}]}
    row = {"task": "held_out", "id": "1", "group": "", "conversation": asked, "expected": {}}
    leaks = find_leaks(read_lineage(tmp_path / "tokenizer"), [row], n=13, share=0.5)
    assert (leaks.datasets, leaks.measured, leaks.unread, leaks.report.found) == (["out"], ["held_out"], [], [])


# What stays


def test_the_rows_that_stay_are_the_same_bytes_and_findings_count_in_no_hash(
    ingest: Callable[..., Ingested], tmp_path: Path
):
    rows = [dialogue("Öffnet ihr?", "日曜日 \ud83d", metadata={"n": 1.5}), *various(3)]
    ingest(rows)
    before = (tmp_path / "out" / "conversations.jsonl").read_bytes()
    first = artifact.read_manifest(tmp_path / "out")
    ingest([*rows, rows[0]], drop_duplicates="exact")
    assert (tmp_path / "out" / "conversations.jsonl").read_bytes() == before
    assert "run_findings.json" in first.files and "run_findings.json" in artifact.read_manifest(tmp_path / "out").files
    ingest(rows, drop_duplicates="exact")
    assert artifact.read_manifest(tmp_path / "out").content_hash == first.content_hash
    assert not list((tmp_path / "out").glob("*.kept"))


def test_settings_that_leave_nothing_are_refused(ingest: Callable[..., Ingested], held_out: Path):
    with pytest.raises(DataError, match=r"none of 1 rows is left.*overlaps with held-out data"):
        ingest([dialogue("Open today?", "Yes.")], apart_from=[str(held_out)])


def test_what_could_not_be_read_is_a_finding_behind_graver_ones(ingest: Callable[..., Ingested]):
    found = ingest([*equal_rows(20), {"title": "x"}, {"messages": []}], max_equal_answers=15)
    assert found.codes() == ["answers-equal", "rows-rejected"]
    finding = found.finding("rows-rejected")
    assert (finding["count"], finding["total"]) == (2, 22)
    assert "2 of 22 records (9.1%) could not be used, first train.jsonl:21: a row has neither" in finding["seen"]
    assert found.told["reasons"]["more than max_equal_answers = 15 rows have this answer"] == 5
