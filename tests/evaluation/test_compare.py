"""`puna evaluate --compare`: real tiny models, of which the student was led astray by its teacher, and is told why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.cli import build_app
from puna.evaluation.evaluate.comparison_groups import find_groups
from puna.pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_picture")

SIZE = {"dim": 32, "hidden_dim": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
OPEN, RETURN, PARCEL = "We open at nine.", "Return it, please.", "The parcel is on its way."


def write(path: Path, ask: str, answer: str) -> Path:
    """Write rows to train on and, beside them in a folder of their own, questions with the same answer."""
    path.mkdir()
    said = [[{"role": "user", "content": f"{ask} {n}?"}, {"role": "assistant", "content": answer}] for n in range(90)]
    rows = [json.dumps({"id": str(n), "messages": messages}) for n, messages in enumerate(said)]
    (path / "conversations.jsonl").write_text("\n".join(rows[:60]) + "\n")
    expected = {"grade": "contains", "expected": {"contains": [answer]}}
    asked = [{"id": str(n), "conversation": {"messages": said[n][:1]}, **expected} for n in range(60, 90)]
    (path / "asked").mkdir()
    (path / "asked" / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)) + "\n")
    (path / "asked").rename(path.parent / f"{path.name}_questions")
    return path


@pytest.fixture(scope="module")
def family(perform_stage: Callable[..., bool], tokenizer_path: Path, tmp_path_factory: Any) -> Path:
    """A folder with a start model, and a plain model, a teacher and its student that come of it or beside it."""
    room = tmp_path_factory.mktemp("compare")
    write(room / "shop", "Where is my order", OPEN)
    write(room / "other", "Return", RETURN)
    write(room / "wrong", "Where is my order", PARCEL)
    settings = {"context": 128, "batch_tokens": 256, "steps": 30, "precision": "float32",
                "optim": {"lr": 0.02, "warmup_steps": 3}}  # fmt: skip
    new = {"size": SIZE, "tokenizer": str(tokenizer_path)}
    perform_stage("sft", room / "start", data=[str(room / "other")], **new, **settings)
    perform_stage("sft", room / "teacher", data=[str(room / "wrong")], **new, **settings)
    tuned = {**settings, "data": [str(room / "shop")], "start": str(room / "start"), "steps": 60}
    perform_stage("sft", room / "plain", **tuned)
    perform_stage("distill", room / "student", **tuned, teacher=str(room / "teacher"), teacher_weight=1.0)
    return room


def test_a_student_that_a_poor_teacher_led_astray_is_told_why(perform_stage: Callable[..., bool], family: Path):
    names = ("teacher", "student", "plain", "start")
    tasks = [str(family / f"{name}_questions") for name in ("shop", "other")]
    perform_stage(
        "evaluate", family / "scores", checkpoints={name: str(family / name) for name in names}, tasks=tasks,
        compare=True, general=["other_questions"], max_tokens=12,
    )  # fmt: skip
    (diagnosis,) = json.loads((family / "scores" / "diagnosis.json").read_text())
    assert {role: diagnosis[role] for role in names} == {name: name for name in names}
    found = {finding["code"]: finding for finding in diagnosis["findings"]}
    assert diagnosis["is_below"] and {"teacher-not-better", "forgot-general", "forgot-start"} <= set(found)
    assert found["teacher-not-better"]["seen"].startswith(
        "The teacher teacher is worse than plain on these questions: -"
    )
    report = (family / "scores" / "report.md").read_text()
    assert "## Why student is below" in report and "- student against plain: -" in report and ", worse" in report
    log = (family / ".runs" / "scores" / "log.txt").read_text()
    assert "teacher-not-better: The teacher teacher is worse" in log and "-> Tune the teacher" in log


def test_without_compare_nothing_is_said(perform_stage: Callable[..., bool], family: Path):
    settings = {"tasks": [str(family / "shop_questions")], "max_tokens": 2, "max_questions": 2}
    perform_stage("evaluate", family / "bare", checkpoints={"plain": str(family / "plain")}, **settings)
    assert not (family / "bare" / "diagnosis.json").exists()


def test_roles_come_from_the_lineage_and_settings_win(family: Path):
    paths = {name: family / name for name in ("plain", "teacher", "student", "start")}
    (group,) = find_groups(paths, {})
    assert group == ("student", "plain", "start", "teacher")
    (group,) = find_groups(paths, {"student": "plain", "plain": "teacher"})
    assert group == ("plain", "teacher", "start", None)
    untaught = {name: paths[name] for name in ("start", "plain")}
    assert find_groups(untaught, {}) == [("plain", None, "start", None)]


def test_a_comparison_without_a_student_or_with_a_strange_name_is_refused(family: Path, checkpoint_path: Path):
    with pytest.raises(ConfigError, match="expected a student that Puna trained"):
        find_groups({"foreign": checkpoint_path, "plain": family / "plain"}, {})
    with pytest.raises(ConfigError, match=r"roles.teacher = 'nobody'; expected one of plain"):
        find_groups({"plain": family / "plain"}, {"teacher": "nobody"})


def test_roles_are_flags_of_the_command_line(family: Path, tmp_path: Path):
    settings = ["--tasks", str(family / "shop_questions"), "--compare", "--roles.teacher", "nobody"]
    arguments = ["evaluate", "--checkpoints.plain", str(family / "plain"), *settings, "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"roles\.teacher = 'nobody'"):
        build_app(arguments)(arguments, print_error=False, exit_on_error=False)


def test_general_tasks_are_some_of_the_tasks(perform_stage: Callable[..., bool], family: Path):
    settings = {"checkpoints": {"plain": str(family / "plain")}, "tasks": [str(family / "shop_questions")]}
    for general in (["shop_questions"], ["unknown"]):
        with pytest.raises(ConfigError, match="expected some, but not all, of the tasks shop_questions"):
            perform_stage("evaluate", family / "refused", **settings, general=general)
