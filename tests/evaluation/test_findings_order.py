"""Findings come in the order of what to try first, and none contradicts another, where a run has several faults."""

import random
from typing import Any

import pytest

from puna.evaluation.diagnose.order import EXPLAINS, GROUPS, OPPOSITES, ORDER, in_order
from puna.evaluation.diagnose.reasons import REASONS
from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.rules import chat, fit, forgetting, labels, learning, masks
from puna.evaluation.diagnose.rules.table import RUN_RULES, START_RULES, examine, warn
from puna.pipeline.finding import Change, Finding

Row = dict[str, Any]
OPTIM = {"lr": 0.01, "final_lr_share": 0.05, "clip": 1.0}
EQUAL = {"num_spoken": 600, "num_equal": 600, "num_empty": 0, "most_frequent": "Sure."}


def record(losses: list[float], facts: Row | None = None, columns: dict[str, list[Any]] | None = None) -> Record:
    """A run of these losses, with further columns of the same length."""
    rows: list[Row] = [{"step": step, "loss": loss, "tokens": 100 * step} for step, loss in enumerate(losses, start=1)]
    for name, values in (columns or {}).items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return Record("sft", {"optim": OPTIM}, rows, facts or {})


def falling(first: float, last: float, steps: int = 100) -> list[float]:
    """Losses that fall evenly, with a little noise."""
    return [first + (last - first) * step / steps + 0.01 * (-1) ** step for step in range(steps)]


def codes(found: Record) -> list[str]:
    return [finding.code for finding in examine(found)]


def test_a_run_that_overfits_is_not_told_to_train_longer():
    """The training loss still falls, so that more steps would look right; the validation loss says fewer."""
    validation: list[float | None] = [None] * 100
    for step, loss in zip(range(9, 100, 10), (3.0, 2.5, 2.2, 2.1, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2), strict=True):
        validation[step] = loss
    found = record(falling(3, 1), columns={"validation_loss": validation})
    assert fit.overfitting(found) and learning.steps_few(found), "both rules speak"
    assert codes(found) == ["overfitting"]


def test_a_loss_that_diverged_is_not_told_to_raise_the_rate_or_to_go_on():
    losses = [3.0, *falling(2.9, 2.5, 40), *[6.0] * 30, *falling(5.0, 3.0, 29)]
    found = record(losses)
    assert learning.loss_diverged(found) and learning.loss_stuck(found) and learning.steps_few(found) is None
    assert codes(found)[0] == "loss-diverged" and "loss-stuck" not in codes(found)


def test_a_rate_that_is_too_high_accounts_for_a_run_that_looks_too_short():
    losses = [*falling(5.0, 4.6, 20), *falling(4.6, 4.55, 55), *falling(4.5, 3.6, 25)]
    found = record(losses)
    assert learning.rate_high(found) and learning.steps_few(found), "both rules speak"
    assert codes(found) == ["rate-high"]


def test_faults_of_the_data_come_before_those_of_the_settings():
    losses = [*falling(5.0, 4.6, 20), *falling(4.6, 4.55, 55), *falling(4.5, 3.6, 25)]
    facts = {"answers": EQUAL, "copies_share": 0.4, "num_rows": 10, "epochs": 40, "num_too_long": 300}
    found = record(losses, facts)
    assert codes(found) == ["answers-equal", "rows-dropped", "data-duplicated", "rate-high", "data-small"]


def test_lost_chat_accounts_for_the_loss_on_the_start_models_data():
    facts = {"start_data_loss": 1.0, "start_data_loss_after": 3.0, "is_every_token": True}
    facts |= {"chat": {"end": 0.9, "loss": 2.0}, "chat_after": {"end": 0.001, "loss": 4.0}}
    found = record(falling(3, 1), facts)
    assert forgetting.forgot_start(found) and chat.chat_lost(found)
    assert codes(found) == ["chat-lost", "steps-few"]
    kept = record(falling(3, 1), {**facts, "chat_after": {"end": 0.6, "loss": 2.0}})
    assert codes(kept) == ["forgot-start", "steps-few"]


def test_the_teachers_weight_is_not_to_be_raised_and_lowered_at_once():
    """The student is surer than its teacher, and its loss is lower: the second says what the first follows from."""
    columns = {
        name: [value] * 100 for name, value in (("entropy", 0.1), ("teacher_entropy", 2.0), ("teacher_loss", 3.0))
    }
    found = record(falling(3, 1), columns=columns)
    assert labels.entropy_gap(found) and labels.teacher_foresees_worse(found)
    assert "teacher-foresees-worse" in codes(found) and "entropy-gap" not in codes(found)


def test_no_trained_token_accounts_for_a_loss_that_stands_still():
    found = record([2.0 + 0.01 * (-1) ** step for step in range(100)], columns={"trained": [0] * 60 + [1] * 40})
    assert masks.mask_empty(found) and learning.loss_stuck(found) and masks.mask_thin(found)
    assert codes(found) == ["mask-empty"]


def test_equal_and_empty_answers_are_told_before_the_first_step_and_after_the_last():
    empty = {"num_spoken": 90, "num_equal": 3, "num_empty": 10, "most_frequent": "Yes."}
    for facts, code in ((EQUAL, "answers-equal"), (empty, "answers-empty")):
        found = record(falling(3, 2.99), {"answers": facts})
        assert [finding.code for finding in warn(found)] == [code] and code in codes(found)
    assert (
        "600 of 600 answers looked at (100.0%) are 'Sure.'"
        in examine(record(falling(3, 1), {"answers": EQUAL}))[0].seen
    )


@pytest.mark.parametrize("changes", [{"num_equal": 200}, {"num_spoken": 9, "num_equal": 9}, {"num_empty": 6}])
def test_few_equal_or_empty_answers_are_no_finding(changes: Row):
    assert warn(record([1.0], {"answers": {**EQUAL, "num_equal": 3, **changes}})) == []


def test_every_code_has_one_place_and_a_cause_stands_before_what_it_explains():
    assert sorted(ORDER) == sorted(REASONS) and len(set(ORDER)) == len(ORDER)
    assert all(ORDER.index(cause) < ORDER.index(code) for cause, codes in EXPLAINS.items() for code in codes)
    assert all(OPPOSITES[OPPOSITES[change]] == change for change in OPPOSITES)
    data = set(GROUPS["the data"])
    assert ORDER[: len(data)] == GROUPS["the data"]
    told_first = {rule.__name__.replace("_", "-") for rule in START_RULES}
    assert told_first <= data | {"chat-at-risk"} and len(RUN_RULES) > len(START_RULES)


def test_no_list_contradicts_itself_whatever_rules_speak_in_whatever_order():
    source = random.Random(0)
    changes: list[Change] = list(OPPOSITES)
    for _ in range(300):
        chosen = source.sample(ORDER, source.randrange(len(ORDER)))
        found = [Finding(code, "seen", "remedy", tuple(source.sample(changes, source.randrange(3)))) for code in chosen]
        kept = in_order(found)
        moves = {change for finding in kept for change in finding.changes}
        assert not any(
            OPPOSITES[change] in moves - set(finding.changes) for finding in kept for change in finding.changes
        )
        assert [ORDER.index(finding.code) for finding in kept] == sorted(ORDER.index(finding.code) for finding in kept)
        source.shuffle(found)
        assert in_order(found) == kept
        assert all(finding in kept for finding in found if not finding.changes and not _is_explained(finding, chosen))


def _is_explained(finding: Finding, chosen: list[str]) -> bool:
    return any(finding.code in EXPLAINS.get(code, ()) for code in chosen)
