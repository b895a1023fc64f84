"""Files of human labels: the verdict on an answer, reviewers who disagree, faults in a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.evaluation.tasks.labels import Label, Labels, read_labels
from puna.pipeline.errors import DataError

NINE = {"role": "assistant", "content": "At nine."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"order": "48151", "page": 1}}}],
}


def line(**changes: Any) -> str:
    row = {"task": "shop", "id": "7/2", "answer": NINE, "right": True, "reviewer": "ada", "at": "2026-12-01T09:30:00Z"}
    return json.dumps({name: value for name, value in (row | changes).items() if value is not ...}) + "\n"


def read(tmp_path: Path, *texts: str) -> Labels:
    paths = [tmp_path / f"labels {number}.jsonl" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return read_labels(paths)


def test_a_label_belongs_to_one_answer_of_one_question(tmp_path: Path):
    labels = read(tmp_path, line() + line(answer=CALL, right=False))
    reordered = {"tool_calls": CALL["tool_calls"], "content": "", "role": "assistant"}
    assert labels.verdict("shop", "7/2", NINE) is True
    assert labels.verdict("shop", "7/2", reordered) is False
    assert labels.verdict("shop", "7/3", NINE) is None
    assert labels.verdict("desk", "7/2", NINE) is None
    assert labels.verdict("shop", "7/2", {**NINE, "content": "At nine"}) is None
    assert len(labels) == 2


def test_an_answer_that_reviewers_disagree_about_has_no_verdict(tmp_path: Path):
    labels = read(tmp_path, line() + line(reviewer="eve"), line(reviewer="bob", right=False))
    assert labels.verdict("shop", "7/2", NINE) is None
    (disagreement,) = labels.disagreements
    assert (disagreement.id, disagreement.right, disagreement.wrong) == ("7/2", ("ada", "eve"), ("bob",))


def test_the_latest_label_of_a_reviewer_counts_whatever_the_order_of_the_files(tmp_path: Path):
    late = line(right=False, at="2026-12-01T12:00:00+01:00")
    early = line(right=True, at="2026-12-01T10:59:59Z")
    for texts in ((late, early), (early, late), (late + early,)):
        labels = read(tmp_path, *texts)
        assert labels.verdict("shop", "7/2", NINE) is False
        assert not labels.disagreements
    same_second = read(tmp_path, line(right=False) + line(right=True))
    assert same_second.verdict("shop", "7/2", NINE) is True


def test_a_line_cut_off_while_it_was_written_is_passed_over(tmp_path: Path):
    for end in range(1, len(line()) - 2):
        labels = read(tmp_path, line() + line(id="7/3")[:end])
        assert [label.id for label in labels] == ["7/2"]
    assert len(read(tmp_path, line() + "\n" + line(id="7/3").rstrip())) == 2


def test_a_label_survives_writing_and_reading(tmp_path: Path):
    label = Label("shop", "7/2", CALL, False, "ada", "2026-12-01T09:30:00+00:00", "mine", "base")
    assert list(read(tmp_path, json.dumps(label.to_json()) + "\n")) == [label]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (line() + "{\n" + line(), "row 2 is not JSON"),
        (line() + "[1]\n", "row 2 is a list"),
        (line(right=...), "row 1 lacks 'right'"),
        (line(right=1), "right is int"),
        (line(answer="At nine."), "answer is str"),
        (line(answer={"role": "user", "content": "?"}), "no assistant message"),
        (line(rihgt=True), "unknown field 'rihgt'"),
        (line(reviewer=""), "reviewer is empty"),
        (line(at="yesterday"), "at = 'yesterday'"),
        (line(at="2026-12-01T09:30:00"), "UTC offset"),
        ("\xff", "row 1"),
    ],
)
def test_a_fault_is_named_with_file_and_row(tmp_path: Path, text: str, told: str):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(text.encode("latin-1") + b"\n")
    with pytest.raises(DataError) as raised:
        read_labels([path])
    assert str(path) in str(raised.value) and told in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_labels([tmp_path / "none.jsonl"])
