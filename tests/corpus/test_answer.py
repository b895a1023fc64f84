"""Answers of a model: the same whatever is asked beside, picked by a judge, none dropped without a reason."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from test_serve import KEY, serving

from puna.corpus.synthesize.answer_sampling import AnswerSampler, Attempt, Reply
from puna.corpus.synthesize.rejection_sampling import Candidate, SelectionRule
from puna.data.dataset import Dataset
from puna.data.preference import Preference
from puna.evaluation.tasks import Question
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.inference.completer.completer import Completer, Sampling
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.http import EndpointClient
from puna.inference.completer.local import LocalCompleter
from puna.inference.completer.settings import EndpointConfig
from puna.inference.engine.options import EngineOptions
from puna.model.reward import become_reward_model
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError, RequestError
from puna.serving.middleware.rules import make_rules
from puna.serving.serve import open_served
from puna.testing.endpoint import listening

Perform = Callable[..., bool]
Settings = dict[str, Any]
NINE, SIX = "We open at nine.", "We close at six."
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)


def asker(model: Completer) -> AnswerSampler:
    return AnswerSampler(model, SAMPLING, seed=0)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def model_path(perform_stage: Perform, training: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says one thing or the other when it is asked, hardly anything else."""
    path, out = tmp_path_factory.mktemp("said"), tmp_path_factory.mktemp("model") / "out"
    rows = [
        {"messages": [{"role": "user", "content": f"Open {n}?"}, {"role": "assistant", "content": text}]}
        for n in range(4)
        for text in (NINE, SIX)
    ]
    (path / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    optim = {"lr": 0.03, "warmup_steps": 2}
    perform_stage("sft", out, **{**training, "data": [str(path)], "steps": 40, "optim": optim})
    return out


@pytest.fixture(scope="module")
def questions_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions; nine is right."""
    path = tmp_path_factory.mktemp("questions")
    rows = [
        {
            "id": f"q{n}",
            "conversation": {"messages": [{"role": "user", "content": f"Open {n}?"}]},
            "expected": {"contains": ["nine"]},
            "grade": "contains",
        }
        for n in range(6)
    ]
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(model_path: Path, questions_path: Path) -> Settings:
    told = {"questions": [str(questions_path)], "checkpoint": str(model_path), "max_tokens": 24, "judge": "grade"}
    return {**told, "num_answers": 4, "temperature": 1.0, "top_p": 1.0}


def test_the_right_answers_are_kept_and_the_others_have_a_reason(
    perform_stage: Perform, settings: Settings, tmp_path: Path
):
    perform_stage("answer", tmp_path / "out", **settings, preferences=True)
    dataset = Dataset([tmp_path / "out"], ["conversations"])
    kept = [dataset[at] for at in range(len(dataset))]
    assert kept and all(isinstance(each, Conversation) and "nine" in each.messages[-1].content for each in kept)
    rejected = read(tmp_path / "out" / "rejected.jsonl")
    assert len(kept) + sum("number" in row for row in rejected) == 6 * 4
    assert all(row["reason"] for row in rejected)
    pairs = [Preference.from_json(row) for row in read(tmp_path / "out" / "preferences.jsonl")]
    assert pairs and all("nine" in pair.chosen[0].content and "nine" not in pair.rejected[0].content for pair in pairs)
    assert len(pairs) + sum("number" not in row for row in rejected) == 6
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert f"24 answers to 6 questions: {len(kept)} conversations" in log and f"{len(pairs)} preference pairs" in log
    told = re.findall(r"rejected (\d+) answers: ", log)
    assert sum(map(int, told)) == sum("number" in row for row in rejected)


def test_one_answer_without_a_judge_is_taken_as_it_is(
    perform_stage: Perform, model_path: Path, dataset_path: Path, tmp_path: Path
):
    """Every turn of the assistant is a question, with the true history before it."""
    told = {"questions": [str(dataset_path)], "checkpoint": str(model_path), "max_tokens": 24}
    perform_stage("answer", tmp_path / "out", **told)
    kept, rejected = (read(tmp_path / "out" / f"{name}.jsonl") for name in ("conversations", "rejected"))
    assert len(kept) + len(rejected) == 24
    before = [row["messages"][:-1] for row in kept]
    true = [row["messages"] for row in read(dataset_path / "conversations.jsonl")]
    assert all(any(history == whole[: len(history)] for whole in true) for history in before)
    assert {row["reason"] for row in rejected} <= {"cut off before its end", "empty"}


def test_words_that_no_rule_judges_are_taken_and_counted(perform_stage: Perform, model_path: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "Open 1?"}, {"role": "assistant", "content": "Yes, we are."}]
    (tmp_path / "conversations.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    told = {"questions": [str(tmp_path / "conversations.jsonl")], "checkpoint": str(model_path), "max_tokens": 24}
    perform_stage("answer", tmp_path / "out", **told, judge="grade")
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "answers without a grading rule, accepted because the answer is text without a call: 1" in log


def test_an_answer_does_not_depend_on_what_else_is_asked(model_path: Path):
    model = asker(LocalCompleter.open(model_path, EngineOptions(max_batch=4)))
    questions = [Question(f"q{n}", Conversation((Message("user", f"Open {n}?"),)), {}) for n in range(3)]
    asks = [Attempt(question, number) for question in questions for number in range(3)]
    together = model.reply(asks, lambda done: None)
    alone = [model.reply([ask], lambda done: None)[0] for ask in reversed(asks)]
    assert together == alone[::-1]
    assert len({reply.message.content for reply in together}) > 1
    single = asker(LocalCompleter.open(model_path, EngineOptions(max_batch=1)))
    more = single.reply(asks[4:6], lambda done: None)
    assert more == together[4:6]


def test_an_interrupted_run_asks_nothing_twice_and_ends_the_same(
    perform_stage: Perform, settings: Settings, model_path: Path, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr("puna.corpus.synthesize.answer.ROUNDS", 1)
    settings = {**settings, "max_batch": 5, "preferences": True}
    perform_stage("answer", tmp_path / "whole", **settings)
    answer, asked = AnswerSampler.reply, list[Attempt]()

    def fail_at_third(self: AnswerSampler, asks: list[Attempt], tell: Any) -> list[Reply]:
        if len(asked) == 10:
            raise KeyboardInterrupt
        asked.extend(asks)
        return answer(self, asks, tell)

    monkeypatch.setattr(AnswerSampler, "reply", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        perform_stage("answer", tmp_path / "out", **settings)
    path = tmp_path / ".runs" / "out" / "journals" / "answering.jsonl"
    header, *chunks = path.read_bytes().splitlines(keepends=True)
    assert len(chunks) == 2
    path.write_bytes(header + chunks[0] + chunks[1][:100])  # cut short by a power loss
    again = list[Attempt]()
    monkeypatch.setattr(AnswerSampler, "reply", lambda self, asks, tell: again.extend(asks) or answer(self, asks, tell))
    perform_stage("answer", tmp_path / "out", **settings)
    assert len(again) == 24 - 5
    assert artifact.content_hash(tmp_path / "out") == artifact.content_hash(tmp_path / "whole")


def test_a_reward_model_picks_what_it_scores_highest(
    perform_stage: Perform, settings: Settings, model_path: Path, tmp_path: Path
):
    checkpoint = Checkpoint.open(model_path)
    model = checkpoint.load()
    become_reward_model(model, seed=3)
    (tmp_path / "judge").mkdir()
    save_checkpoint(tmp_path / "judge", model, checkpoint.tokenizer())
    told = {**settings, "judge": "reward", "reward": str(tmp_path / "judge"), "preferences": True}
    perform_stage("answer", tmp_path / "out", **told)
    judge = RewardModel.open(tmp_path / "judge")
    rejected = read(tmp_path / "out" / "rejected.jsonl")
    kept = read(tmp_path / "out" / "conversations.jsonl")
    assert len(kept) == 6
    for row in kept:
        (score,) = judge.score([Conversation.from_json({**row, "metadata": {}})])
        assert score == row["metadata"]["score"]
        others = [each["score"] for each in rejected if each["id"] == row["metadata"]["question"] and "score" in each]
        assert score >= max(others, default=score)
    for pair in map(Preference.from_json, read(tmp_path / "out" / "preferences.jsonl")):
        best, worst = judge.score([pair.answered(pair.chosen), pair.answered(pair.rejected)])
        assert best > worst and pair.metadata["scores"] == [best, worst]


# Picking


def candidate(number: int, text: str, score: float | None = None, failure: str = "") -> Candidate:
    return Candidate(number, Reply(Message("assistant", text), 1, failure), score, "so the judge")


QUESTION = Question("q", Conversation((Message("user", "Open?"),)), {})


@pytest.mark.parametrize("keep, kept", [("best", [2]), ("all", [1, 2])])
def test_each_answer_is_kept_or_has_one_reason(keep: Any, kept: list[int]):
    candidates = [
        candidate(0, "No.", 0.0),
        candidate(1, NINE, 0.6),
        candidate(2, "At nine.", 1.0),
        candidate(3, " " + NINE, 0.6),
        candidate(4, "  ", 0.0),
        candidate(5, "We op", 0.5, failure="cut off before its end"),
    ]
    picked = SelectionRule(keep, 0.5, has_pairs=True).select(QUESTION, candidates)
    assert [each.metadata["number"] for each in picked.conversations] == kept
    reasons = {row["number"]: row["reason"].partition(":")[0] for row in picked.rejected}
    assert reasons.keys() == set(range(6)) - set(kept)
    expected = {0: "the score is too low", 3: "said before", 4: "empty", 5: "cut off before its end"}
    assert reasons.items() >= expected.items()
    assert picked.preference and picked.preference.chosen[0].content == "At nine."
    assert picked.preference.rejected[0].content == "No."


def test_without_a_difference_there_is_no_pair():
    alike = SelectionRule("all", None, has_pairs=True).select(
        QUESTION, [candidate(0, "a", 1.0), candidate(1, "b", 1.0)]
    )
    assert alike.preference is None and alike.rejected[-1]["reason"] == "no pair: all answers have the same score"
    none_good = SelectionRule("best", 1.0, has_pairs=True).select(
        QUESTION, [candidate(0, "a", 0.0), candidate(1, "b", 0.5)]
    )
    assert none_good.rejected[-1]["reason"] == "no pair: no answer is good" and not none_good.conversations


# Endpoints


@contextmanager
def endpoint(script: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve what `script` says to a request and its number; yield the address and the requests."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**body, "key": self.headers.get("Authorization")})
            status, answer = script(body, len(requests))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as url:
        yield f"{url}/v1", requests


def says(content: str | None, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None, **more}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": {"completion_tokens": 5}}


def ask(url: str, waits: list[float] | None = None, question: Question = QUESTION, number: int = 0) -> Reply:
    slept = [] if waits is None else waits
    client = EndpointClient(EndpointConfig(url=url, model="m", concurrency=2), "secret", wait=slept.append)
    return asker(EndpointCompleter(client)).reply([Attempt(question, number)], lambda done: None)[0]


def test_a_server_of_ours_answers_as_the_checkpoint_itself(
    perform_stage: Perform, settings: Settings, model_path: Path, tmp_path: Path, monkeypatch: Any
):
    perform_stage("answer", tmp_path / "local", **settings)
    monkeypatch.setenv("MY_KEY", KEY)
    told = {name: value for name, value in settings.items() if name != "checkpoint"}
    with serving(open_served(model_path), make_rules("127.0.0.1", None, {"PUNA_API_KEY": KEY})) as url:
        remote = {"endpoint": f"{url}/v1", "model": "out", "key_variable": "MY_KEY", "licence": "Apache-2.0"}
        perform_stage("answer", tmp_path / "remote", **told, **remote)
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(ConfigError, match=r"answers 401 .*Check the endpoint, the model and the key"):
            perform_stage("answer", tmp_path / "refused", **told, **remote)
    assert KEY not in (tmp_path / "remote" / "manifest.json").read_text()
    for name in ("conversations", "rejected"):
        assert read(tmp_path / "local" / f"{name}.jsonl") == read(tmp_path / "remote" / f"{name}.jsonl")


def test_what_passes_is_tried_again(monkeypatch: Any):
    script = {1: (429, {"error": {"message": "slow down"}}), 2: (503, b"busy"), 3: (200, says("At nine."))}
    waits: list[float] = []
    with endpoint(lambda body, number: script[number]) as (url, requests):
        assert ask(url, waits) == Reply(Message("assistant", "At nine."), 5)
    assert waits[0] == 7.0 and 0.5 <= waits[1] <= 1.0, "Retry-After, then back-off with jitter"
    assert requests[0] == requests[2] and requests[0]["key"] == "Bearer secret"
    assert requests[0]["messages"] == [{"role": "user", "content": "Open?"}] and requests[0]["max_tokens"] == 24


def test_a_key_does_not_follow_a_redirect():
    with endpoint(lambda body, number: (302, b"")) as (url, requests), pytest.raises(ConfigError, match="answers 302"):
        ask(url)
    assert len(requests) == 1


def test_an_endpoint_that_stays_away_ends_the_run_with_what_to_do():
    waits: list[float] = []
    with (
        endpoint(lambda body, number: (500, b"")) as (url, requests),
        pytest.raises(RequestError, match="The same command resumes"),
    ):
        ask(url, waits)
    assert len(requests) == 8 and len(waits) == 7
    with pytest.raises(RequestError, match="failed 8 times"):
        ask(url)


@pytest.mark.parametrize(
    "status, answer, failure",
    [
        (400, {"error": {"message": "too long"}}, "the endpoint refuses: 400 too long"),
        (200, b"<html>", "the endpoint's answer cannot be read"),
        (200, {"choices": []}, "the endpoint's answer cannot be read: list index"),
        (200, says("At ni", "length"), "cut off before its end"),
        (200, says(None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "the endpoint's answer cannot"),
    ],
)
def test_what_one_question_causes_is_its_own_failure(status: int, answer: Any, failure: str):
    with endpoint(lambda body, number: (status, answer)) as (url, _):
        assert ask(url).failure.startswith(failure)


def test_calls_go_out_and_come_back_in_openais_spelling():
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    asked = (
        Message("user", "Find 7."),
        Message("assistant", tool_calls=(ToolCall("find", {"n": 7}),)),
        Message("tool", "[]"),
    )
    question = Question("q", Conversation(asked, tools=(tool,)), {})
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n": 8}'}}
    with endpoint(lambda body, number: (200, says(None, tool_calls=[call]))) as (url, requests):
        reply = ask(url, question=question)
    assert reply.message.tool_calls == (ToolCall("find", {"n": 8}, id="c1"),)
    assert requests[0]["tools"] == [tool]
    said = requests[0]["messages"][1]["tool_calls"][0]
    assert said["function"]["arguments"] == '{"n": 7}' and said["id"] == requests[0]["messages"][2]["tool_call_id"]


# Refusals


@pytest.mark.parametrize(
    "change, message",
    [
        ({"endpoint": "http://x"}, "exactly one of 'checkpoint' and 'endpoint'"),
        ({"checkpoint": None, "endpoint": "x", "model": "m"}, "begins with http"),
        ({"checkpoint": None, "endpoint": "http://user:secret@host/v1", "model": "m"}, "without a key"),
        ({"checkpoint": None, "endpoint": "http://x"}, "'model' beside 'endpoint'"),
        ({"judge": "reward"}, "'reward' exactly if judge"),
        ({"judge": "none"}, "keep = 'all' for several answers without a judge"),
        ({"judge": "none", "num_answers": 1, "min_score": 0.5}, "no min_score without a judge"),
        ({"judge": "none", "preferences": True}, "preferences only with a judge"),
        ({"num_answers": 1, "preferences": True}, "num_answers of at least 2"),
        ({"temperature": 0}, "a temperature above 0 for several answers"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    perform_stage: Perform, settings: Settings, tmp_path: Path, change: Settings, message: str
):
    with pytest.raises(ConfigError, match=message):
        perform_stage("answer", tmp_path / "out", **{**settings, **change})


def test_when_no_answer_is_good_the_first_reason_is_told(perform_stage: Perform, settings: Settings, tmp_path: Path):
    with pytest.raises(DataError, match=r"no answer is fit for training.* rejected: cut off before its end"):
        perform_stage("answer", tmp_path / "out", **{**settings, "max_tokens": 1})
