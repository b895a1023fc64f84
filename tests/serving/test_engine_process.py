"""The engine's process dies, hangs or never starts: every open request ends with an error, and the next one answers."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from scripted_child import CRASH, FAILING, HANG, REFUSED, TooComplexError
from test_adapters import write_adapter
from test_engine import tiny_model, tiny_tokenizer
from test_serve import SENTENCES, save_tiny, serving

from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.adapters.folder import WEIGHTS_NAME
from puna.formats.checkpoint.checkpoint import save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.outputs import Chunk, TokenLogprob, Usage
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import CheckpointError, RequestError
from puna.serving.generation import engine_process
from puna.serving.generation.engine_process import EngineProcess
from puna.serving.generation.messages import (
    LENGTH,
    Job,
    Report,
    Submit,
    command_to_json,
    frame,
    params_from_json,
    report_from_json,
    report_to_json,
)
from puna.serving.middleware.rules import Rules, make_rules
from puna.serving.serve import EngineFlags, engine_spec, open_served, open_supervised
from puna.serving.served_model import ServedModel

CHILD = (sys.executable, str(Path(__file__).with_name("scripted_child.py")))
# Generous: CI's cores are few and busy. What the issue asks for, 2 and 10 seconds, full counts measure.
EVENT_SECONDS, BACK_SECONDS = 10.0, 30.0


@dataclass
class Scene:
    """A server over a scripted engine's process."""

    url: str
    engine: EngineProcess
    starts: Path

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()]

    def kill(self, number: int = signal.SIGKILL) -> float:
        os.kill(self.pids[-1], number)
        return time.monotonic()

    def wait_until_back(self) -> None:
        deadline = time.monotonic() + BACK_SECONDS
        while httpx2.get(f"{self.url}/health").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def complete(self, prompt: list[int], max_tokens: int = 3, **more: Any) -> httpx2.Response:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens} | more
        return httpx2.post(f"{self.url}/v1/completions", json=body, timeout=60)


@pytest.fixture
def scene(tokenizer_path, tmp_path):
    tokenizer = Tokenizer.load(tokenizer_path)

    @contextmanager
    def opened(
        rules: Rules | None = None, max_jobs: int = 256, stall_seconds: float = 60.0, **spec: Any
    ) -> Iterator[Scene]:
        spec["starts"] = str(tmp_path / "starts")
        engine = EngineProcess(spec, command=CHILD, max_jobs=max_jobs, stall_seconds=stall_seconds)
        facts, chat_format = engine.open(), ChatFormat(tokenizer)
        served = ServedModel("tiny", tokenizer, chat_format, engine, facts.max_context, facts.stop_ids, facts.defaults)
        with serving(served, rules) as url:
            yield Scene(url, engine, tmp_path / "starts")
        for pid in map(int, (tmp_path / "starts").read_text().split()):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    return opened


@dataclass
class Stream:
    """A streaming client in a thread: its events, and when the last one came."""

    scene: "Scene | _Address"
    prompt: list[int] = field(default_factory=lambda: [5])
    max_tokens: int = 4000
    ignores_stops: bool = False
    events: list[str] = field(default_factory=list)
    ended: float = 0.0

    def __post_init__(self):
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        body: dict[str, Any] = {"model": "tiny", "prompt": self.prompt, "max_tokens": self.max_tokens, "stream": True}
        if self.ignores_stops:
            body["response_format"] = {"type": "grammar", "syntax": "regex", "definition": "[a-z ]{2000}"}
        with httpx2.stream("POST", f"{self.scene.url}/v1/completions", json=body, timeout=60) as answer:
            if answer.status_code == 200:
                for line in answer.iter_lines():
                    if line:
                        self.events.append(line.removeprefix("data: "))
                        self.ended = time.monotonic()
            else:
                answer.read()
                self.events, self.ended = [answer.text, "[DONE]"], time.monotonic()

    def error(self) -> dict[str, Any]:
        self.thread.join(60)
        *_, error, done = self.events
        assert done == "[DONE]"
        return json.loads(error)["error"]


def wait_for_tokens(streams: list[Stream]) -> None:
    deadline = time.monotonic() + 60
    while not all(len(stream.events) > 2 for stream in streams):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_with_streams(scene: Scene, num_streams: int) -> tuple[float, float]:
    """Kill the engine under open streams and a waiting request; return the slowest error's and the return's seconds."""
    streams = [Stream(scene) for _ in range(num_streams)]
    whole: list[httpx2.Response] = []
    waiting = threading.Thread(target=lambda: whole.append(scene.complete([5], 4000)))
    waiting.start()
    wait_for_tokens(streams)
    killed = scene.kill()
    for stream in streams:
        error = stream.error()
        assert error["code"] == "engine_restarting" and "may be sent again" in error["message"]
    waiting.join()
    assert whole[0].status_code == 503 and int(whole[0].headers["retry-after"]) >= 1
    assert whole[0].json()["error"]["code"] == "engine_restarting"
    slowest = max(stream.ended for stream in streams) - killed
    scene.wait_until_back()
    back = time.monotonic() - killed
    assert scene.complete([5]).json()["choices"][0]["text"] == "AAA"
    return slowest, back


def test_when_the_engine_is_killed_every_request_ends_with_an_error_and_the_next_engine_answers(scene):
    with scene(pause=0.01) as opened:
        first = opened.pids[-1]
        slowest, back = kill_with_streams(opened, 5)
        assert slowest < EVENT_SECONDS and back < BACK_SECONDS
        assert opened.pids[-1] != first
        assert opened.engine.admission.held == {}


@pytest.mark.parametrize(
    "num_kills, num_streams",
    [pytest.param(5, 30, marks=pytest.mark.tenth), pytest.param(50, 100, marks=pytest.mark.slow)],
)
def test_engines_are_killed_again_and_again_under_open_streams(scene, num_kills, num_streams):
    with scene(pause=0.02) as opened:
        seconds = [kill_with_streams(opened, num_streams) for _ in range(num_kills)]
        slowest, back = (max(column) for column in zip(*seconds, strict=True))
        print(f"{num_kills} kills, {num_streams} streams: errors within {slowest:.2f} s, back within {back:.2f} s")
        assert slowest < EVENT_SECONDS and back < BACK_SECONDS
        assert opened.engine.metrics.num_restarts == num_kills
    if num_kills == 50:
        assert slowest < 2 and back < 10


def test_health_says_that_the_engine_is_being_started_again(scene):
    with scene(load_seconds=1.0) as opened:
        opened.kill()
        deadline = time.monotonic() + BACK_SECONDS
        while (answer := httpx2.get(f"{opened.url}/health")).status_code == 200:
            assert time.monotonic() < deadline
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        refused = opened.complete([5])
        assert refused.status_code == 503 and "started again" in refused.json()["error"]["message"]
        opened.wait_until_back()


def test_a_request_that_crashes_the_engine_is_not_sent_again_and_a_crash_loop_ends(scene, monkeypatch):
    monkeypatch.setattr(engine_process, "BACK_OFF", (0.0, 0.0))
    with scene() as opened:
        for _ in range(2):
            assert opened.complete([CRASH]).status_code == 503
            opened.wait_until_back()
        assert opened.complete([5]).status_code == 200
        for _ in range(2):
            assert opened.complete([CRASH]).status_code == 503
            opened.wait_until_back()
        assert opened.complete([CRASH]).status_code == 503
        deadline = time.monotonic() + BACK_SECONDS
        while "3 times in a row" not in httpx2.get(f"{opened.url}/health").text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        refused = opened.complete([5])
        assert refused.status_code == 503 and "SIGSEGV" in refused.json()["error"]["message"]
        assert len(opened.pids) == 5


def test_deaths_of_an_engine_that_ran_long_are_no_crash_loop(scene, monkeypatch):
    monkeypatch.setattr(engine_process, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(engine_process, "STABLE_SECONDS", -60.0)
    with scene() as opened:
        for _ in range(4):
            opened.kill()
            opened.wait_until_back()
        assert opened.complete([5]).status_code == 200


def test_an_engine_that_cannot_be_loaded_again_is_given_up(scene, monkeypatch):
    monkeypatch.setattr(engine_process, "BACK_OFF", (0.0, 0.0, 0.0))
    with scene(dies_on_load=True) as opened:
        opened.kill()
        deadline = time.monotonic() + BACK_SECONDS
        while "not started again" not in httpx2.get(f"{opened.url}/health").text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(opened.pids) == 4


@pytest.mark.parametrize("number", [None, signal.SIGSTOP])
def test_an_engine_whose_step_never_ends_is_killed_and_started_again(scene, number):
    with scene(stall_seconds=1.0, pause=0.01) as opened:
        stream = Stream(opened, prompt=[5 if number else HANG])
        if number:
            wait_for_tokens([stream])
            opened.kill(number)
        assert stream.error()["code"] == "engine_restarting"
        opened.wait_until_back()
        assert opened.complete([5]).status_code == 200 and len(opened.pids) == 2


def test_an_idle_engine_is_not_taken_for_one_that_hangs(scene):
    with scene(stall_seconds=0.6) as opened:
        time.sleep(1.5)
        assert opened.complete([5]).status_code == 200 and len(opened.pids) == 1


def test_errors_cross_as_objects(scene):
    with scene() as opened:
        refused, failed = opened.complete([REFUSED]), opened.complete([FAILING])
        assert refused.status_code == failed.status_code == 400
        error = refused.json()["error"]
        assert error["message"] == "a wrong one; expected a right one. Send another" and error["param"] == "prompt"
        assert failed.json()["error"]["param"] == "response_format"
        assert opened.engine.admission.held == {}


def test_what_a_model_that_cannot_be_loaded_lacks_is_told_by_the_server(scene):
    with pytest.raises(CheckpointError) as caught, scene(has_no_model=True):
        pass
    assert (caught.value.given, caught.value.expected, caught.value.hint) == ("no weights here", "weights", "Copy them")


def test_the_engine_dies_with_its_server_and_ctrl_c_does_not_reach_it(tmp_path):
    program = (
        "import os, signal, sys, time; from puna.serving.generation.engine_process import EngineProcess\n"
        "engine = EngineProcess({'starts': sys.argv[1]}, command=[sys.executable, sys.argv[2]])\n"
        "engine.open()\n"
        "assert 'torch' not in sys.modules\n"
        "print('open', flush=True)\n"
        "time.sleep(100)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "starts"), CHILD[1]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdout and server.stdout.readline() == b"open\n"
        child = int((tmp_path / "starts").read_text())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        time.sleep(0.2)
        os.kill(child, 0)
        server.kill()
        server.wait()
        deadline = time.monotonic() + EVENT_SECONDS
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_client_that_hangs_up_ends_its_request_in_the_engines_process(scene):
    with scene(pause=0.01) as opened:
        with httpx2.stream(
            "POST",
            f"{opened.url}/v1/completions",
            json={"model": "tiny", "prompt": [5], "max_tokens": 4000, "stream": True},
        ) as answer:
            next(answer.iter_lines())
        deadline = time.monotonic() + EVENT_SECONDS
        while opened.engine.admission.held:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert opened.engine.metrics.outcomes["abort"] == 1


def test_metrics_are_behind_the_key_and_tell_pages_requests_tokens_and_times(scene, tmp_path):
    keys = ["k" * 40, "j" * 40, "i" * 40]
    (tmp_path / "keys.txt").write_text(f"{keys[0]}\n{keys[1]}\n{keys[2]} alba\n")
    rules = make_rules("127.0.0.1", tmp_path / "keys.txt", {})
    with scene(rules, pause=0.01, slots=1) as opened:
        assert httpx2.get(f"{opened.url}/metrics").status_code == 401

        def answer_to(key: str, method: str = "GET", path: str = "/metrics", **more: Any) -> httpx2.Response:
            headers = {"authorization": f"Bearer {key}"}
            return httpx2.request(method, f"{opened.url}{path}", headers=headers, timeout=60, **more)

        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4}
        assert answer_to(keys[1], "POST", "/v1/completions", json=body).status_code == 200
        assert answer_to(keys[1], "POST", "/v1/completions", json=body | {"prompt": [REFUSED]}).status_code == 400
        assert answer_to(keys[2]).status_code == 403
        answer = answer_to(keys[0])
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert not any(key in answer.text for key in keys)
        lines = answer.text.splitlines()
        assert all(
            re.fullmatch(r"# (HELP|TYPE) puna_\w+ .+|puna_\w+(\{\w+=\"[^\"]*\"\})? [0-9.e+-]+", line) for line in lines
        )
        samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        expected = {
            "puna_engine_up": 1,
            'puna_kv_cache_pages{state="free"}': 90,
            'puna_kv_cache_pages{state="used"}': 0,
            'puna_kv_cache_pages{state="cached"}': 10,
            "puna_running_requests": 0,
            "puna_waiting_requests": 0,
            "puna_prompt_tokens_total": 3,
            "puna_generated_tokens_total": 4,
            "puna_cached_prompt_tokens_total": 4 * 16,
            "puna_engine_restarts_total": 0,
            'puna_requests_total{outcome="length"}': 1,
            'puna_requests_total{outcome="invalid"}': 1,
            'puna_queue_seconds_bucket{le="0.1"}': 0,
            'puna_queue_seconds_bucket{le="0.25"}': 4,
            "puna_queue_seconds_sum": 1.0,
            "puna_time_to_first_token_seconds_count": 1,
        }
        assert {name: float(samples[name]) for name in expected} == expected


def test_messages_come_back_as_they_were():
    entry = TokenLogprob(7, -0.1, ((7, -0.1), (9, -1e-30), (4, float("-inf"))))
    refusal = RequestError("a", expected="b", hint="C", param="d")
    chunks = [
        (1, Chunk((5, 6), "Zoë \ud800\x00", (entry,), None, (None, entry))),
        (2, Chunk(finish_reason="error", error=TooComplexError("a", expected="b", hint="C", param="d"))),
    ]
    report = Report(
        chunks, [(3, None), (4, refusal), (5, ValueError("secret"))], Usage(1, 2, 3, {"": 1}, {"0": 2}, 4, [0.5])
    )
    found = report_from_json(json.loads(frame(report_to_json(report))[LENGTH.size :]))
    assert found.usage == report.usage and found.chunks[0] == chunks[0]
    for error in (found.chunks[1][1].error, found.settled[1][1]):
        assert isinstance(error, RequestError) and vars(error) == vars(refusal)
    assert found.settled[0] == (3, None) and "secret" not in str(found.settled[2][1])
    params = SamplingParams(
        stop_ids=(1, 2),
        stop_strings=("a",),
        logit_bias=((3, 0.5),),
        banned_ids=(4,),
        seed=-(1 << 63),
        logprobs=0,
        top_p=0.1,
    )
    prompt = [1, 2, 3]
    message = json.loads(
        json.dumps(command_to_json(Submit(1, [Job(2, prompt, params), Job(3, prompt, params)], "0", "alba")))
    )
    assert message["prompts"] == [prompt] and params_from_json(message["jobs"][1][3]) == params


def test_a_stop_while_the_engine_is_being_loaded_again_ends_at_once(scene):
    started = time.monotonic()
    with scene(load_seconds=2.5) as opened:
        opened.kill()
        while len(opened.pids) < 2:
            time.sleep(0.02)
        started = time.monotonic()
    assert time.monotonic() - started < 2.4


def test_an_engine_that_is_never_started_is_ended_too(tmp_path):
    engine = EngineProcess({"starts": str(tmp_path / "starts")}, command=CHILD)
    engine.open()
    engine.kill()
    assert asyncio.run(asyncio.sleep(0, engine.problem())) is not None


def test_answers_of_the_process_equal_those_of_an_engine_in_this_one(tmp_path):
    checkpoint = save_tiny(tmp_path / "tiny", SENTENCES, num_merges=40, max_context=256)
    schema = {"type": "object", "properties": {"day": {"enum": ["Monday", "Sunday"]}}, "required": ["day"]}
    form = {"type": "json_schema", "json_schema": {"name": "day", "schema": schema, "strict": True}}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "When?"}], "max_tokens": 40, "seed": 3}
    begun = [*chat["messages"], {"role": "assistant", "content": '{"day": "Mon'}]
    bodies = [
        (
            "chat/completions",
            chat | {"n": 2, "logprobs": True, "top_logprobs": 3, "logit_bias": {"70": 5}, "stop": ["e"]},
        ),
        ("chat/completions", chat | {"response_format": form}),
        ("chat/completions", chat | {"response_format": form, "messages": begun, "continue_final_message": True}),
        (
            "completions",
            {"model": "tiny", "prompt": ["We", "open"], "max_tokens": 5, "echo": True, "logprobs": 2, "seed": 1},
        ),
        ("completions", {"model": "tiny", "prompt": [70, 71, 72], "max_tokens": 0, "prompt_logprobs": 5}),
        ("completions", {"model": "tiny", "prompt": [70] * 300}),
    ]

    def answers(served: ServedModel) -> list[Any]:
        with serving(served) as url:
            found = [httpx2.post(f"{url}/v1/{path}", json=body, timeout=60) for path, body in bodies]
        return [{k: v for k, v in each.json().items() if k not in ("id", "created")} for each in found]

    served, unfit = open_supervised(engine_spec(checkpoint, EngineFlags()), "tiny", 64, 60)
    expected, found = answers(open_served(checkpoint)), answers(served)
    assert found == expected and not unfit
    assert found[1]["choices"][0]["message"]["content"].startswith(('{"day": "Monday"', '{"day": "Sunday"'))
    assert "error" in found[-1] and not any("error" in each for each in found[:-1])


def test_adapters_of_the_process_are_named_and_judged_there(tmp_path):
    model = tiny_model()
    (tmp_path / "base").mkdir()
    save_checkpoint(tmp_path / "base", model, tiny_tokenizer())
    write_adapter(tmp_path / "adapters" / "alba", model, 1)
    write_adapter(tmp_path / "adapters" / "brook", tiny_model(num_layers=3), 2)
    write_adapter(tmp_path / "adapters" / "dune", model, 3)
    (tmp_path / "adapters" / "dune" / WEIGHTS_NAME).rename(tmp_path / "adapters" / "dune" / "adapter_model.bin")
    spec = engine_spec(tmp_path / "base", EngineFlags(adapters=tmp_path / "adapters"))
    served, unfit = open_supervised(spec, "base", 64, 60)
    assert [line.partition(" can't")[0] for line in unfit] == ["the adapter 'brook'", "the adapter 'dune'"]
    with serving(served) as url:
        assert {each["id"] for each in httpx2.get(f"{url}/v1/models").json()["data"]} == {
            "base",
            "alba",
            "brook",
            "dune",
        }
        statuses = {}
        for name in ("base", "alba", "brook", "dune", "../alba", "cedar"):
            body = {"model": name, "prompt": [9, 10], "max_tokens": 4, "temperature": 0}
            statuses[name] = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)
        assert [each.status_code for each in statuses.values()] == [200, 200, 400, 400, 404, 404]
        for name, reason in (("brook", "another base"), ("dune", "pickled")):
            message = statuses[name].json()["error"]["message"]
            assert name in message and reason in message


@pytest.mark.parametrize(
    "num_stops", [pytest.param(2, marks=pytest.mark.tenth), pytest.param(20, marks=pytest.mark.slow)]
)
def test_sigterm_lets_running_requests_finish_and_ends_the_engine(tmp_path, num_stops):
    checkpoint = save_tiny(tmp_path / "tiny", SENTENCES, num_merges=40, max_context=1024)
    command = [sys.executable, "-c", "from puna.cli import main; main()", "serve", str(checkpoint), "--port", "0"]
    for place in range(num_stops):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        log = ""
        while not (
            found := re.search(r"The chat page is at (http://localhost:\d+)/", log.replace("127.0.0.1", "localhost"))
        ):
            log += (line := process.stderr.readline())
            assert line, log
        streams = [Stream(_Address(found[1]), max_tokens=300, ignores_stops=True) for _ in range(4)]
        wait_for_tokens(streams)
        process.send_signal(signal.SIGINT if place % 2 else signal.SIGTERM)
        for stream in streams:
            stream.thread.join(60)
            assert stream.events[-1] == "[DONE]" and '"finish_reason":"length"' in stream.events[-2]
        log += process.communicate(timeout=60)[1]
        assert "shutdown complete" in log and "Traceback" not in log and "interrupted" not in log
        children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(checkpoint) not in children


@dataclass
class _Address:
    """What a client needs of a scene."""

    url: str
