"""`puna review`: sample sizes, verdicts that last, blindness, and who may write labels."""

import http.client
import json
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from review_evaluation import FIRST, NAMES, SECOND, open_session, plain_evaluation, row, say, serving, write_evaluation

from puna.evaluation.review.label_file import LabelFile
from puna.evaluation.review.pairs import Answer, Pair, choose_names, read_pairs
from puna.evaluation.review.review import review
from puna.evaluation.review.sample import draw_sample, plan_sample, sample_difference
from puna.evaluation.review.server import ReviewServer
from puna.evaluation.review.session import Session, Verdict, reference
from puna.evaluation.review.summary import describe, describe_blind, next_command
from puna.evaluation.tasks.labels import read_labels
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError, PunaError


def pairs_of(num_pairs: int, *, num_equal: int = 0, group_size: int = 1, num_by_rule: int = 0) -> list[Pair]:
    """Make pairs of answers that differ, but for the last `num_equal`."""
    pairs: list[Pair] = []
    for number in range(num_pairs):
        score = 1.0 if number < num_by_rule else None
        answers = [Answer(say(f"{name} {number}"), (name,), score) for name in NAMES]
        if number >= num_pairs - num_equal:
            answers = [replace(answers[0], checkpoints=NAMES)]
        group = f"world {number // group_size}"
        pairs.append(Pair("shop", str(number), group, {"messages": []}, {}, tuple(answers)))
    return pairs


def alone(pairs: list[Pair]) -> list[Pair]:
    return [replace(pair, answers=pair.answers[:1]) for pair in pairs]


def ask(
    server: ReviewServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    port = server.server_address[1]
    given = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    connection.request(method, path, data if method == "POST" else None, given)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def act(server: ReviewServer, action: str, **request: Any) -> dict[str, Any]:
    status, _, body = ask(server, "POST", f"/{server.token}/{action}", request)
    assert status == 200, body
    return json.loads(body)


# ---- how many pairs


def test_sample_sizes_are_those_of_the_published_table():
    """Krejcie and Morgan (1970), Educational and Psychological Measurement 30: shares within 5 points."""
    for total, published in ((300, 169), (600, 234), (1000, 278), (3000, 341), (20_000, 377)):
        assert plan_sample(alone(pairs_of(total)), 0.05).num_pairs in (published, published + 1)


def test_a_difference_of_answers_that_all_differ_takes_twice_the_variance():
    # z**2 / 2 / 0.05**2 = 768.3 of an endless population.
    plan = plan_sample(pairs_of(600), 0.05)
    assert plan.num_pairs == 338
    assert plan.margin == pytest.approx(0.05, rel=0.01)
    assert plan_sample(pairs_of(600, num_equal=300), 0.05).num_pairs == 235


def test_small_margins_take_all_and_large_ones_not_fewer_than_thirty():
    assert plan_sample(pairs_of(600), 0.0) == (600, 0.0)
    assert plan_sample(pairs_of(600), 0.9).num_pairs == 30
    assert plan_sample(pairs_of(7), 0.9).num_pairs == 7
    assert plan_sample(pairs_of(1), 0.05) == (1, 0.0)
    capped = plan_sample(pairs_of(600), 0.05, max_pairs=100)
    assert capped.num_pairs == 100 and capped.margin == pytest.approx(1.96 * (0.5 / 100 * 500 / 599) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("share_right", [(0.5, 0.5), (0.8, 0.6)])
@pytest.mark.parametrize("num_equal", [0, 300])
def test_in_a_simulation_the_half_width_is_about_the_margin(share_right: tuple[float, float], num_equal: int):
    source = random.Random(1)
    margin, pairs = 0.05, pairs_of(600, num_equal=num_equal, group_size=5)
    num_pairs = plan_sample(pairs, margin).num_pairs
    errors: list[float] = []
    widths: list[float] = []
    num_covered = 0
    for seed in range(300):
        # The judgements that a reviewer would give, independent within a pair: the case that the size is made for.
        verdicts: dict[str, list[float]] = {}
        for pair in pairs:
            one, two = (float(source.random() < share) for share in share_right)
            verdicts[pair.id] = [one, two if len(pair.answers) == 2 else one]
        truth = statistics.fmean(two - one for one, two in verdicts.values())
        drawn = [verdicts[pair.id] for pair in draw_sample(pairs, num_pairs, seed)]
        mean, low, high = sample_difference([two for _, two in drawn], [one for one, _ in drawn], len(pairs))
        errors.append(abs(mean - truth))
        widths.append((high - low) / 2)
        num_covered += low <= truth <= high
    assert num_covered >= 0.92 * 300
    is_worst = share_right == (0.5, 0.5)
    assert (0.9 if is_worst else 0.75) * margin < statistics.fmean(widths) < 1.06 * margin
    assert (0.8 if is_worst else 0.6) * margin < sorted(errors)[round(0.95 * 300)] < 1.1 * margin


# ---- which pairs


def test_a_sample_is_in_proportion_and_every_pair_has_the_same_chance():
    sizes = {"big": 60, "middle": 30, "small": 10}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    pairs = [replace(pair, group=group) for pair, group in zip(pairs_of(100), groups, strict=True)]
    drawn: Counter[str] = Counter()
    for seed in range(400):
        sample = draw_sample(pairs, 30, seed)
        assert len({pair.id for pair in sample}) == 30
        per_group = Counter(pair.group for pair in sample)
        assert all(abs(per_group[name] - 0.3 * size) <= 2 for name, size in sizes.items())
        drawn.update(pair.id for pair in sample)
    # 400 draws at 0.3: a standard deviation of 9.2.
    assert all(75 < drawn[pair.id] < 165 for pair in pairs)


def test_a_larger_sample_holds_the_smaller_one_and_the_same_seed_draws_the_same():
    pairs = pairs_of(200, group_size=7, num_by_rule=50, num_equal=40)
    small, large = ({pair.id for pair in draw_sample(pairs, size, 3)} for size in (40, 90))
    assert small < large
    assert draw_sample(pairs, 40, 3) == draw_sample(pairs, 40, 3)
    assert draw_sample(pairs, 40, 3) != draw_sample(pairs, 40, 4)


def test_what_no_rule_judged_comes_first():
    sample = draw_sample(pairs_of(200, num_by_rule=120, group_size=3), 100, 0)
    is_by_rule = [pair.is_judged_by_rule for pair in sample]
    assert is_by_rule == sorted(is_by_rule)
    assert abs(sum(is_by_rule) - 60) <= 8


def test_checkpoints_are_the_first_and_the_last_unless_they_are_named():
    asked = ["base", "mine", "int8"]
    assert choose_names(asked, []) == ("base", "int8")
    assert choose_names(["mine"], []) == ("mine",)
    assert choose_names(asked, ["mine", "base"]) == ("mine", "base")
    for wrong in (["other"], ["mine", "mine"], asked):
        with pytest.raises(ConfigError, match="--checkpoints"):
            choose_names(asked, wrong)


def test_equal_answers_are_one_answer_and_rows_without_content_are_not_judged_by_rule(tmp_path: Path):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval"), NAMES)
    assert [len(pair.answers) for pair in pairs[:5]] == [1, 2, 2, 2, 1]
    assert pairs[0].answers[0].checkpoints == NAMES
    assert [pair.is_judged_by_rule for pair in pairs] == [False] * 8 + [True] * 4
    old = write_evaluation(
        tmp_path / "old",
        {FIRST: [row(0, say("Yes.")), row(1, say("1"), grade="contains", expected={"contains": ["1"]})]},
    )
    assert [pair.is_judged_by_rule for pair in read_pairs(old, [FIRST])] == [False, True]
    judge = {"judged": True, "judged_by": "judge"}
    by_judge = write_evaluation(tmp_path / "judge", {FIRST: [row(0, say("Yes."), **judge)]})
    assert not read_pairs(by_judge, [FIRST])[0].is_judged_by_rule


# ---- verdicts


def truth_of(pair: Pair) -> dict[str, bool]:
    """Return what a reviewer thinks who calls the first checkpoint's answers right and the second's wrong."""
    return {json.dumps(answer.message): FIRST in answer.checkpoints for answer in pair.answers}


def verdict_on(shown: dict[str, Any], pair: Pair) -> Verdict:
    """Judge what the page shows, by the texts alone."""
    truth = truth_of(pair)
    left, *right = (truth[json.dumps(message)] for message in shown["answers"])
    if not right:
        return "both" if left else "neither"
    verdicts: dict[tuple[bool, bool], Verdict] = {
        (True, True): "both", (True, False): "left", (False, True): "right", (False, False): "neither",
    }  # fmt: skip
    return verdicts[left, right[0]]


def judge_next(session: Session) -> None:
    state = session.state()
    session.judge(state["number"], verdict_on(state["pair"], session.sample[state["number"]]))


def test_a_verdict_reaches_the_answer_it_was_meant_for_on_whichever_side_it_stood(tmp_path: Path):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 40), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    while session.state()["pair"]:
        judge_next(session)
    labels = read_labels([tmp_path / "labels.jsonl"])
    assert len(labels) == 40 + 30
    for pair in pairs:
        for answer in pair.answers:
            assert labels.verdict(pair.task, pair.id, answer.message) is (FIRST in answer.checkpoints)
    for label in labels:
        assert label.reviewer == "ada"
        is_pair = int(label.id[1:]) % 4 != 0
        assert {label.checkpoint, label.side_by_side_with} == (set(NAMES) if is_pair else {FIRST, ""})
        assert label.checkpoint == (FIRST if label.right else SECOND)


def test_each_verdict_says_what_its_key_says(tmp_path: Path):
    pairs = pairs_of(4)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    shown: list[list[str]] = []
    verdicts: tuple[Verdict, ...] = ("left", "right", "both", "neither")
    for verdict in verdicts:
        state = session.state()
        shown.append([answer["content"] for answer in state["pair"]["answers"]])
        session.judge(state["number"], verdict)
    right = {label.answer["content"]: label.right for label in read_labels([tmp_path / "labels.jsonl"])}
    assert [[right[text] for text in texts] for texts in shown] == [
        [True, False], [False, True], [True, True], [False, False],
    ]  # fmt: skip


def test_a_second_start_goes_on_where_the_first_ended(tmp_path: Path):
    path, pairs = tmp_path / "labels.jsonl", pairs_of(10)
    session = open_session(pairs, path)
    judge_next(session)
    session.skip(session.state()["number"])
    judge_next(session)
    before = session.state()
    session.file.close()
    again = open_session(pairs, path)
    assert (again.num_resumed, again.state()["place"], again.state()["total"]) == (2, 3, 10)
    # The skipped pair comes back first, then the one that was open.
    assert again.state()["number"] == 1
    again.skip(1)
    assert again.state()["pair"] == before["pair"]
    other = tmp_path / "copy.jsonl"
    other.write_bytes(path.read_bytes())
    assert open_session(pairs, other, reviewer="bob").state()["place"] == 1


def test_undo_takes_the_label_back_also_after_a_restart(tmp_path: Path):
    path, pairs = tmp_path / "labels.jsonl", pairs_of(6)
    session = open_session(pairs, path)
    contents = [path.read_bytes()]
    for _ in range(3):
        judge_next(session)
        contents.append(path.read_bytes())
    session.undo()
    assert path.read_bytes() == contents[2] and session.state()["number"] == 2
    session.skip(2)
    session.undo()
    assert session.state()["number"] == 2 and session.num_skipped == 0
    judge_next(session)
    session.file.close()
    again = open_session(pairs, path)
    for count in (2, 1, 0):
        again.undo()
        assert path.read_bytes() == contents[count] and again.state()["number"] == count
    assert not again.state()["can_undo"]
    again.undo()


def test_undo_leaves_the_labels_of_others(tmp_path: Path):
    path, pairs = tmp_path / "labels.jsonl", pairs_of(2)
    for reviewer in ("bob", "ada"):
        session = open_session(pairs, path, reviewer=reviewer)
        judge_next(session)
        session.file.close()
    session = open_session(pairs, path, reviewer="bob")
    session.undo()
    assert {label.reviewer for label in read_labels([path])} == {"ada"}


def test_the_time_left_follows_the_reviewers_pace(tmp_path: Path):
    now = [0.0]
    session = Session(pairs_of(100), LabelFile(tmp_path / "labels.jsonl"), "ada", 0, clock=lambda: now[0])
    assert session.seconds_left == 1000
    for seconds in (4, 4, 5000, 4, 4, 4):
        now[0] += seconds
        judge_next(session)
    assert session.seconds_left == 94 * 4


# ---- the file


def test_a_second_review_of_the_same_file_is_refused_until_the_first_has_ended(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    first = open_session(pairs_of(3), path)
    judge_next(first)
    first.undo()  # which puts a new file in the place of the old
    with pytest.raises(ConfigError, match="another review"):
        LabelFile(path)
    first.file.close()
    LabelFile(path).close()


def test_a_label_that_a_crash_cut_off_is_judged_again(tmp_path: Path):
    path, pairs = tmp_path / "labels.jsonl", pairs_of(3)
    session = open_session(pairs, path)
    judge_next(session)
    whole = path.read_bytes()
    judge_next(session)
    session.file.close()
    first_line = path.read_bytes()[len(whole) :].index(b"\n") + 1
    for kept in (1, first_line - 1, first_line, first_line + 9):
        torn = path.with_name(f"torn {kept}.jsonl")
        torn.write_bytes(path.read_bytes()[: len(whole) + kept])
        again = open_session(pairs, torn)
        assert again.state()["number"] == 1
        judge_next(again)
        assert torn.read_bytes().startswith(whole) and torn.read_bytes().endswith(b"\n")
        assert len(read_labels([torn])) == 4


def test_a_disk_that_refuses_loses_no_label_and_confirms_none(tmp_path: Path):
    path, pairs = tmp_path / "labels.jsonl", pairs_of(3)
    session = open_session(pairs, path)
    judge_next(session)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(DataError, match="not saved"):
            judge_next(session)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and session.state()["number"] == 1
    judge_next(session)
    assert len(read_labels([path])) == 4


def test_a_file_with_a_faulty_row_is_not_touched(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"task": 1}\n')
    with pytest.raises(DataError, match="row 1"):
        LabelFile(path)
    assert path.read_text() == '{"task": 1}\n'


# ---- the page


def test_no_response_names_a_checkpoint_a_question_or_a_score(tmp_path: Path):
    evaluation = plain_evaluation(tmp_path / "eval")
    pairs = read_pairs(evaluation, NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    received: list[str] = []
    with serving(session, pairs) as server:
        for path in ("", "review.css", "review.js"):
            status, headers, body = ask(server, "GET", f"/{server.token}/{path}")
            assert status == 200
            received.append(f"{headers} {body.decode()}")
        actions = ["state"] + ["judge", "judge", "undo", "skip", "undo"] + ["judge"] * 11 + ["state", "finish"]
        for action in actions:
            number = session.state()["number"]
            verdict = random.Random(len(received)).choice(["both", "neither"])
            status, headers, body = ask(
                server, "POST", f"/{server.token}/{action}", {"number": number, "verdict": verdict}
            )
            assert status == 200, body
            received.append(f"{headers} {body.decode()}")
    assert '"judged": 12' in received[-1] and '"difference"' in received[-1]
    for text in received:
        assert not re.search(rf"{FIRST}|{SECOND}|models/|\bshop\b|\bq\d|world \d|\"score|\"judged_by", text)
    assert "At 5." in "".join(received)


def test_the_sides_change_at_random_and_only_with_the_seed(tmp_path: Path):
    pairs = pairs_of(200)

    def sides(seed: int) -> list[bool]:
        session = open_session(pairs, tmp_path / f"labels {random.random()}.jsonl", seed=seed)
        return [session.in_order(pair)[0].checkpoints == (FIRST,) for pair in pairs]

    first = sides(0)
    assert 70 <= sum(first) <= 130
    assert first == sides(0)
    assert 60 <= sum(one == two for one, two in zip(first, sides(1), strict=True)) <= 140


REFUSALS: list[tuple[str, int, dict[str, Any]]] = [
    ("no token", 404, {"path": "/judge"}),
    ("another token", 404, {"path": "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/judge"}),
    ("part of the token", 404, {"cut": 5}),
    ("the page without its slash", 404, {"method": "GET", "action": None}),
    ("a file beside the page", 404, {"method": "GET", "action": "../session.py"}),
    ("a name that leads here", 403, {"Host": "evil.example:8322"}),
    ("a name that begins alike", 403, {"Host": "127.0.0.1.evil.example"}),
    ("no name", 403, {"Host": ""}),
    ("another page", 403, {"Origin": "http://evil.example"}),
    ("a page in a sandbox", 403, {"Origin": "null"}),
    ("another port of this machine", 403, {"Origin": "http://127.0.0.1:9"}),
    ("a form", 415, {"Content_Type": "text/plain"}),
    ("a large body", 413, {"body": b" " * 5000}),
    ("a body without a length", 413, {"Content_Length": "many"}),
    ("no JSON", 400, {"body": b"{"}),
    ("a list", 400, {"body": b"[]"}),
    ("an unknown verdict", 400, {"body": {"number": 0, "verdict": "best"}}),
    ("a pair that is not open", 409, {"body": {"number": 1, "verdict": "left"}}),
    ("an unknown action", 404, {"action": "delete"}),
]


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewServer]:
    pairs = pairs_of(3)
    path = tmp_path_factory.mktemp("review") / "labels.jsonl"
    with serving(open_session(pairs, path), pairs) as server:
        yield server


@pytest.mark.parametrize(("what", "status", "request_"), REFUSALS, ids=[what for what, *_ in REFUSALS])
def test_who_may_not_write_labels_is_refused(
    open_server: ReviewServer, what: str, status: int, request_: dict[str, Any]
):
    given = dict(request_)
    token = open_server.token[: -given.pop("cut", 0) or None]
    action = given.pop("action", "judge")
    path = given.pop("path", f"/{token}" if action is None else f"/{token}/{action}")
    body = given.pop("body", {"number": 0, "verdict": "left"})
    found, headers, answer = ask(open_server, given.pop("method", "POST"), path, body, **given)
    assert found == status and open_server.token not in answer.decode()
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert open_server.session.state()["number"] == 0
    assert not open_server.session.file.path.read_bytes()


def test_a_pair_that_another_window_judged_is_not_judged_twice(tmp_path: Path):
    pairs = pairs_of(3)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    with serving(session, pairs) as server:
        request = {"number": 0, "verdict": "left"}
        statuses = [ask(server, "POST", f"/{server.token}/judge", request)[0] for _ in range(2)]
        assert statuses == [200, 409]
        assert act(server, "state")["place"] == 2
    assert len(read_labels([tmp_path / "labels.jsonl"])) == 2


def test_hostile_text_reaches_the_page_as_data(tmp_path: Path):
    text = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\ud800 \u2028 שלום"
    answers = {FIRST: [row(0, say(text))], SECOND: [row(0, say("plain"))]}
    pairs = read_pairs(write_evaluation(tmp_path / "eval", answers), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    with serving(session, pairs) as server:
        status, headers, body = ask(server, "POST", f"/{server.token}/state")
        assert status == 200 and headers["Content-Type"] == "application/json"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert text in [answer["content"] for answer in json.loads(body)["pair"]["answers"]]
        act(server, "judge", number=0, verdict="both")
    assert read_labels([tmp_path / "labels.jsonl"]).verdict("shop", "q0", say(text)) is True


def test_the_page_makes_no_markup_from_text_and_asks_no_other_address():
    page = Path(sys.modules["puna.evaluation.review"].__path__[0]) / "page"
    for file in page.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", text), file
        assert not re.search(r"https?:|//[\w-]+\.\w|@import|url\(|\son\w+=|style=", text), file


def test_what_is_expected_is_shown_with_captions():
    expected = {
        "contains": ["24.90", "free"],
        "distractors": [],
        "name": "find",
        "arguments": {"a": 1},
        "no_call": True,
    }
    assert reference(expected) == [
        {"caption": "Must contain", "text": "24.90\nfree"},
        {"caption": "Call of", "text": "find"},
        {"caption": "Arguments", "text": '{\n  "a": 1\n}'},
    ]


# ---- the summary


def test_the_summary_counts_compares_and_checks_the_rules(tmp_path: Path):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 12), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    for _ in range(9):
        judge_next(session)
    lines = describe(session, pairs, NAMES)
    assert lines[0] == "9 of 12 pairs judged by ada"
    assert "not finished" in lines[2] and lines[3].startswith("answers that no rule judged (8 of 8)")
    for _ in range(3):
        judge_next(session)
    lines = describe(session, pairs, NAMES)
    # Every fourth pair has equal answers, which are right; all are judged, so that the interval is a point.
    assert lines[1] == f"right: both 3, only {FIRST}: 9, only {SECOND}: 0, neither 0"
    assert f"{SECOND} is -75.0 points (-75.0 to -75.0) against {FIRST}" in lines[2]
    assert lines[-1].startswith("the rules agree with 7 of 7")
    assert not any("judged by nobody" in line for line in lines)
    blind = describe_blind(session, NAMES, len(pairs))
    assert (blind["all_right"], blind["one_right"], blind["none_right"]) == (3, 9, 0)
    assert blind["difference"] == [75.0, 75.0, 75.0]
    part = describe_blind(session, NAMES, 600)["difference"]
    assert part[1] < 50 < 75 < part[2]


def test_answers_that_nobody_judged_are_counted_since_the_gate_wants_them(tmp_path: Path):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 12), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    for _ in range(5):  # those that no rule judged come first
        judge_next(session)
    assert describe(session, pairs, NAMES)[-1].startswith("3 questions are judged by nobody yet")


# ---- the verb


@contextmanager
def reviewing(evaluation: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], Callable[..., dict[str, Any]]]]:
    """Start the verb as a process; yield it with a function that sends an action to its page."""
    command = [sys.executable, "-c", "from puna.cli import main; main()", "review", str(evaluation), *flags]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser", "--reviewer", "ada"],
        cwd=evaluation.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell without job control lets what it starts in the background ignore Ctrl-C, and this process inherits it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout and process.stderr
    lines: list[str] = []
    while not (found := re.search(r"127\.0\.0\.1:(\d+)(/\S+/)", "".join(lines))):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines.append(line)
    port, path = int(found[1]), found[2]

    def send(action: str, **request: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", path + action, json.dumps(request), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, body
        return json.loads(body)

    process.told = "".join(lines)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield process, send
    finally:
        process.kill()
        process.communicate()


def test_a_review_from_the_terminal_survives_a_kill_and_ends_with_the_next_command(tmp_path: Path):
    evaluation = plain_evaluation(tmp_path / "eval")
    with reviewing(evaluation) as (process, send):
        assert f"{FIRST} against {SECOND}, judged by ada\n12 of 12 pairs, about 2 minutes" in process.told
        state = send("state")
        for _ in range(5):
            state = send("judge", number=state["number"], verdict="both")
        process.kill()
    with reviewing(evaluation) as (process, send):
        assert "12 of 12 pairs, 5 of them judged before, about 1 minute" in process.told
        state = send("state")
        assert state["place"] == 6
        while state["pair"]:
            state = send("judge", number=state["number"], verdict="neither")
        assert state["summary"]["judged"] == 12
        assert send("finish")["is_finished"]
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and not err
    assert "12 of 12 pairs judged by ada" in out
    assert f"--checkpoints.{SECOND} models/{SECOND} --tasks data/shop --seed 3" in out
    assert f"--answers {evaluation} --labels labels.jsonl --out {evaluation}-judged" in out
    # Five pairs are right, of which two have equal answers; of the other seven one has.
    rights = [label.right for label in read_labels([tmp_path / "labels.jsonl"])]
    assert len(rights) == 12 + 9 and 0 < sum(rights) < len(rights)


def test_ctrl_c_ends_with_the_summary_and_no_traceback(tmp_path: Path):
    with reviewing(plain_evaluation(tmp_path / "eval")) as (process, send):
        send("judge", number=0, verdict="both")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not err
    assert "1 of 12 pairs judged by ada" in out and "Next: puna evaluate" in out


def test_a_review_that_cannot_be_started_says_what_to_do(tmp_path: Path):
    evaluation = plain_evaluation(tmp_path / "eval")
    same = write_evaluation(tmp_path / "same", {name: [row(0, say("Yes."))] for name in NAMES})
    judged = write_evaluation(
        tmp_path / "judged", {name: [row(0, say(name), judged=True, judged_by="rule")] for name in NAMES}
    )
    refused: list[tuple[str, Callable[[], None]]] = [
        ("is not a finished artifact", lambda: review(tmp_path / "none")),
        (
            "--checkpoints other; expected names of evaluated checkpoints",
            lambda: review(evaluation, checkpoints=["other"]),
        ),
        ("--margin 5", lambda: review(evaluation, margin=5)),
        ("--margin nan", lambda: review(evaluation, margin=float("nan"))),
        ("--max-pairs 0", lambda: review(evaluation, max_pairs=0)),
        ("lies in an artifact", lambda: review(evaluation, out=evaluation / "labels.jsonl")),
        ("gave the same 1 answers", lambda: review(same)),
        ("rules judged all answers", lambda: review(judged, unjudged_only=True)),
        ("cannot be written|Is a directory", lambda: review(evaluation, out=tmp_path)),
    ]
    for told, start in refused:
        with pytest.raises(PunaError, match=told):
            start()
    with serving(open_session(pairs_of(1), tmp_path / "other.jsonl"), pairs_of(1)) as server:
        port = server.server_address[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: Address already in use"):
            review(evaluation, port=port, browser=False, out=tmp_path / "labels.jsonl")


def test_answers_of_a_real_evaluation_are_reviewed_one_by_one(
    tmp_path: Path, checkpoint_path: Path, dataset_path: Path, perform_stage: Callable[..., bool]
):
    perform_stage(
        "evaluate", tmp_path / "eval", checkpoints={"mine": str(checkpoint_path)}, tasks=[str(dataset_path)],
        max_questions=6, max_tokens=3,
    )  # fmt: skip
    pairs = read_pairs(tmp_path / "eval", choose_names(["mine"], []))
    assert len(pairs) == 6 and all(len(pair.answers) == 1 for pair in pairs)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    while session.state()["pair"]:
        session.judge(session.state()["number"], "neither")
    lines = describe(session, pairs, ["mine"])
    assert lines[0] == "6 of 6 pairs judged by ada" and "mine 0.0% (0.0% to 0.0%)" in lines[2]


def test_the_next_command_asks_as_the_evaluation_did_and_keeps_its_labels(tmp_path: Path):
    evaluation = plain_evaluation(tmp_path / "eval")
    manifest = artifact.read_manifest(evaluation)
    changes = {"precision": "bfloat16", "kv_cache": "int8", "only_judged": True, "labels": ["bo.jsonl", "ada.jsonl"]}
    asked = replace(manifest, config={**manifest.config, **changes})
    command = next_command(evaluation, asked, Path("ada.jsonl"))
    assert "--precision bfloat16 --kv-cache int8" in command and " --only-judged " in command
    assert command.count("ada.jsonl") == 1 and "--labels bo.jsonl --labels ada.jsonl --out" in command
    assert "--only-judged" not in next_command(evaluation, manifest, Path("ada.jsonl"))
