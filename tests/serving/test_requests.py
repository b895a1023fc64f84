"""Requests as ordinary clients write them: messages sent back, fields without effect, continued messages, bodies."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from test_serve import CALL, HI, SENTENCES, TOOL, ScriptedEngine, connect, error_of, save_tiny, scripted, serving

from puna.formats.chat.conversation import Conversation
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import RequestError
from puna.serving.browser.origins import parse_origins
from puna.serving.errors import HttpError, to_http_error
from puna.serving.middleware.rules import Rules
from puna.serving.middleware.warnings import MAX_CHARS, MAX_LOGGED, header_value
from puna.serving.protocol.log_limit import LogLimit
from puna.serving.requests.chat import ChatRequest
from puna.serving.requests.completion import CompletionRequest
from puna.serving.requests.reading import check_body, parse_body
from puna.serving.serve import open_served
from puna.serving.served_model import ServedModel

CHAT = {"model": "tiny", "messages": HI, "max_tokens": 4}
REQUESTS = {False: ChatRequest, True: CompletionRequest}
JSON = "application/json"
ARGUMENTS = {"number": 17, "by": "Zoë"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("requests") / "tiny", [*SENTENCES, CALL], num_merges=60, max_context=2048)


@pytest.fixture(scope="module")
def served(checkpoint) -> ServedModel:
    return open_served(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(served) -> Tokenizer:
    return served.tokenizer


@pytest.fixture(scope="module")
def engine(tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, [*tokenizer.encode("At nine."), tokenizer.special("eot_id")])


@pytest.fixture(scope="module")
def http(tokenizer, engine) -> Iterator[httpx2.Client]:
    with serving(scripted(tokenizer, engine)) as url, httpx2.Client(base_url=url) as raw:
        yield raw


@pytest.fixture(scope="module")
def strict(tokenizer, engine) -> Iterator[httpx2.Client]:
    served = replace(scripted(tokenizer, engine), strict_fields=True)
    with serving(served) as url, httpx2.Client(base_url=url) as raw:
        yield raw


def ask(http: httpx2.Client, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx2.Response:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def warning_of(answer: httpx2.Response) -> str:
    return answer.headers.get("x-puna-warning", "")


def called(call: Any = None, **message: Any) -> list[dict[str, Any]]:
    """Return a dialogue in which the assistant called a tool, and its result."""
    usual = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": json.dumps(ARGUMENTS)}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call or usual], **message}
    return [*HI, assistant, {"role": "tool", "tool_call_id": "c1", "content": "sent"}]


def spelled(arguments: Any, **beside: Any) -> list[dict[str, Any]]:
    function = {"name": "find_order", "arguments": arguments, **beside}
    return called({"id": "c1", "type": "function", "function": function})


def answered(**message: Any) -> list[dict[str, Any]]:
    return [*HI, {"role": "assistant", "content": "At nine.", **message}, {"role": "user", "content": "Thanks"}]


EMPTY = spelled({})
SENT_BACK: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "index of a streamed call": (called({**called()[1]["tool_calls"][0], "index": 0}), called()),
    "parsed arguments": (spelled(json.dumps(ARGUMENTS), parsed_arguments=ARGUMENTS), called()),
    "arguments as an object": (spelled(ARGUMENTS), called()),
    "arguments encoded twice": (spelled(json.dumps(json.dumps(ARGUMENTS))), called()),
    "arguments null": (spelled(None), EMPTY),
    'arguments "null"': (spelled("null"), EMPTY),
    "arguments empty": (spelled(" "), EMPTY),
    "arguments of PHP": (spelled("[]"), EMPTY),
    "arguments padded with null": (spelled({**ARGUMENTS, "city": None}), called()),
    "call without id and type": (called({"id": None, "function": called()[1]["tool_calls"][0]["function"]}), called()),
    "call without an envelope": (called({"id": "c1", "name": "find_order", "arguments": ARGUMENTS}), called()),
    "arguments of LangChain": (
        called({"id": "c1", "type": "tool_call", "name": "find_order", "args": ARGUMENTS}),
        called(),
    ),
    "arguments in Llama's spelling": (
        called({"function": {"name": "find_order", "arguments": None, "parameters": ARGUMENTS}}),
        called(),
    ),
    "content of a call as an empty string": (called(content=""), called()),
    "content of a call as an empty list": (called(content=[]), called()),
    "deprecated function call": (
        [
            *HI,
            {"role": "assistant", "function_call": {"name": "find_order", "arguments": json.dumps(ARGUMENTS)}},
            {"role": "function", "name": "find_order", "content": "sent"},
        ],
        called(),
    ),
    "tool message without id": ([*called()[:2], {"role": "tool", "content": "sent"}], called()),
    "tool message in parts": (
        [*called()[:2], {"role": "tool", "content": [{"type": "text", "text": "sent"}]}],
        called(),
    ),
    "tool message of null": (
        [*called()[:2], {"role": "tool", "tool_call_id": "c1", "content": None}],
        [*called()[:2], {"role": "tool", "tool_call_id": "c1", "content": ""}],
    ),
    "tool message of an object": (
        [*called()[:2], {"role": "tool", "tool_call_id": "c1", "content": {"state": "sent"}}],
        [*called()[:2], {"role": "tool", "tool_call_id": "c1", "content": '{"state": "sent"}'}],
    ),
    "tool message of rows": (
        [*called()[:2], {"role": "tool", "content": [{"state": "sent"}, {"type": "parcel"}]}],
        [*called()[:2], {"role": "tool", "content": '[{"state": "sent"}, {"type": "parcel"}]'}],
    ),
    "parts of the newer API": (
        [
            {"role": "user", "content": [{"type": "input_text", "text": HI[0]["content"]}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "At nine.", "annotations": []}]},
            {"role": "user", "content": ["Tha", {"text": "nks", "image_url": None}]},
        ],
        answered(),
    ),
    "thoughts as parts": (
        answered(
            content=[
                {"type": "thinking", "thinking": "Nine?", "signature": "s"},
                {"type": "reasoning", "text": "Nine!"},
                {"type": "text", "text": "At nine."},
            ]
        ),
        answered(),
    ),
    "fields of openai's message": (
        answered(refusal=None, audio=None, annotations=[], function_call=None, tool_calls=None, parsed={"a": 1}),
        answered(),
    ),
    "no calls as an empty list": (answered(tool_calls=[]), answered()),
    "reasoning of null": (answered(reasoning=None, reasoning_content=None, thinking=""), answered()),
    "reasoning": (answered(reasoning_content="Nine, I think."), answered()),
    "a refusal": (answered(content=None, refusal="At nine."), answered()),
    "a refusal as a part": (answered(content=[{"type": "refusal", "refusal": "At nine."}]), answered()),
    "type of message": ([{**HI[0], "type": "text"}], HI),
    "type message": ([{**HI[0], "type": "message", "id": "m1"}], HI),
    "names": ([{**HI[0], "name": "Kim"}], HI),
    "cache control": (
        [{"role": "user", "content": [{"type": "text", "text": HI[0]["content"], "cache_control": {}}]}],
        HI,
    ),
    "content as an empty list": (
        [*HI, {"role": "assistant", "content": "a"}, {"role": "user", "content": []}],
        [*HI, {"role": "assistant", "content": "a"}, {"role": "user", "content": ""}],
    ),
    "developer": (
        [{"role": "developer", "content": "Be brief."}, *HI],
        [{"role": "system", "content": "Be brief."}, *HI],
    ),
    "assistant of null": (answered(content=None), answered(content="")),
}


@pytest.mark.parametrize("name", SENT_BACK)
def test_what_clients_send_back_is_read_as_openais_spelling(http, engine, served, name):
    given, meant = SENT_BACK[name]
    ask(http, CHAT | {"messages": given, "tools": [TOOL]})
    expected = served.format.prompt(Conversation.from_json({"messages": meant, "tools": [TOOL]}))
    assert engine.requests[-1].prompt == expected


@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_every_form_of_the_clients_own_message_can_be_sent_back(tokenizer, way):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode(CALL), tokenizer.special("eot_id")])
    tool = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    options: dict[str, Any] = {"model": "tiny", "messages": HI, "tools": [tool]}
    with serving(scripted(tokenizer, engine)) as url:
        chat = connect(url).chat.completions
        if way == "stream":
            with chat.stream(**options) as stream:
                said = stream.get_final_completion().choices[0].message
        else:
            said = (chat.create if way == "create" else chat.parse)(**options).choices[0].message
        result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sent"}
        forms = [
            said,
            said.model_dump(),
            said.model_dump(exclude_none=True),
            said.to_dict(),
            json.loads(said.to_json()),
        ]
        for form in forms:
            chat.create(**options | {"messages": [*HI, form, result]})
    prompts = [request.prompt for request in engine.requests[1:]]
    assert len(prompts) == len(forms) and all(prompt == prompts[0] for prompt in prompts)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "", "images": ["aGk="]}, "messages[0].images"),
        ({"role": "assistant", "content": "", "audio": {"id": "a1"}}, "messages[0].audio"),
        ({"role": "assistant", "tool_cals": [1]}, "messages[0].tool_cals"),
        ({"role": "assistant", "content": "", "functionCall": {"name": "f"}}, "messages[0].functionCall"),
        ({"role": "assistant", "tool_calls": [{"id": "c1"}]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": ""}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "name": "f"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "tool", "content": 5}, "messages[0].content"),
        ({"role": "tool", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"text": "a", "image_url": {"url": "b"}}]}, "messages[0].content[0].type"),
        ({"content": "Hi"}, "messages[0].role"),
        ({"role": "human", "content": "Hi"}, "messages[0].role"),
    ],
    ids=str,
)
def test_a_message_that_would_be_read_wrongly_is_refused_by_name(http, message, param):
    answer = http.post("/v1/chat/completions", json=CHAT | {"messages": [message]})
    assert answer.status_code == 400 and error_of(answer)["param"] == param


def test_a_broken_call_is_refused_with_its_place(http):
    answer = http.post("/v1/chat/completions", json=CHAT | {"messages": spelled('{"number": "47')})
    assert answer.status_code == 400
    assert "messages[1].tool_calls[0].function.arguments is not JSON" in error_of(answer)["message"]


def test_a_tool_is_shown_without_padding_and_without_fields_of_other_programs(http, engine):
    function = TOOL["function"]
    parameters = function["parameters"]
    padded = {**parameters, "properties": {**parameters["properties"], "city": None}, "enum": None}
    tool = {
        "type": "function",
        "function": {**function, "parameters": padded, "strict": None},
        "cache_control": {"a": 1},
    }
    assert warning_of(ask(http, CHAT | {"tools": [tool]})) == "tools[0].cache_control has no effect"
    ask(http, CHAT | {"tools": [TOOL]})
    assert engine.requests[-1].prompt == engine.requests[-2].prompt
    bare = {"type": "function", "function": {"name": "now", "description": None, "parameters": None}}
    ask(http, CHAT | {"tools": [bare]})
    assert "null" not in engine.tokenizer.decode(engine.requests[-1].prompt)


WITHOUT_EFFECT = {
    "add_special_tokens": True,
    "best_of": 1,
    "cache_prompt": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "function_call": "none",
    "functions": [],
    "guided_choice": [],
    "guided_decoding_backend": "xgrammar",
    "ignore_eos": False,
    "keep_alive": "5m",
    "length_penalty": 1.0,
    "logits_processors": [],
    "metadata": {"run": {"id": 7}},
    "min_tokens": 0,
    "modalities": ["text"],
    "models": ["a", "b"],
    "mirostat": 0,
    "options": {"num_ctx": 4096},
    "priority": 1,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "provider": {"order": ["a"]},
    "reasoning_effort": "low",
    "route": "fallback",
    "safety_identifier": "u",
    "service_tier": "flex",
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "store": True,
    "suffix": "",
    "temprature": False,
    "think": False,
    "typical_p": 1.0,
    "use_beam_search": False,
    "user": "u",
    "verbosity": "low",
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_fields_without_effect_are_accepted_with_a_warning_that_names_them(http, engine, path):
    body = CHAT if "chat" in path else {"model": "tiny", "prompt": "We open", "max_tokens": 4}
    assert warning_of(ask(http, body, path)) == ""
    plain = engine.requests[-1]
    for name, value in WITHOUT_EFFECT.items():
        assert warning_of(ask(http, body | {name: value}, path)) == f"{name} has no effect"
        assert engine.requests[-1].prompt == plain.prompt and engine.requests[-1].params == plain.params
    told = warning_of(ask(http, body | WITHOUT_EFFECT, path))
    assert all(f"{name} has no effect" in told for name in ("best_of", "min_tokens")) and len(told) <= MAX_CHARS
    nothing = {"environment": None, "today": None, "call_format": None, "builtin_tools": None} if "chat" in path else {}
    assert warning_of(ask(http, body | nothing, path)) == ""
    assert warning_of(ask(http, body | dict.fromkeys([*WITHOUT_EFFECT, "guided_json", "anything"]), path)) == ""


def test_strict_fields_refuse_what_has_no_effect_but_openais_labels(strict):
    labels = {"user", "safety_identifier", "prompt_cache_key", "best_of", "suffix", "modalities"}
    for name, value in WITHOUT_EFFECT.items():
        answer = strict.post("/v1/chat/completions", json=CHAT | {name: value})
        assert answer.status_code == (200 if name in labels else 400), name
        assert name in labels or error_of(answer)["param"] == name
    for change in (
        {"top_k": -1},
        {"stop": ""},
        {"n_predict": 4},
        {"best_of": True},
        {"messages": [{**HI[0], "name": "Kim"}]},
    ):
        assert strict.post("/v1/chat/completions", json=CHAT | change).status_code == 400
    ask(strict, CHAT | {"metadata": {"run": "7"}, "store": False, "service_tier": "auto"})
    ask(strict, CHAT | {"messages": called(called()[1]["tool_calls"][0] | {"index": 0})})


CHANGES_THE_ANSWER = {
    "audio": {"voice": "a"},
    "best_of": 2,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs.date_string": "1 May",
    "documents": [{"text": "a"}],
    "format": "json",
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "grammar": 'root ::= "a"',
    "guided_json": {},
    "guided_regex": "a+",
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "instructions": "Be brief.",
    "min_tokens": 3,
    "options.num_predict": 8,
    "options.temperature": 0.5,
    "mirostat": 2,
    "modalities": ["text", "audio"],
    "prompt": "We open",
    "prediction": {"type": "content", "content": "a"},
    "skip_special_tokens": False,
    "structured_outputs": {"regex": "a"},
    "suffix": "b",
    "system": "Be brief.",
    "typical_p": 0.5,
    "use_beam_search": True,
    "web_search_options": {},
    "xtc_probability": 0.5,
}


@pytest.mark.parametrize("name", CHANGES_THE_ANSWER)
def test_a_field_that_would_change_the_answer_is_refused_by_name(http, name):
    first, _, second = name.partition(".")
    value = CHANGES_THE_ANSWER[name]
    answer = http.post("/v1/chat/completions", json=CHAT | {first: {second: value} if second else value})
    assert answer.status_code == 400 and error_of(answer)["param"] == name


@pytest.mark.parametrize(
    "name", ["temperatur", "stopp", "maxTokens", "max-tokens", "top_P", "Seed", "stream_option", "tool_choise"]
)
def test_a_misspelled_field_is_refused_with_the_right_one(http, name):
    answer = http.post("/v1/chat/completions", json=CHAT | {name: 1})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == name and "Did you mean" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "name", ["tool_ids", "message_id", "model_id", "mode", "prompt_id", "seed_id", "chat_id", "user_id"]
)
def test_a_name_of_another_field_is_not_taken_for_a_misspelling(http, name):
    assert warning_of(ask(http, CHAT | {name: "x"})) == f"{name} has no effect"


def test_special_tokens_of_a_chat_are_its_formats_and_conversations_are_for_chats_only(http):
    assert warning_of(ask(http, CHAT | {"add_special_tokens": False})) == "add_special_tokens has no effect"
    text = {"model": "tiny", "prompt": "We open", "max_tokens": 4}
    for name, value in {"add_special_tokens": False, "messages": HI, "tools": [TOOL]}.items():
        answer = http.post("/v1/completions", json=text | {name: value})
        assert answer.status_code == 400 and error_of(answer)["param"] == name


def test_whole_numbers_and_stop_strings_are_read_as_other_languages_write_them(http, engine):
    answer = ask(http, CHAT | {"max_tokens": 3.0, "top_k": 40.0, "stop": ["", "###"]})
    assert engine.requests[-1].params.max_tokens == 3 and engine.requests[-1].params.top_k == 40
    assert warning_of(answer) == "stop: '' is read as no stop string"
    assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3.5}).status_code == 400


def test_a_list_that_is_too_long_is_named_before_its_items(http):
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": ["We open"] * 257, "max_tokens": 4})
    assert error_of(answer)["param"] == "prompt" and "at most 256 items" in error_of(answer)["message"]


def test_other_programs_names_and_values_are_honoured(http, engine, tokenizer):
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"}

    def params(change: dict[str, Any]) -> tuple[SamplingParams, str]:
        told = warning_of(ask(http, body | change))
        return engine.requests[-1].params, told

    assert params({"n_predict": 3})[0].max_tokens == 3
    assert params({"max_new_tokens": 3}) == (params({"max_tokens": 3})[0], "max_new_tokens is read as max_tokens")
    assert params({"n_predict": -1})[0] == params({"max_tokens": -1})[0] == params({})[0]
    assert params({"repeat_penalty": 1.2})[0] == params({"repetition_penalty": 1.2})[0]
    assert params({"stop_sequences": ["x"]})[0].stop_strings == ("x",)
    assert params({"do_sample": False, "temperature": 1})[0] == params({"temperature": 0})[0]
    assert params({"random_seed": 4})[0] == params({"seed": 4})[0]
    assert params({"top_k": -1}) == (params({"top_k": 0})[0], "top_k: -1 is read as no limit")
    assert (
        params({"logit_bias": []})[0]
        == params({"stop": ""})[0]
        == params({"top_logprobs": 0, "logprobs": False})[0]
        == params({})[0]
    )
    assert params({"n_predict": None, "max_tokens": 3}) == (params({"max_tokens": 3})[0], "")
    for padded in ({"n_predict": 3, "max_tokens": None}, {"max_tokens": None, "n_predict": 3}):
        assert params(padded)[0].max_tokens == 3
    assert params({"options": {"temperature": None, "num_ctx": 8}})[1] == "options has no effect"
    for two in ({"max_tokens": 4, "n_predict": 9}, {"max_new_tokens": 4, "n_predict": 9}):
        answer = http.post("/v1/chat/completions", json=body | two)
        assert answer.status_code == 400 and error_of(answer)["param"] == "n_predict"


@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["no tools", "tools"])
def test_a_token_id_to_stop_at_ends_the_answer_and_is_no_part_of_it(http, engine, tokenizer, tools):
    body = {"model": "tiny", "messages": HI, "tools": tools, "logprobs": True, "stop_token_ids": [engine.script[2]]}
    choice = ask(http, body).json()["choices"][0]
    assert choice["message"]["content"] == tokenizer.decode(engine.script[:2]) and choice["finish_reason"] == "stop"
    text = ask(http, {"model": "tiny", "prompt": "a", "stop_token_ids": [engine.script[2]]}, "/v1/completions").json()
    assert text["choices"][0]["text"] == tokenizer.decode(engine.script[:2])


def test_a_schema_beside_json_object_is_the_answers_form(checkpoint):
    form = {"type": "json_object", "schema": {"enum": ["yes", "no"]}}
    with serving(open_served(checkpoint)) as url:
        for seed in range(3):
            body = {"model": "tiny", "messages": HI, "response_format": form, "temperature": 2, "seed": seed}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=body).json()
            assert json.loads(answer["choices"][0]["message"]["content"]) in ("yes", "no")


@contextmanager
def logging_to(lines: list[str]) -> Iterator[None]:
    """Collect uvicorn's log: it hands nothing on to the root's handlers."""
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)


def test_a_schema_beside_json_object_is_fitted_as_others_are(http):
    schema = {"type": "object", "properties": {"to": {"type": "string", "pattern": r"^(?!\.)[a-z.]+$"}}}
    form = {"type": "json_object", "schema": schema}
    assert "pattern" in warning_of(ask(http, CHAT | {"response_format": form}))


def test_warnings_are_one_bounded_line_of_ascii_without_values(tokenizer, engine, monkeypatch):
    monkeypatch.setattr(LogLimit, "filter", lambda limit, record: True)  # The tests before this one wrote lines too.
    secret, lines = "s" * 40, list[str]()
    with serving(scripted(tokenizer, engine)) as url, httpx2.Client(base_url=url) as http, logging_to(lines):
        told = warning_of(ask(http, CHAT | {"metadata": {secret: secret}, "späß\r\nx-evil: 1": secret}))
        ask(http, CHAT | {"metadata": {secret: secret}, "verbosity": "low"})
        streamed = ask(http, CHAT | {"stream": True, "verbosity": "low"})
        assert warning_of(streamed) == "verbosity has no effect" and streamed.text.endswith("data: [DONE]\n\n")
    assert told == r"metadata has no effect; 'sp\xe4\xdf\r\nx-evil: 1' has no effect"
    assert any("x-evil" in line for line in lines) and not any(secret in line or "\n" in line for line in lines)
    assert sum("metadata has no effect" in line for line in lines) <= 1
    many = header_value({f"field_{number} has no effect": None for number in range(500)}).decode()
    assert len(many) <= MAX_CHARS and many.endswith(" more")
    origin = "https://shop.example"
    with serving(scripted(tokenizer, engine), Rules(origins=parse_origins([origin]))) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT | {"user": "u"}, headers={"origin": origin})
    assert "X-Puna-Warning" in answer.headers["access-control-expose-headers"] and warning_of(answer)


def test_the_log_has_few_lines_whatever_clients_send(tokenizer, engine):
    lines: list[str] = []
    with serving(scripted(tokenizer, engine)) as url, httpx2.Client(base_url=url) as http, logging_to(lines):
        for start in range(0, 300, 20):
            ask(http, CHAT | {f"unknown_{number}": 1 for number in range(start, start + 20)})
    assert sum("accepted with a warning" in line for line in lines) <= MAX_LOGGED


def test_a_hundred_names_are_one_warning(http):
    messages = [{**message, "name": "Kim"} for message in HI * 50]
    assert warning_of(ask(http, CHAT | {"messages": messages})).count("name has no effect") == 1


MANY = 200_000
NAMES = {f"u{number:x}": 1 for number in range(MANY)}
LARGE: dict[str, dict[str, Any]] = {
    "numbers that are no tokens": {"prompt": [1.5] * 4 * MANY},
    "prompts that are no tokens": {"prompt": [[1.5]] * 3 * MANY},
    "prompts of numbers that are no tokens": {"prompt": [[1.5] * 4000] * 250},
    "unknown fields": NAMES,
    "unknown fields of a message": {"messages": [HI[0] | NAMES]},
    "unknown fields of messages": {"messages": [HI[0] | {f"u{i}_{j}": 1 for j in range(50)} for i in range(4000)]},
    "unknown fields of tools": {"tools": [TOOL | {f"u{number}": 1 for number in range(2000)}] * 100},
    "parts of an unknown type": {"messages": [{"role": "user", "content": [{"type": "x"}] * 1000}] * 150},
    "parts that are numbers": {"messages": [{"role": "user", "content": [1] * 1000}] * 1500},
    "calls without a name": {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}] * 128}] * 800},
    "biases of words": {"logit_bias": NAMES},
    "messages that are numbers": {"messages": [1] * 4 * MANY},
    "stops that are numbers": {"stop": [1] * 4 * MANY},
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_wrong_body_is_refused_in_less_than_a_second(name):
    body: dict[str, Any] = {"model": "tiny"} | ({} if "prompt" in LARGE[name] else {"messages": HI}) | LARGE[name]
    content = json.dumps(body, separators=(",", ":")).encode()
    assert 300_000 < len(content) < 4 << 20
    began = time.thread_time()
    with pytest.raises(HttpError) as caught:
        check_body(parse_body(content, content_type=JSON), REQUESTS["prompt" in body], is_strict=False)
    assert time.thread_time() - began < 1 and caught.value.status == 400 and len(str(caught.value)) < 1000


BEGUN = [*HI, {"role": "assistant", "content": " We open "}]
CONTINUED = CHAT | {"messages": BEGUN, "continue_final_message": True, "max_tokens": 20}


def test_a_last_message_is_continued_after_its_text(http, engine, served, tokenizer):
    whole = served.format.prompt(Conversation.from_json({"messages": HI})) + tokenizer.encode("We open")
    marked = [*HI, BEGUN[1] | {"prefix": True}]
    for change in ({}, {"add_generation_prompt": False}, {"tools": []}):
        assert ask(http, CONTINUED | change).json()["choices"][0]["message"]["content"] == "At nine."
        assert engine.requests[-1].prompt == whole
    ask(http, CHAT | {"messages": marked})
    assert engine.requests[-1].prompt == whole
    again = ask(http, CHAT | {"messages": BEGUN})
    ended = served.format.prompt(Conversation.from_json({"messages": BEGUN}))
    assert engine.requests[-1].prompt == ended and "continue_final_message" in warning_of(again)
    assert warning_of(ask(http, CHAT | {"add_generation_prompt": True, "continue_final_message": False})) == ""


def test_a_continued_message_streams_and_is_echoed_where_that_is_asked_for(served):
    with serving(served) as url, httpx2.Client(base_url=url) as http:
        for echoed in (False, True):
            body = CONTINUED | {"echo": echoed, "logprobs": True, "seed": 1, "temperature": 1.0}
            lines = ask(http, body | {"stream": True}).text.split("\n")
            choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
            whole = ask(http, body).json()["choices"][0]
            begun = "We open" if echoed else ""
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            assert text == whole["message"]["content"] and text.startswith(begun) and len(text) > len(begun)
            entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
            assert entries == whole["logprobs"]["content"]


WHOLE_CALL = CALL.replace('"17"', "17")


@pytest.mark.parametrize("cut", [1, 12, 45, 70])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_call_that_is_begun_is_read_whole(tokenizer, cut, is_streamed):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode(WHOLE_CALL[cut:]), tokenizer.special("eot_id")])
    messages = [*HI, {"role": "assistant", "content": WHOLE_CALL[:cut]}]
    options: dict[str, Any] = {"model": "tiny", "messages": messages, "tools": [TOOL]}
    with serving(scripted(tokenizer, engine)) as url:
        create = connect(url).chat.completions.create
        if is_streamed:
            events = list(create(**options, stream=True, extra_body={"continue_final_message": True}))
            choices = [event.choices[0] for event in events]
            calls = [call for choice in choices for call in choice.delta.tool_calls or []]
            assert not any(choice.delta.content for choice in choices)
        else:
            calls = create(**options, extra_body={"continue_final_message": True}).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS]


def test_text_after_a_begun_text_is_no_call(tokenizer):
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode(CALL), tokenizer.special("eot_id")])
    with serving(scripted(tokenizer, engine)) as url:
        create = connect(url).chat.completions.create
        extra = {"continue_final_message": True}
        answer = create(model="tiny", messages=BEGUN, tools=[TOOL], extra_body=extra)
        events = list(create(model="tiny", messages=BEGUN, tools=[TOOL], extra_body=extra, stream=True))
    assert answer.choices[0].message.content == CALL and not answer.choices[0].message.tool_calls
    assert "".join(event.choices[0].delta.content or "" for event in events) == CALL


def test_a_form_holds_for_the_whole_of_a_continued_message(checkpoint):
    form = {"type": "grammar", "syntax": "regex", "definition": "[a-f]{3}-[0-9]{2}"}
    ask_for: dict[str, Any] = {"model": "tiny", "response_format": form, "temperature": 1.5}
    with serving(open_served(checkpoint)) as url, httpx2.Client(base_url=url) as http:
        for begun in ("a", "bad-", "cab-1"):
            messages = [*HI, {"role": "assistant", "content": begun}]
            body = ask_for | {"messages": messages, "continue_final_message": True}
            rest = ask(http, body).json()["choices"][0]["message"]["content"]
            assert len(begun + rest) == 6 and (begun + rest)[3] == "-" and (begun + rest)[4:].isdigit()
        for begun in ("x", "bad-123", "bad-12"):
            body["messages"] = [*HI, {"role": "assistant", "content": begun}]
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400 and error_of(answer)["param"] == "messages"
        tool = {"type": "function", "function": {"name": "find_order"}}
        body = {"model": "tiny", "tools": [TOOL], "tool_choice": tool, "continue_final_message": True, "max_tokens": 90}
        body["seed"] = 0  # A few draws in a thousand are numbers beyond the range of a float: no call.
        body["messages"] = [*HI, {"role": "assistant", "content": '{"type": "function", "name": "find_order", "param'}]
        choice = ask(http, body).json()["choices"][0]
        assert choice["finish_reason"] == "length" or choice["message"]["tool_calls"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"add_generation_prompt": True}, "continue_final_message"),
        ({"continue_final_message": False, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": None, "echo": True}, "echo"),
        ({"messages": HI}, "messages"),
        ({"messages": called()}, "messages"),
        ({"messages": called()[:2]}, "messages"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
    ],
    ids=str,
)
def test_what_cannot_be_continued_is_refused(http, change, param):
    answer = http.post("/v1/chat/completions", json=CONTINUED | change)
    assert answer.status_code == 400 and error_of(answer)["param"] == param


GOOD = json.dumps(CHAT).encode()
BODIES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", JSON, "The body is empty; expected a JSON object"),
    "blank": (b" \n", JSON, "The body is empty"),
    "cut off": (GOOD[:-2], JSON, f"The body is cut off: it ends at line 1, column {len(GOOD) - 1}"),
    "cut off in a string": (b'{"model": "ti', JSON, "line 1, column 11 (character 10)"),
    "wrong sign": (b'{\n "model": "tiny",\n "n": }', JSON, "at line 3, column 7 (character 26), before '}': expected"),
    "single quotes": (
        b"{'model': 1}",
        JSON,
        "line 1, column 2 (character 1), before \"'model': 1}\": expected property",
    ),
    "trailing comma": (b'{"model": "tiny",}', JSON, "character 17"),
    "two objects": (GOOD + GOOD, JSON, f"character {len(GOOD)}), before"),
    "a form": (b"model=tiny&prompt=a", "application/x-www-form-urlencoded", "expected a JSON object with the header"),
    "a form in parts": (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b", "Content-Type is 'multipart/form-data"),
    "curl without a header": (GOOD, "application/x-www-form-urlencoded", "Content-Type: application/json"),
    "text": (GOOD, "text/plain", "Content-Type is 'text/plain'"),
    "no type": (GOOD, "", "There is no Content-Type"),
    "UTF-16": (json.dumps(CHAT).encode("utf-16"), JSON, "encoded as UTF-16; expected UTF-8"),
    "UTF-32": (json.dumps(CHAT).encode("utf-32-le"), JSON, "encoded as UTF-32-LE; expected UTF-8"),
    "Latin-1": ('{"model":\n"Köln"}'.encode("latin-1"), JSON, "the byte 0xf6 at position 12 (line 2)"),
    "a list": (b"[]", JSON, "The body is a list; expected a JSON object"),
    "a string": (b'"a"', JSON, "The body is a string; expected a JSON object"),
    "null": (b"null", JSON, "The body is null; expected a JSON object"),
    "a number": (b"7", JSON, "The body is a number; expected a JSON object"),
    "long number": (b'{"n": ' + b"9" * 5000 + b"}", JSON, "a number of more than 4,300 digits"),
    "nested": (b"[" * 100_000, JSON, "nested too deeply"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_body_that_cannot_be_read_is_answered_with_the_place_and_what_was_expected(http, name, path):
    content, kind, message = BODIES[name]
    answer = http.post(path, content=content, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_a_compressed_body_is_refused_as_one(http):
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    answer = http.post("/v1/chat/completions", content=b"\x1f\x8b\x08", headers=headers)
    assert answer.status_code == 400 and "Content-Encoding is 'gzip'" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "kind", [JSON, "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"]
)
def test_json_in_utf_8_is_read_with_any_of_its_types_and_with_a_byte_order_mark(http, kind):
    for content in (GOOD, b"\xef\xbb\xbf" + GOOD, b"\n\t " + GOOD + b"\r\n", GOOD + b" " * 100_000):
        assert http.post("/v1/chat/completions", content=content, headers={"content-type": kind}).status_code == 200


def test_openais_client_meets_no_warning_and_no_error(http, engine):
    client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    assert "x-puna-warning" not in raw.headers


class TooLongError(RequestError):
    """A subclass that the server has never seen."""


def test_a_subclass_of_a_request_error_is_a_client_error():
    error = to_http_error(TooLongError("9 tokens", expected="at most 8", param="prompt"))
    assert (error.status, error.param, error.code) == (400, "prompt", None)
    assert error.body()["error"]["type"] == "invalid_request_error"
