"""Large requests and large answers from outside: refused before any work, or served while others are served too."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serve import HI, SENTENCES, ScriptedEngine, connect, error_of, scripted, serving, wait_until

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.inference.engine.outputs import Chunk, TokenLogprob
from puna.serving.errors import HttpError
from puna.serving.preparation.context_length import require_room
from puna.serving.responses.json_pieces import JsonList, json_parts, json_pieces
from puna.serving.responses.logprob_budget import MAX_PER_ANSWER, LogprobBudget, LogprobCount
from puna.serving.routes import completions

TEXT = "The shop opens at nine o'clock; returns are free. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*SENTENCES] * 20, vocab_size=552, split_digits=True)


class ScoringEngine(ScriptedEngine):
    """Tells of each prompt token as many alternatives as are asked for."""

    def step(self) -> list[tuple[int, Chunk]]:
        return [(request, self._scored(request, chunk)) for request, chunk in super().step()]

    def _scored(self, request: int, chunk: Chunk) -> Chunk:
        asked = self.requests[request]
        if not asked.params.echo_logprobs or len(asked.ids) > 1:
            return chunk
        top = tuple((token % 500, -0.125 * token) for token in range(asked.params.logprobs or 0))
        entries = [TokenLogprob(token, -1.5, top) for token in asked.prompt[1:]]
        return replace(chunk, prompt_logprobs=(None, *entries))


@pytest.fixture(scope="module")
def scoring(tokenizer) -> Iterator[tuple[str, ScoringEngine]]:
    engine = ScoringEngine(tokenizer, tokenizer.encode("a " * 2000))
    with serving(scripted(tokenizer, engine, max_jobs=256)) as url:
        yield url, engine


def longest_wait(url: str, while_alive: list[threading.Thread]) -> float:
    """Ask for health until the threads have ended; return the longest time that it took."""
    longest = 0.0
    with httpx2.Client(base_url=url, timeout=20) as http:
        while any(thread.is_alive() for thread in while_alive):
            begin = time.monotonic()
            assert http.get("/health").status_code == 200
            longest = max(longest, time.monotonic() - begin)
            time.sleep(0.005)
    return longest


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"prompt": [[7] * 1000] * 4, "prompt_logprobs": 1024}, "prompt_logprobs", "at most 1 in a request"),
        ({"prompt": [[7] * 1000] * 9, "prompt_logprobs": 200}, "prompt_logprobs", "at most 5 in a request"),
        ({"prompt": [7] * 1000, "prompt_logprobs": 500, "n": 8}, "prompt_logprobs", "with n at most 2"),
        ({"prompt": [7] * 3000, "prompt_logprobs": 1024}, "prompt_logprobs", "at most 347 alternatives"),
        ({"prompt": [7] * 1000, "logprobs": 20, "echo": True, "n": 128}, "logprobs", "with n at most 51"),
        ({"prompt": [7], "logprobs": 20, "max_tokens": 3000, "n": 64}, "logprobs", "with n at most 17"),
    ],
)
def test_an_answer_of_too_many_log_probabilities_is_refused_before_any_work(scoring, fields, param, advice):
    url, engine = scoring
    num_requests = len(engine.requests)
    answer = httpx2.post(f"{url}/v1/completions", json={"model": "tiny", **fields})
    assert answer.status_code == 400 and len(engine.requests) == num_requests
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("answer_too_large", param) and advice in error["message"]


def test_following_the_advice_is_enough():
    for size in (LogprobCount([1000] * 4, 1, 16, 1024, True), LogprobCount([1000], 8, 16, 500, True)):
        with pytest.raises(HttpError) as caught:
            size.require_fit("n")
        number = int(caught.value.message.split("at most ")[2].split()[0].rstrip("."))
        one_by_one = replace(size, prompt_lens=size.prompt_lens[:number])
        (one_by_one if len(size.prompt_lens) > 1 else replace(size, num_answers=number)).require_fit("n")


def test_a_chat_without_max_tokens_gets_as_many_tokens_as_can_be_told_of(tokenizer):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode("We open."), tokenizer.special("eot_id")])
    served = replace(scripted(tokenizer, engine, max_jobs=128), max_context=1 << 20)
    with serving(served) as url:
        chat = connect(url).chat.completions
        answer = chat.create(model="tiny", messages=HI, logprobs=True, top_logprobs=20, n=2)
        assert answer.choices[1].message.content == "We open."
        chat.create(model="tiny", messages=HI)
    assert engine.requests[0].params.max_tokens == MAX_PER_ANSWER // 40
    assert engine.requests[2].params.max_tokens > 1_000_000


@pytest.mark.parametrize("is_streamed", [False, True])
def test_space_for_answers_is_given_back(tokenizer, is_streamed):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.01)
    served = scripted(tokenizer, engine)
    served.__dict__["logprob_budget"] = LogprobBudget(100)
    body = {"model": "tiny", "messages": HI, "logprobs": True, "max_tokens": 60, "stream": is_streamed}
    with serving(served) as url, httpx2.Client(base_url=url) as http:
        for _ in range(2):
            assert http.post("/v1/chat/completions", json=body | {"max_tokens": 1}).status_code == 200
        first = threading.Thread(target=httpx2.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body})
        first.start()
        wait_until(lambda: engine.running)
        refused = http.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503 and error_of(refused)["code"] == "overloaded"
        first.join()
        assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_large_answer_is_right_and_keeps_nobody_waiting(scoring, tokenizer):
    url, _ = scoring
    answers: list[httpx2.Response] = []
    fields = {"prompt": [[7] * 400] * 2, "prompt_logprobs": 300, "max_tokens": 1, "echo": True, "logprobs": 2}

    def ask() -> None:
        answers.append(httpx2.post(f"{url}/v1/completions", json={"model": "tiny", **fields}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    assert longest_wait(url, [thread]) < 1.0
    for choice in answers[0].json()["choices"]:
        assert len(choice["prompt_logprobs"]) == 400 and choice["prompt_logprobs"][0] is None
        assert len(choice["prompt_logprobs"][399]) == 300
        assert choice["prompt_logprobs"][399]["3"] == {
            "logprob": -0.375,
            "rank": 4,
            "decoded_token": tokenizer.decode([3]),
        }
        assert len(choice["logprobs"]["tokens"]) == 400 and choice["text"].startswith(tokenizer.decode([7] * 400))


def test_an_echo_in_parts_is_the_echo_in_one(scoring, monkeypatch: pytest.MonkeyPatch):
    url, _ = scoring
    fields = {"prompt": "Zoë opens ☕ at nine", "echo": True, "logprobs": 3, "max_tokens": 4, "seed": 1}
    create = connect(url).completions.create
    whole = create(model="tiny", **fields).choices[0]
    monkeypatch.setattr(completions, "PART_LOGPROBS", 6)
    in_parts = create(model="tiny", **fields).choices[0]
    events = [event.choices[0] for event in create(model="tiny", stream=True, **fields)]
    assert in_parts == whole and len(events) > 8
    assert "".join(event.text for event in events) == whole.text
    assert [token for event in events for token in event.logprobs.tokens] == whole.logprobs.tokens
    assert [at for event in events for at in event.logprobs.text_offset] == whole.logprobs.text_offset


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda below: st.lists(below) | st.dictionaries(st.text(), below)
    )
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_json_are_the_json(value):
    items = JsonList()
    for start in range(0, 10, 3):
        items.extend([value] * min(3, 10 - start))
    encoded = b"".join(json_pieces(json_parts({"a": value, "items": items, "empty": JsonList()})))
    assert json.loads(encoded) == {"a": value, "items": [value] * 10, "empty": []}


MEMORY = """
import resource, sys
from test_serve import scripted, serving
from test_serve_sizes import ScoringEngine
from puna.formats.tokenizer.tokenizer import Tokenizer

tokenizer = Tokenizer.load(sys.argv[1])
with serving(scripted(tokenizer, ScoringEngine(tokenizer, tokenizer.encode("a " * 2000)))) as url:
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (40 << 20), resource.RLIM_INFINITY))
    print(url, flush=True)
    sys.stdin.read()
"""


def test_a_request_that_memory_does_not_suffice_for_fails_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # Each further arena reserves 64 MiB that the limit counts.
    ) as server:
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        large = {"model": "tiny", "prompt": [7] * 1000, "prompt_logprobs": 1000, "max_tokens": 1}
        for _ in range(3):
            answer = httpx2.post(f"{url}/v1/completions", json=large, timeout=60)
            assert answer.status_code in (500, 503) and error_of(answer)["code"] in (
                "out_of_memory",
                "generation_failed",
            )
            small = httpx2.post(f"{url}/v1/completions", json=large | {"prompt_logprobs": 10})
            assert small.status_code == 200 and len(small.json()["choices"][0]["prompt_logprobs"]) == 1000
            assert httpx2.get(f"{url}/health").status_code == 200
        server.stdin.close()


def test_a_text_that_cannot_fit_is_refused_by_its_bytes(scoring):
    url, engine = scoring
    num_requests = len(engine.requests)
    text = TEXT * 78_000
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"text": text})}}
    bodies = [
        ("/v1/completions", {"prompt": text}, "prompt"),
        ("/v1/completions", {"prompt": ["short", text]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT * 19}] * 4000}, "messages"),
        ("/v1/chat/completions", {"messages": HI, "tools": [tool]}, "tools"),
        ("/v1/chat/completions", {"messages": [*HI, {"role": "assistant", "tool_calls": [call]}]}, "messages"),
    ]
    for path, fields, param in bodies:
        begin = time.monotonic()
        answer = httpx2.post(url + path, json={"model": "tiny", **fields}, timeout=20)
        assert answer.status_code == 400 and time.monotonic() - begin < 2.0
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert " bytes" in error["message"] and "4,096" in error["message"]
    assert len(engine.requests) == num_requests


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1.5] * 800_000},
        {"prompt": ["a", *[1] * 800_000]},
        {"stop": ["a"] * 700_000, "prompt": "a"},
        {f"field_{number}": 1 for number in range(10_000)} | {"prompt": "a"},
        {"messages": [{"role": "user", "content": [{}] * 1000}] * 900},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30}] * 4000},
        {"messages": [{"role": "user", "content": "a", **{f"field_{number}": 1 for number in range(10_000)}}]},
        {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [[]] * 900_000}}}],
        },
    ],
    ids=lambda fields: f"{next(iter(fields))} of {json.dumps(fields)[-40:]}",
)
def test_a_body_of_very_many_values_is_refused_quickly(scoring, fields):
    url, _ = scoring
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    answers: list[tuple[int, float]] = []

    def ask() -> None:
        begin = time.monotonic()
        answer = httpx2.post(url + path, json={"model": "tiny", **fields}, timeout=20)
        answers.append((answer.status_code, time.monotonic() - begin))

    thread = threading.Thread(target=ask)
    thread.start()
    assert longest_wait(url, [thread]) < 1.0
    assert answers[0][0] == 400 and answers[0][1] < 4.0


def test_eight_long_texts_that_may_fit_keep_no_neighbour_waiting(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000))
    served = replace(scripted(tokenizer, engine), max_context=200_000)
    with serving(served) as url:
        body = {"model": "tiny", "prompt": TEXT * 78_000}
        asked: list[int] = []

        def ask() -> None:
            asked.append(httpx2.post(f"{url}/v1/completions", json=body, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert longest_wait(url, threads) < 1.0
    assert asked == [400] * 8 and not engine.requests


def test_long_texts_have_the_ids_of_the_library(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (TEXT * 500, "Zoë ☕ 365 \n\n" * 900, "a" * 9000, " \t\n" * 3000):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(TEXT * 500 + "\ud800") == tokenizer.encode(TEXT * 500 + "\ufffd")


@given(st.lists(st.text(max_size=60), max_size=4), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_texts_that_fit_are_never_refused(tokenizer, texts, spare):
    texts = [text * 20 for text in texts]
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    require_room(tokenizer, texts, num_tokens + spare, param="prompt")
