"""What real clients sent to a stub (clients/record.py), sent to Puna: every request gets the answer it asks for."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from test_serve import serving

from puna.serving.serve import open_served

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests" / "serving" / "clients" / "recorded").glob("*.json"))
# lm-evaluation-harness asks for a route of vLLM and goes on without it.
UNKNOWN_PATHS = {"/tokenizer_info"}
MAX_TOKENS = 64  # Open WebUI asks for 1,000, more than the small teacher can hold


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    served = open_served(ROOT / "recipes" / "teacher", name="tiny")
    with serving(served) as url, httpx2.Client(base_url=url, timeout=120) as client:
        yield client


def sent_by(path: Path) -> list[dict]:
    return json.loads(path.read_text())["requests"]


@pytest.mark.tenth
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recorded_request_is_answered(http, path):
    for request in sent_by(path):
        body, route = request["body"], request["path"]
        if body and body.get("max_tokens", 0) > MAX_TOKENS:
            body["max_tokens"] = MAX_TOKENS
        answer = http.request(request["method"], route, json=body)
        if route in UNKNOWN_PATHS:
            assert answer.status_code == 404
            continue
        assert answer.status_code == 200, (body, answer.text)
        if body is None:
            assert "tiny" in answer.text
        elif body.get("stream"):
            assert_streamed(answer.text, body)
        else:
            assert_whole(answer.json(), body)


def assert_streamed(text: str, body: dict) -> None:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    if "messages" in body:
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert len(reasons) == 1 and reasons[0] in {"stop", "length", "tool_calls"}
    wants_usage = (body.get("stream_options") or {}).get("include_usage")
    assert bool(chunks[-1].get("usage")) == bool(wants_usage)


def assert_whole(answer: dict, body: dict) -> None:
    if "prompt" in body:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        for choice in answer["choices"]:
            if body.get("echo") and choice["logprobs"]:
                # OpenAI answers null here too, which the client's own types do not admit.
                firsts = [choice["logprobs"][name].pop(0) for name in ("token_logprobs", "top_logprobs")]
                assert firsts == [None, None]
        completion = Completion.model_validate(answer)
        assert len(completion.choices) == len(prompts)
        assert all((choice.logprobs is None) == (body.get("logprobs") is None) for choice in completion.choices)
        return
    chat = ChatCompletion.model_validate(answer)
    assert len(chat.choices) == (body.get("n") or 1)
    for choice in chat.choices:
        must_call = isinstance(body.get("tool_choice"), dict) or body.get("tool_choice") == "required"
        if choice.finish_reason == "tool_calls":
            names = {tool["function"]["name"] for tool in body["tools"]}
            assert all(call.function.name in names for call in choice.message.tool_calls)
        else:
            # A call that the length cuts off is text.
            assert not must_call or choice.finish_reason == "length"
            assert choice.message.content is not None and not choice.message.tool_calls
        assert bool(choice.logprobs) == bool(body.get("logprobs"))


def test_the_recorded_clients_are_those_of_the_table():
    table = (ROOT / "docs" / "reference" / "compatibility.md").read_text()
    for path in RECORDED:
        assert json.loads(path.read_text())["client"] in table
