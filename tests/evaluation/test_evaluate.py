"""The evaluate stage: what its intervals hold, what it asks, and what it leaves on the disk."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from test_answer import endpoint, says

from puna.data.shards import read_rows, write_jsonl
from puna.evaluation.evaluate import evaluate
from puna.evaluation.evaluate.evaluate import Config
from puna.evaluation.tasks import Question
from puna.evaluation.tasks.intervals import difference_interval, effective_number, score_interval, t_quantile
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.outputs import Completion
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run

MAX_CONTEXT = 1000
LONG = "and so on " * 400
CALL = ToolCall("look_up_order", {"order_id": "A-1"})
PARAMETERS = {"type": "object", "properties": {"order_id": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": CALL.name, "description": "", "parameters": PARAMETERS}}


@cache
def tokenizer() -> Tokenizer:
    texts = [f"user assistant system: order {n} costs {n * 7} on day {n + 3}; look_up_order" for n in range(60)]
    return train_tokenizer(texts, vocab_size=530, split_digits=True)


def write_model(path: Path, seed: int) -> Path:
    config = LlamaConfig(
        dim=16, hidden_dim=32, head_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=530,
        max_context=MAX_CONTEXT, tie_embeddings=True,
    )  # fmt: skip
    model = Llama(config)
    model.initialize(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 if parameter.dim() > 1 else 1.0)
    path.mkdir(parents=True)
    save_checkpoint(path, model, tokenizer())
    return path


def asked(index: int, *, words: str = "", tools: tuple = (), environment: str = "", **changes: Any) -> Question:
    messages = (Message("user", words or f"What of {index}?"),)
    conversation = Conversation(messages, tools=tools, environment=environment)
    settings = {"expected": {"contains": [str(index)]}, "grade": "contains", "group": f"world {index // 2}", **changes}
    return Question(f"q{index}", conversation, **settings)


def questions() -> list[Question]:
    """Six for answers in words, one for a call behind python_tag, one for a bare call of an announced tool."""
    call = {"expected": {"name": CALL.name, "arguments": CALL.arguments}, "grade": "tool_call"}
    return [*(asked(n) for n in range(6)), asked(6, environment="ipython", **call), asked(7, tools=(TOOL,), **call)]


def write_task(path: Path, asked: Sequence[Question] = ()) -> Path:
    path.mkdir(parents=True)
    write_jsonl(path / "questions.jsonl", (question.to_json() for question in asked or questions()))
    return path


def new_run(path: Path) -> Run:
    for name in ("output", "run"):
        (path / name).mkdir(parents=True)
    return Run("evaluate", "key", path / "output", path / "run", Console(file=io.StringIO(), width=100))


def printed(run: Run) -> str:
    assert isinstance(run.console.file, io.StringIO)
    return run.console.file.getvalue()


def scores(run: Run) -> dict[str, Any]:
    return json.loads((run.output / "scores.json").read_text())


class Scripted:
    """A sampler that answers each prompt with the ids that a script has for it."""

    max_context = MAX_CONTEXT

    def __init__(self, script: dict[tuple[int, ...], list[int]]):
        self.script, self.tokenizer, self.num_asked = script, tokenizer(), 0

    def complete(self, prompts: list[list[int]], params: list[SamplingParams], *, progress=None) -> list[Completion]:
        self.num_asked += len(prompts)
        return [Completion(self.script[tuple(p)], "", "stop", len(p)) for p in prompts]


def script(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, dict[str, Message]], everything: Sequence[Question] = ()
) -> dict[str, Scripted]:
    """Let the checkpoint in folder NAME answer question ID with the message answers[NAME][ID]."""
    chat = ChatFormat(tokenizer())
    samplers: dict[str, Scripted] = {}
    for name, said in answers.items():
        known: dict[tuple[int, ...], list[int]] = {}
        for question in everything or questions():
            prompt = chat.prompt(question.conversation)
            whole = chat.encode(question.conversation.with_message(said[question.id])).ids
            known[tuple(prompt)] = whole[len(prompt) :]
        samplers[name] = Scripted(known)
    monkeypatch.setattr(LocalSampler, "open", lambda path, **_: samplers[path.name])
    return samplers


def right(question: Question) -> Message:
    if question.grade == "tool_call":
        return Message("assistant", tool_calls=(CALL,))
    return Message("assistant", f"It costs {question.expected['contains'][0]}.")


# Intervals


def test_the_interval_of_independent_questions_is_wilsons() -> None:
    # 81 of 263: Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    interval = score_interval([1.0] * 81 + [0.0] * 182, [str(n) for n in range(263)])
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (60, 2.00030)])
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, value: float) -> None:
    assert t_quantile(freedom) == pytest.approx(value, rel=2e-3)


def test_copies_of_a_question_in_its_group_add_no_certainty() -> None:
    once = [float(n % 3 > 0) for n in range(30)]
    groups = [str(n) for n in range(30)]
    copied, copied_groups = np.repeat(once, 8).tolist(), np.repeat(groups, 8).tolist()
    assert effective_number(copied, copied_groups) == pytest.approx(29)
    alone, together = score_interval(once, groups), score_interval(copied, copied_groups)
    assert together.high - together.low >= alone.high - alone.low
    pair, pairs = difference_interval(once, [0.5] * 30, groups), difference_interval(copied, [0.5] * 240, copied_groups)
    assert pairs.high - pairs.low >= pair.high - pair.low


def test_one_question_gives_a_wide_interval_and_none_gives_all_there_is() -> None:
    assert score_interval([], []) == (0, 0, 1)
    assert difference_interval([], [], []) == (0, -1, 1)
    one = score_interval([1.0], ["a"])
    assert one.low < 0.25 and one.high == 1
    assert score_interval([0.0] * 100, [str(n % 5) for n in range(100)]).high == pytest.approx(1 - 0.025**0.2, abs=1e-4)
    same_group = score_interval([1.0] * 50, ["a"] * 50)
    assert same_group.low < 0.25
    difference = difference_interval([1.0], [0.0], ["a"])
    assert difference.low < 0 and difference.high == 1


def test_two_groups_that_disagree_tell_almost_nothing() -> None:
    interval = score_interval([1.0] * 20 + [0.0] * 20, ["a"] * 20 + ["b"] * 20)
    assert interval.low < 0.01 and interval.high > 0.99


def test_equal_answers_leave_room_for_a_difference() -> None:
    interval = difference_interval([1.0] * 100, [1.0] * 100, [str(n) for n in range(100)])
    assert interval.low == -interval.high
    assert 0.01 < interval.high < 0.05


def simulate(seed: int, num_groups: int = 25, alike: float = 0.3) -> tuple[list[float], list[float], list[str]]:
    """Draw two models' scores, true means 0.8 and 0.7, where the questions of a group (1 to 15) are alike."""
    source = np.random.default_rng(seed)
    sizes = source.integers(1, 16, num_groups)
    shape = (1 - alike) / alike
    chances = [np.repeat(source.beta(p * shape, (1 - p) * shape, num_groups), sizes) for p in (0.8, 0.7)]
    first, second = ((source.random(sizes.sum()) < chance).astype(float).tolist() for chance in chances)
    return first, second, np.repeat(np.arange(num_groups), sizes).astype(str).tolist()


def test_intervals_hold_the_truth_as_often_as_they_say_and_naive_ones_do_not() -> None:
    held = {"score": 0, "difference": 0, "naive score": 0, "naive difference": 0}
    for seed in range(400):
        first, second, groups = simulate(seed)
        for prefix, names in (("", groups), ("naive ", [str(n) for n in range(len(first))])):
            score, difference = score_interval(first, names), difference_interval(first, second, names)
            held[f"{prefix}score"] += score.low <= 0.8 <= score.high
            held[f"{prefix}difference"] += difference.low <= 0.1 <= difference.high
    shares = {name: count / 400 for name, count in held.items()}
    assert shares["score"] > 0.92 and shares["difference"] > 0.92
    assert shares["difference"] < 0.99
    assert shares["naive score"] < 0.85 and shares["naive difference"] < 0.85


# The stage


def test_answers_that_nobody_judged_count_in_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_in_words = [asked(n, expected={"no_call": True, "reference": "It costs 7."}, grade="no_call") for n in (8, 9)]
    everything = [*questions(), *asked_in_words]
    good = {question.id: right(question) for question in questions()}
    said = {
        "one": {**good, "q8": Message("assistant", "Sure."), "q9": Message("assistant", "It costs 7.")},
        "two": {**good, "q0": Message("assistant", "no"), "q8": Message("assistant", ""), "q9": Message("assistant")},
    }
    script(monkeypatch, said, everything)
    run = new_run(tmp_path)
    checkpoints = {name: write_model(tmp_path / name, 0) for name in ("one", "two")}
    evaluate.run(Config(checkpoints=checkpoints, tasks=[write_task(tmp_path / "task", everything)]), run)
    found = scores(run)
    one, two = found["checkpoints"]["one"], found["checkpoints"]["two"]
    assert (one["overall"]["score"], one["overall"]["n"]) == (1, 8)
    assert (two["overall"]["score"], two["overall"]["n"]) == (7 / 8, 8)
    unjudged = "answered in words, not judged"
    assert (one[unjudged]["score"], one[unjudged]["n"], two[unjudged]["score"]) == (1, 2, 0)
    (pair,) = found["differences"]
    assert (pair["slices"]["overall"]["difference"], pair["slices"]["overall"]["n"]) == (-1 / 8, 8)
    rows = list(read_rows(run.output / "conversations-one.jsonl"))
    assert [(row["judged"], row["judged_by"]) for row in rows] == [(True, "rule")] * 8 + [(False, "")] * 2
    assert [row["similarity"] for row in rows[6:]] == [None, None, pytest.approx(0, abs=0.1), 1]
    assert "2 more have unjudged answers in words" in (run.output / "report.md").read_text()


def test_an_evaluation_in_which_nothing_was_judged_has_no_score(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    task = write_task(tmp_path / "task", [asked(n, expected={"no_call": True}, grade="no_call") for n in range(3)])
    evaluate.run(Config(checkpoints={"a": write_model(tmp_path / "a", 0)}, tasks=[task], max_tokens=8), run)
    overall = scores(run)["checkpoints"]["a"]["overall"]
    assert {name: overall[name] for name in ("score", "low", "high", "n")} == {"score": 0, "low": 0, "high": 1, "n": 0}
    assert "not judged" in (run.output / "report.md").read_text()
    assert "no question judged, 3 answers not judged" in (run.directory / "log.txt").read_text()


def test_right_answers_in_the_models_format_get_full_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {"good": {question.id: right(question) for question in questions()}})
    run = new_run(tmp_path)
    config = Config(checkpoints={"good": write_model(tmp_path / "good", 0)}, tasks=[write_task(tmp_path / "held-out")])
    evaluate.run(config, run)
    found = scores(run)["checkpoints"]["good"]
    assert {name: entry["score"] for name, entry in found.items()} == dict.fromkeys(
        ("overall", "contains", "tool_call", "tool_call.name", "tool_call.arguments"), 1.0
    )
    assert (found["overall"]["n"], found["overall"]["groups"], found["tool_call"]["n"]) == (8, 4, 2)
    call = list(read_rows(run.output / "conversations-good.jsonl"))[-1]
    assert call["answer"]["tool_calls"][0]["function"] == {"name": CALL.name, "arguments": CALL.arguments}
    assert (call["expected"]["name"], call["reason"]) == (CALL.name, "is the expected call")


def test_differences_are_paired_for_every_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {question.id: right(question) for question in questions()}
    half = {**good, "q0": Message("assistant", "no"), "q1": Message("assistant", "no")}
    wrong_call = Message("assistant", tool_calls=(ToolCall(CALL.name, {"order_id": "B-2"}),))
    script(monkeypatch, {"good": good, "half": half, "bad": {**half, "q6": wrong_call, "q0": good["q0"]}})
    run = new_run(tmp_path)
    checkpoints = {name: write_model(tmp_path / name, 0) for name in ("good", "half", "bad")}
    evaluate.run(Config(checkpoints=checkpoints, tasks=[write_task(tmp_path / "held-out")]), run)
    pairs = {(entry["checkpoint"], entry["against"]): entry["slices"] for entry in scores(run)["differences"]}
    assert set(pairs) == {("half", "good"), ("bad", "good"), ("bad", "half")}
    assert pairs["half", "good"]["overall"]["difference"] == -0.25
    assert pairs["bad", "half"]["overall"]["difference"] == 0
    assert (pairs["bad", "half"]["overall"]["better"], pairs["bad", "half"]["overall"]["worse"]) == (1, 1)
    assert pairs["bad", "half"]["tool_call.name"]["difference"] == 0
    assert pairs["bad", "half"]["tool_call.arguments"]["difference"] == -0.5
    table, report = printed(run), (run.output / "report.md").read_text()
    assert "against good" in table and "-25.0 (" in table and "0.0 (" in table
    assert "| bad | half | tool_call.arguments | -50.0 (" in report
    assert 'look_up_order({"order_id": "B-2"})' in report


def test_random_models_leave_the_same_scores_and_conversations_each_time(tmp_path: Path) -> None:
    checkpoints = {"a": write_model(tmp_path / "a", 0), "b": write_model(tmp_path / "b", 1)}
    config = Config(checkpoints=checkpoints, tasks=[write_task(tmp_path / "task")], max_tokens=8, temperature=1.0)
    runs = [new_run(tmp_path / name) for name in ("first", "second")]
    for run in runs:
        evaluate.run(config, run)
    for name in ("scores.json", "conversations-a.jsonl", "conversations-b.jsonl"):
        assert (runs[0].output / name).read_bytes() == (runs[1].output / name).read_bytes()
    rows = {name: list(read_rows(runs[0].output / f"conversations-{name}.jsonl")) for name in "ab"}
    assert len(rows["a"]) == 8 and all(row["num_tokens"] == 8 or row["finish_reason"] == "stop" for row in rows["a"])
    assert [row["answer"] for row in rows["a"]] != [row["answer"] for row in rows["b"]]
    speed = json.loads((runs[0].output / "speed.json").read_text())["a"]
    assert speed["weight_bytes"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    assert speed["generated_tokens"] == sum(row["num_tokens"] for row in rows["a"])
    assert (runs[0].output / "scores.png").read_bytes()[:4] == b"\x89PNG"


def test_answers_that_are_cut_off_are_told_and_counted(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    task = write_task(tmp_path / "task", [asked(0), asked(1)])
    evaluate.run(Config(checkpoints={"a": write_model(tmp_path / "a", 0)}, tasks=[task], max_tokens=8), run)
    rows = list(read_rows(run.output / "conversations-a.jsonl"))
    assert all(row["finish_reason"] == "length" and row["reason"].endswith("; cut off after 8 tokens") for row in rows)
    assert "a: 2 answers were cut off at max_tokens = 8" in (run.directory / "log.txt").read_text()


def test_a_question_that_does_not_fit_fails_with_its_reason(tmp_path: Path) -> None:
    chat = ChatFormat(tokenizer())
    room = MAX_CONTEXT - len(chat.prompt(asked(0, words="1").conversation))
    tight = [asked(n, words="1" * (room + n)) for n in (0, 1)]
    assert len(chat.prompt(tight[1].conversation)) == MAX_CONTEXT
    call = asked(2, words=LONG, expected={"name": "f", "arguments": {}}, grade="tool_call")
    run = new_run(tmp_path)
    task = write_task(tmp_path / "task", [*tight, call])
    evaluate.run(Config(checkpoints={"a": write_model(tmp_path / "a", 0)}, tasks=[task], max_tokens=MAX_CONTEXT), run)
    rows = list(read_rows(run.output / "conversations-a.jsonl"))
    assert [(row["score"], row["num_tokens"]) for row in rows] == [(0, 1), (0, 0), (0, 0)]
    assert "leaves no room" in rows[1]["reason"]
    assert rows[2]["parts"] == {"name": 0, "arguments": 0}


def test_a_task_of_which_nothing_fits_is_scored_zero(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    task = write_task(tmp_path / "task", [asked(1, words=LONG)])
    evaluate.run(Config(checkpoints={"a": write_model(tmp_path / "a", 0)}, tasks=[task]), run)
    assert scores(run)["checkpoints"]["a"]["overall"]["score"] == 0


def test_an_interrupted_run_asks_no_checkpoint_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {question.id: right(question) for question in questions()}
    samplers = script(monkeypatch, {"one": good, "two": good})
    checkpoints = {name: write_model(tmp_path / name, 0) for name in ("one", "two")}
    config = Config(checkpoints=checkpoints, tasks=[write_task(tmp_path / "held-out")])
    run = new_run(tmp_path)
    broken, samplers["two"].script = samplers["two"].script, {}
    with pytest.raises(KeyError):
        evaluate.run(config, run)
    before, samplers["two"].script = samplers["one"].num_asked, broken
    evaluate.run(config, run)
    assert samplers["one"].num_asked == before
    assert scores(run)["checkpoints"]["one"] == scores(run)["checkpoints"]["two"]
    assert len(list(read_rows(run.output / "conversations-one.jsonl"))) == 8


def test_a_model_that_fails_on_a_question_gets_no_score_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [Completion([], "", "error", 5, error=FloatingPointError("the logits are not finite"))]
    sampler = Scripted({})
    monkeypatch.setattr(sampler, "complete", lambda prompts, params, *, progress=None: failed * len(prompts))
    monkeypatch.setattr(LocalSampler, "open", lambda path, **_: sampler)
    run = new_run(tmp_path)
    config = Config(
        checkpoints={"a": write_model(tmp_path / "a", 0)}, tasks=[write_task(tmp_path / "task", [asked(0)])]
    )
    evaluate.run(config, run)
    row = next(iter(read_rows(run.output / "conversations-a.jsonl")))
    assert (row["score"], row["reason"]) == (0, "the model failed: the logits are not finite")


def test_several_tasks_are_scored_together_and_apart(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    tasks = [write_task(tmp_path / name, [asked(n) for n in range(count)]) for name, count in (("one", 6), ("two", 3))]
    model = write_model(tmp_path / "a", 0)
    evaluate.run(Config(checkpoints={"a": model}, tasks=tasks, max_questions=4, max_tokens=2), run)
    found = scores(run)["checkpoints"]["a"]
    assert {name: entry["n"] for name, entry in found.items() if "task" in name} == {"task one": 4, "task two": 3}
    assert found["overall"]["n"] == 7
    twice = Config(checkpoints={"a": model}, tasks=[tasks[0], tasks[0]])
    with pytest.raises(ConfigError, match="'one' twice"):
        evaluate.run(twice, run)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_checkpoints_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="names of letters"):
        Config(checkpoints={name: Path("x")}, tasks=[Path("y")])


# Endpoints


def test_an_endpoint_is_evaluated_beside_a_checkpoint_and_an_interrupted_evaluation_keeps_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [asked(index) for index in range(8)]
    script(monkeypatch, {"a": {question.id: right(question) for question in words}}, words)
    monkeypatch.setattr(evaluate, "CHUNK", 4)
    model, task, run = write_model(tmp_path / "a", 0), write_task(tmp_path / "shop", words), new_run(tmp_path / "run")

    def answer(body: dict[str, Any], number: int) -> tuple[int, Any]:
        index = body["messages"][-1]["content"].removeprefix("What of ").removesuffix("?")
        done = {**says(f"It costs {index}."), "usage": {"completion_tokens": 5, "prompt_tokens": 9}}
        return (401, {"error": {"message": "no credit"}}) if is_empty and number > 4 else (200, done)

    with endpoint(answer) as (url, requests):
        settings = {"url": url, "model": "large", "concurrency": 1}
        table = {"checkpoints": {"large": settings, "a": str(model)}, "tasks": [str(task)], "max_batch": 1}
        config = parse_config(Config, table, where="evaluate")
        assert config.inputs().keys() == {"checkpoints.a", "tasks.0"}
        is_empty = True
        with pytest.raises(ConfigError, match="401 no credit"):
            evaluate.run(config, run)
        is_empty, num_before = False, len(requests)
        evaluate.run(config, run)
        assert len(requests) == num_before + 4 and {body["model"] for body in requests} == {"large"}
    assert "large: 4 of 8 questions were answered before the interruption" in printed(run)
    found = scores(run)
    assert found["checkpoints"]["large"]["overall"]["score"] == 1.0
    assert (found["differences"][0]["checkpoint"], found["differences"][0]["against"]) == ("a", "large")
    speed = json.loads((run.output / "speed.json").read_text())["large"]
    assert (speed["weight_bytes"], speed["generated_tokens"], speed["prompt_tokens"]) == (0, 8 * 5, 8 * 9)
    assert "| unknown |" in (run.output / "report.md").read_text()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"url": "ftp://host/v1", "model": "m"}, r"checkpoints\.large\.url = 'ftp.*http"),
        ({"url": "http://host/v1"}, r"lacks 'checkpoints\.large\.model'"),
        ({"url": "http://host/v1", "model": ""}, r"checkpoints\.large\.model = ''"),
        ({"url": "http://host/v1", "modle": "m"}, r"key 'checkpoints\.large\.modle'; expected .*Did you mean 'model'"),
    ],
)
def test_an_endpoint_has_an_address_and_a_model(tmp_path: Path, table: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, {"checkpoints": {"large": table}, "tasks": [str(tmp_path)]}, where="evaluate")
