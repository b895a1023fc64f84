"""The server from outside: the openai client and raw HTTP against a real socket, over a random model or a script."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from openapi_check import Recorder

from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Chunk
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.scheduling.request import Request
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest
from puna.pipeline.errors import ConfigError
from puna.serving.app import ROUTES
from puna.serving.generation.engine_loop import MAX_FAILURES
from puna.serving.generation.engine_thread import EngineThread
from puna.serving.middleware.rules import Rules, make_rules
from puna.serving.serve import make_server, open_served, serve
from puna.serving.served_model import ServedModel

KEY, OTHER_KEY = "k" * 43, "j" * 32
HI = [{"role": "user", "content": "When do you open?"}]
CHAT = {"model": "tiny", "messages": HI, "max_tokens": 12, "seed": 5, "temperature": 1.0}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Look up an order",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}, "by": {"type": "string"}}},
    },
}
CALL = '{"type": "function", "name": "find_order", "parameters": {"number": "17", "by": "Zoë"}}'
SENTENCES = ["The shop opens at nine o'clock. ", "Returns are free within thirty days, 365 days a year. "]


class ScriptedEngine:
    """Answers every prompt with the same tokens, one a step; None among them makes the step raise."""

    def __init__(self, tokenizer: Tokenizer, script: Sequence[int | None], pause: float = 0.0):
        self.tokenizer, self.script, self.pause = tokenizer, script, pause
        self.requests: list[Request] = []
        self.running: dict[int, Request] = {}
        self.aborted: list[int] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str, adapter: str) -> int:
        assert not adapter
        # What the script says, a grammar cannot unsay.
        free = replace(params, grammar=None)
        request = Request(len(self.requests), prompt, free, TextStream(self.tokenizer, params.stop_strings), tenant)
        self.requests.append(request)
        self.running[request.id] = request
        return request.id

    def step(self) -> list[tuple[int, Chunk]]:
        time.sleep(self.pause)
        chunks: list[tuple[int, Chunk]] = []
        for request in list(self.running.values()):
            if request.id in self.aborted:
                chunk = request.end("abort")
            else:
                token = self.script[len(request.ids)]
                if token is None:
                    raise RuntimeError("scripted failure")
                chunk = request.extend(token, None)
            chunks.append((request.id, chunk))
            if chunk.finish_reason:
                del self.running[request.id]
        return chunks

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)


@contextmanager
def serving(served: ServedModel, rules: Rules | None = None, shutdown_seconds: int = 5) -> Iterator[str]:
    """Serve; when the server has stopped, hold its answers to /openapi.json."""
    server = make_server(served, rules or Rules(), host="127.0.0.1", port=0)
    recorder = Recorder(server.config.app)  # type: ignore[arg-type]
    server.config.app = recorder
    server.config.timeout_graceful_shutdown = shutdown_seconds
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
    recorder.check()


def scripted(tokenizer: Tokenizer, engine: ScriptedEngine, max_jobs: int = 4) -> ServedModel:
    chat_format = ChatFormat(tokenizer)
    thread = EngineThread(engine, max_jobs=max_jobs)
    return ServedModel("tiny", tokenizer, chat_format, thread, max_context=4096, stop_ids=chat_format.stop_ids)


def connect(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def error_of(answer: httpx2.Response) -> dict:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


def save_tiny(directory: Path, sentences: Sequence[str], *, num_merges: int, max_context: int) -> Path:
    """Save a random model whose text doesn't settle on one token, with a tokenizer of the sentences."""
    torch.set_num_threads(1)
    directory.mkdir()
    tokenizer = train_tokenizer([*sentences] * 20, vocab_size=256 + 256 + num_merges, split_digits=True)
    sizes = {"dim": 32, "hidden_dim": 64, "head_dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    model = Llama(LlamaConfig(**sizes, vocab_size=tokenizer.vocab_size, max_context=max_context))
    model.initialize(0)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serve") / "tiny", SENTENCES, num_merges=40, max_context=1024)


@pytest.fixture(scope="module")
def served(checkpoint) -> ServedModel:
    return open_served(checkpoint)


@pytest.fixture(scope="module")
def url(served) -> Iterator[str]:
    with serving(served, make_rules("127.0.0.1", None, {"PUNA_API_KEY": KEY})) as address:
        yield address


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return connect(url)


@pytest.fixture(scope="module")
def http(url) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with httpx2.Client(base_url=url, headers=headers) as raw:
        yield raw


@pytest.fixture(scope="module")
def tokenizer(served) -> Tokenizer:
    return served.tokenizer


def test_the_model_is_listed_and_another_one_is_not_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").to_dict().keys() == {"id", "object", "created", "owned_by"}
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt", messages=HI)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_model_under_llamas_agreement_is_listed_with_the_notice_it_asks_for(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "tiny")
    (tmp_path / "tiny" / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    with serving(open_served(tmp_path / "tiny")) as url:
        models = connect(url).models
        notices = [model.to_dict()["notice"] for model in (*models.list(), models.retrieve("tiny"))]
    assert notices == ["Built with Llama"] * 2


def test_a_streamed_answer_equals_the_whole_one(client):
    whole = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)
    stream = client.chat.completions.create(
        **CHAT, logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    choices = [choice for event in events for choice in event.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert entries == whole.choices[0].logprobs.content and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage and whole.usage.completion_tokens <= 12
    assert choices[0].delta.role == "assistant"


def test_each_of_n_answers_has_a_seed_of_its_own(client):
    first, second = (client.chat.completions.create(**CHAT, n=3).choices for _ in range(2))
    assert [choice.message.content for choice in first] == [choice.message.content for choice in second]
    assert len({choice.message.content for choice in first}) == 3


@pytest.mark.parametrize(
    "setting",
    [
        {"environment": "ipython", "today": "23 November 2026"},
        {"environment": "ipython", "builtin_tools": ["brave_search"]},
        {"call_format": "tag"},
    ],
    ids=str,
)
def test_the_prompt_is_what_the_chat_format_renders(client, served, setting):
    conversation = Conversation.from_json({"messages": HI, "tools": [TOOL], **setting})
    answer = client.chat.completions.create(**CHAT, tools=[TOOL], extra_body=setting)
    assert answer.usage.prompt_tokens == len(served.format.prompt(conversation))


def test_echoed_log_probabilities_equal_the_models_own(client, checkpoint, tokenizer):
    text = "The shop opens, Zoë: 365 ☕"
    ids = [tokenizer.special("begin_of_text"), *tokenizer.encode(text)]
    model = Checkpoint.open(checkpoint).load(torch.float32)
    with torch.no_grad():
        hidden_TD = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
        own_TV = model.logits(hidden_TD).log_softmax(-1)
    expected = [own_TV[position, token].item() for position, token in enumerate(ids[1:])]
    for prompt in (text, ids):
        choice = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=2).choices[0]
        found = choice.logprobs
        assert choice.text == text and found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert found.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
        best = own_TV[:-1].topk(2).values
        assert [sorted(top.values())[-2:] for top in found.top_logprobs[1:]] == [
            pytest.approx(sorted(row.tolist()), abs=1e-4) for row in best
        ]
        assert found.tokens[:3] == ["<|begin_of_text|>", tokenizer.decode(ids[1:2]), tokenizer.decode(ids[2:3])]
        whole = [i for i, token in enumerate(found.tokens) if i and not token.startswith("bytes:")]
        assert all(text[found.text_offset[i] :].startswith(found.tokens[i]) for i in whole)


def test_completions_of_many_prompts_equal_those_of_each_alone(client, tokenizer):
    texts = ["The shop", "Returns are", ""]
    options = {"model": "tiny", "max_tokens": 8, "seed": 3, "temperature": 0.7, "logprobs": 0, "echo": True}
    alone = [client.completions.create(prompt=text, **options).choices[0] for text in texts]
    ids = [[tokenizer.special("begin_of_text"), *tokenizer.encode(text)] for text in texts]
    for prompts in (texts, ids):
        together = client.completions.create(prompt=prompts, **options).choices
        assert [choice.text for choice in together] == [choice.text for choice in alone]
        assert [choice.logprobs.tokens for choice in together] == [choice.logprobs.tokens for choice in alone]
    pieces = [event.choices[0] for event in client.completions.create(prompt=texts, stream=True, **options)]
    for index, choice in enumerate(alone):
        mine = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert [offset for piece in mine for offset in piece.logprobs.text_offset] == choice.logprobs.text_offset


def test_an_answer_ends_before_a_stop_string(tokenizer):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode("One. Two. Three."), tokenizer.special("eot_id")])
    with serving(scripted(tokenizer, engine)) as url:
        answer = connect(url).chat.completions.create(model="tiny", messages=HI, stop=["Three", " Two"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("One.", "stop")


def test_a_prompt_beyond_the_context_is_refused_by_its_own_code(client):
    for options in ({"messages": [{"role": "user", "content": "a b " * 2000}]}, {"messages": HI, "max_tokens": 1024}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", **options)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("environment", ["", "ipython"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_call_comes_out_as_one(tokenizer, environment, is_streamed):
    tag = [tokenizer.special("python_tag")] if environment else []
    script = [*tag, *tokenizer.encode(CALL), tokenizer.special("eom_id" if environment else "eot_id")]
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, script))) as url:
        create = connect(url).chat.completions.create
        options = {"model": "tiny", "messages": HI, "tools": [TOOL], "extra_body": {"environment": environment}}
        if is_streamed:
            choices = [event.choices[0] for event in create(**options, stream=True)]
            assert not any(choice.delta.content for choice in choices)
            calls = [call for choice in choices for call in choice.delta.tool_calls or []]
            reason = choices[-1].finish_reason
        else:
            choice = create(**options).choices[0]
            assert choice.message.content is None
            calls, reason = choice.message.tool_calls, choice.finish_reason
    assert reason == "tool_calls" and [call.function.name for call in calls] == ["find_order"]
    assert json.loads(calls[0].function.arguments) == {"number": 17, "by": "Zoë"} and calls[0].id


def test_a_dialogue_with_tool_results_goes_on(tokenizer):
    script = [*tokenizer.encode(CALL), tokenizer.special("eot_id")]
    engine = ScriptedEngine(tokenizer, script)
    served = scripted(tokenizer, engine)
    with serving(served) as url:
        create = connect(url).chat.completions.create
        said = create(model="tiny", messages=HI, tools=[TOOL]).choices[0].message
        result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": [{"type": "text", "text": "sent"}]}
        create(model="tiny", messages=[*HI, said, result], tools=[TOOL])
        create(model="tiny", messages=[*HI, said.model_dump(), result], tools=[TOOL])
    call = {"function": {"name": "find_order", "arguments": {"number": 17, "by": "Zoë"}}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "sent"}]
    expected = served.format.prompt(Conversation.from_json({"messages": messages, "tools": [TOOL]}))
    assert [request.prompt for request in engine.requests[1:]] == [expected, expected]


def test_with_tool_choice_none_the_tools_are_neither_shown_nor_called(tokenizer):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode(CALL), tokenizer.special("eot_id")])
    served = scripted(tokenizer, engine)
    with serving(served) as url:
        answer = connect(url).chat.completions.create(model="tiny", messages=HI, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content == CALL and not answer.choices[0].message.tool_calls
    assert engine.requests[0].prompt == served.format.prompt(Conversation.from_json({"messages": HI}))


@pytest.mark.parametrize("text", ["We open <fast> at nine.", '{"a": 1} is JSON', " ", "a <func", "b <function=x>"])
def test_text_that_only_looks_like_a_call_arrives_whole(tokenizer, text):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode(text), tokenizer.special("eot_id")])
    with serving(scripted(tokenizer, engine)) as url:
        stream = connect(url).chat.completions.create(model="tiny", messages=HI, tools=[TOOL], stream=True)
        choices = [event.choices[0] for event in stream]
    assert "".join(choice.delta.content or "" for choice in choices) == text
    assert choices[-1].finish_reason == "stop"
    # Plain text is not held back until the end.
    assert text[0] != "W" or len(choices) > 5


BAD_CHATS = [
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 4.5}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"n": 1000}, "n"),
    ({"seed": 1 << 63}, "seed"),
    ({"stop": [4]}, "stop[0]"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"today": "yesterday"}, "messages"),
    ({"environment": "bash"}, "environment"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{**TOOL, "function": {**TOOL["function"], "strict": 1}}]}, "tools[0].function.strict"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "find_order"}}}, "tool_choice"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"prediction": {}}, "prediction"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"temprature": 1}, "temprature"),
    ({"guided_json": {}}, "guided_json"),
]


@pytest.mark.parametrize(("change", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_refused_by_name(http, change, param):
    answer = http.post("/v1/chat/completions", content=json.dumps(CHAT | change))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_a_misspelled_field_is_answered_with_the_right_one(client):
    with pytest.raises(openai.BadRequestError, match="Did you mean 'temperature'"):
        client.chat.completions.create(**CHAT, extra_body={"temprature": 1})


def test_fields_that_ask_for_nothing_are_accepted(client):
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "frequency_penalty": 0, "presence_penalty": 0.0}
    harmless |= {"logit_bias": {}, "n": 1, "parallel_tool_calls": True, "response_format": {"type": "text"}}
    harmless |= {"tool_choice": "auto", "stop": None, "service_tier": "auto", "stream": False}
    plain = client.chat.completions.create(**CHAT)
    assert client.chat.completions.create(**CHAT, **harmless).choices == plain.choices


DEEP_CALL = {"id": "", "type": "function", "function": {"name": "f", "arguments": '{"a":' * 50_000}}
BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "NaN": json.dumps(CHAT).encode().replace(b"1.0", b"NaN"),
    "1e999": json.dumps(CHAT).encode().replace(b"1.0", b"1e999"),
    "hidden 1e999": json.dumps(CHAT | {"tools": [TOOL]}).encode().replace(b'"integer"', b"-1e999"),
    "digits": json.dumps(CHAT).encode().replace(b": 12", b": " + b"9" * 5000),
    "no UTF-8": b'{"model": "\xff"}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep tool": json.dumps(CHAT).encode().replace(b"}", b"") + b', "tools": ' + b"[" * 80 + b"]" * 80 + b"}",
    "deep call": json.dumps(CHAT | {"messages": [{"role": "assistant", "tool_calls": [DEEP_CALL]}]}).encode(),
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_malformed_body_is_a_400(http, name, path):
    answer = http.post(path, content=BAD_BODIES[name])
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize("prompt", [[], [[]], [99_999], [-1], [1.5], ["a", 1], [[1], "a"], {"a": 1}, None, 7])
def test_a_prompt_of_a_wrong_kind_is_refused(client, prompt):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=prompt)
    assert caught.value.param.startswith("prompt")


def test_every_route_but_health_asks_for_the_key(url):
    routes = [(method, path.replace("{model:path}", "tiny")) for method, path, _ in ROUTES]
    routes += [("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nothing"), ("GET", "/health/"), ("PUT", "/v1")]
    wrong = ["", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer \xff"]
    with httpx2.Client(base_url=url) as http:
        for method, path in routes:
            for given in wrong:
                answer = http.request(method, path, headers=[("authorization", given.encode("latin-1"))])
                assert answer.status_code == (200 if path == "/health" else 401), (path, given)
                if path != "/health":
                    error_of(answer)
            assert http.request(method, path, headers={"authorization": f"Bearer {KEY}"}).status_code != 401
        assert http.get("/health").json() == {"status": "ok"}
        assert (
            "/v1/completions" in http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()["paths"]
        )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/docs", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405)],
)
def test_an_unknown_address_is_answered_in_the_error_format(http, method, path, status):
    answer = http.request(method, path)
    assert answer.status_code == status
    error_of(answer)


def test_bytes_that_are_no_http_are_answered_in_the_error_format(url):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_http"


def test_beyond_loopback_only_with_a_strong_key(tmp_path):
    keys = tmp_path / "keys"
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""):
        with pytest.raises(ConfigError, match="no key"):
            make_rules(host, None, {})
    for text in ("", "short\n", "ü" * 40):
        keys.write_text(text)
        with pytest.raises(ConfigError):
            make_rules("127.0.0.1", keys, {})
    keys.write_text(f"{KEY}\n{'j' * 32}\n")
    rules = make_rules("0.0.0.0", keys, {})
    assert len(rules.tenants) == 2 and KEY.encode() not in b"".join(rules.tenants)


def test_without_a_key_only_this_machines_names_are_answered(tokenizer):
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, [])), make_rules("127.0.0.1", None, {})) as url:
        port = url.rpartition(":")[2]
        for host, status in ((f"localhost:{port}", 200), ("127.0.0.1", 200), (f"evil.example:{port}", 403)):
            answer = httpx2.get(f"{url}/v1/models", headers={"host": host})
            assert answer.status_code == status
        error_of(answer)


def tokens_computed(
    served: ServedModel, rules: Rules, keys: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Let each key in turn ask the same 400 tokens; return how many were computed for each."""
    engine, counts = served.engine._engine, [0] * len(keys)  # type: ignore[attr-defined]
    forward = engine.runner.forward

    def counted(tokens, spans, rows):
        counts[place] += len(tokens)
        return forward(tokens, spans, rows)

    monkeypatch.setattr(engine.runner, "forward", counted)
    with serving(served, rules) as url:
        for place, key in enumerate(keys):  # noqa: B007
            prompt = [token * 7 % 250 for token in range(400)]
            connect(url, key).completions.create(model="tiny", prompt=prompt, max_tokens=1)
    return counts


@pytest.fixture
def two_keys(tmp_path) -> Rules:
    (tmp_path / "keys.txt").write_text(f"{KEY}\n{OTHER_KEY}\n")
    return make_rules("127.0.0.1", tmp_path / "keys.txt", {})


def test_what_one_key_has_asked_is_computed_anew_for_another(checkpoint, two_keys, monkeypatch: pytest.MonkeyPatch):
    keys = (KEY, KEY, OTHER_KEY, OTHER_KEY, KEY)
    assert tokens_computed(open_served(checkpoint), two_keys, keys, monkeypatch) == [400, 16, 400, 16, 16]
    assert tokens_computed(open_served(checkpoint), Rules(), (KEY, OTHER_KEY), monkeypatch) == [400, 16]


def test_a_key_that_asks_for_much_does_not_keep_another_waiting(checkpoint, two_keys):
    served = open_served(checkpoint, options=EngineOptions(max_batch=1))
    ask = {"model": "tiny", "prompt": "We open", "logit_bias": {str(token): -100 for token in served.stop_ids}}
    with serving(served, two_keys) as url:
        much = connect(url, KEY).completions.create(**ask, n=8, max_tokens=150, stream=True)
        next(iter(much))
        little = connect(url, OTHER_KEY).completions.create(**ask, max_tokens=3)
        assert served.engine._engine.num_waiting > 0  # type: ignore[attr-defined]
        much.close()
    assert little.choices[0].finish_reason == "length"


def test_a_body_beyond_its_bounds_is_refused_before_it_is_read(tokenizer):
    rules = Rules(max_body_bytes=10_000, body_seconds=0.3)
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, [])), rules) as url:
        for content in (b" " * 3_000_000, (b" " * 10_000 for _ in range(300))):
            answer = httpx2.post(f"{url}/v1/completions", content=content)
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "body_too_large"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue_is_a_503_that_says_when_to_come_back(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.01)
    with serving(scripted(tokenizer, engine, max_jobs=2)) as url:
        chat = connect(url).chat.completions
        with chat.create(model="tiny", messages=HI, n=2, stream=True) as stream:
            next(iter(stream))
            answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert error_of(answer)["code"] == "overloaded"
        wait_until(lambda: not engine.running)
        assert chat.create(model="tiny", messages=HI, n=2, max_tokens=2).choices[1].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="at most 2"):
            chat.create(model="tiny", messages=HI, n=3)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_hangs_up_stops_its_generation(tokenizer, is_streamed):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.005)
    with serving(scripted(tokenizer, engine)) as url:
        body = json.dumps({"model": "tiny", "messages": HI, "n": 2, "stream": is_streamed}).encode()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            head = f"host: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
            wait_until(lambda: len(engine.running) == 2 and len(engine.running[1].ids) > 3)
        wait_until(lambda: not engine.running)
    assert sorted(engine.aborted) == [0, 1] and len(engine.requests[0].ids) < 1000


def test_a_failing_engine_ends_what_runs_with_an_error_and_goes_on(tokenizer):
    words = tokenizer.encode("We open at nine")
    engine = ScriptedEngine(tokenizer, [*words, None])
    with serving(scripted(tokenizer, engine)) as url:
        chat = connect(url).chat.completions
        with pytest.raises(openai.InternalServerError) as caught:
            chat.create(model="tiny", messages=HI)
        assert caught.value.code == "generation_failed" and "scripted" not in str(caught.value)
        answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT | {"max_tokens": 99, "stream": True})
        *_, error, done = re.findall("data: (.*)\n\n", answer.text)
        assert json.loads(error)["error"]["type"] == "server_error" and done == "[DONE]"
        assert chat.create(model="tiny", messages=HI, max_tokens=len(words)).choices[0].message.content
        engine.script = [None]
        for _ in range(MAX_FAILURES):
            with pytest.raises(openai.InternalServerError):
                chat.create(model="tiny", messages=HI)
        assert httpx2.get(f"{url}/health").status_code == 503
        assert httpx2.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 503


def test_a_shutdown_waits_for_streams_and_ends_the_longest_with_an_error(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.005)
    texts: dict[int, str] = {}

    def ask(url: str, max_tokens: int) -> None:
        body = CHAT | {"max_tokens": max_tokens, "stream": True}
        texts[max_tokens] = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=20).text

    with serving(scripted(tokenizer, engine), shutdown_seconds=3) as url:
        threads = [threading.Thread(target=ask, args=(url, max_tokens)) for max_tokens in (100, 3000)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(engine.running) == 2)
    for thread in threads:
        thread.join()
    assert '"finish_reason":"length"' in texts[100] and '"error"' not in texts[100]
    assert '"code":"overloaded"' in texts[3000] and texts[3000].endswith("data: [DONE]\n\n")


def test_the_command_serves_as_it_is_told_until_it_is_told_to_stop(checkpoint, client, tmp_path):
    made, manifest = tmp_path / "made", Manifest("checkpoint", "sft", "key", {}, {}, {}, licences=["Llama 3.1"])
    with artifact.writing(made) as partial:
        shutil.copytree(checkpoint, partial, dirs_exist_ok=True)
        artifact.commit(partial, made, manifest)
    command = "from puna.cli import main; main()"
    flags = ["--port", "0", "--name", "shop", "--kv-cache", "int8", "--strict-fields"]
    arguments = [sys.executable, "-c", command, "serve", str(made), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr
    log = ""
    try:
        while not (found := re.search(r"The chat page is at (http://127\.0\.0\.1:\d+)/", log)):
            line = process.stderr.readline()
            assert line, log
            log += line
        assert "running on" in log
        shop = connect(found[1])
        assert shop.models.list().data[0].id == "shop"
        ask = {"prompt": "We are open from nine to six.", "max_tokens": 0, "logprobs": 0}
        answers = [each.completions.create(model=name, **ask) for name, each in (("tiny", client), ("shop", shop))]
        usual, rounded = (answer.choices[0].logprobs.token_logprobs[1:] for answer in answers)
        assert rounded != usual and rounded == pytest.approx(usual, abs=0.1)
        assert log.startswith("Built with Llama\n")
        with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
            shop.chat.completions.create(model="shop", messages=HI, reasoning_effort="low")
    finally:
        process.send_signal(signal.SIGTERM)
        log += process.communicate(timeout=20)[1]
    assert "shutdown complete" in log and "Traceback" not in log


def test_a_taken_port_and_a_context_that_no_model_has_are_refused_before_loading(checkpoint: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="expected a free address"):
        serve(checkpoint, port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match=r"expected 2 to .* which the model can read"):
        open_served(checkpoint, options=EngineOptions(max_context=10**9))
