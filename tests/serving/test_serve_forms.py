"""Answers held to a form, from outside: the openai client against a random model, which would say anything else."""

import concurrent.futures
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from test_serve import HI, KEY, connect, save_tiny, serving

from puna.inference.engine.grammar import check
from puna.pipeline.errors import CheckpointError
from puna.serving.admission.admission import Admission
from puna.serving.middleware.rules import make_rules
from puna.serving.serve import open_served
from puna.serving.served_model import ServedModel

ORDER = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 1, "maximum": 999},
        "by": {"type": "string", "maxLength": 5},
    },
    "required": ["number"],
    "additionalProperties": False,
}
SHOP = {"type": "object", "properties": {"city": {"enum": ["Rome", "Köln"]}}, "required": ["city"]}
SHOP["additionalProperties"] = False
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find_order", "description": "Look up an order", "parameters": ORDER}},
    {"type": "function", "function": {"name": "find-shop", "parameters": SHOP, "strict": True}},
]
SCHEMAS = {"find_order": ORDER, "find-shop": SHOP}
ASK = {"model": "tiny", "messages": HI, "max_tokens": 200, "temperature": 1.0}
SENTENCES = [
    "The shop opens at nine o'clock. ",
    '{"type": "function", "name": "find_order", "parameters": {"number": 17, "by": "Zoë"}} ',
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("forms") / "tiny", SENTENCES, num_merges=60, max_context=2048)


@pytest.fixture(scope="module")
def served(checkpoint) -> Iterator[ServedModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "SECONDS", 1.0)
        yield open_served(checkpoint)


@pytest.fixture(scope="module")
def client(served) -> Iterator[openai.OpenAI]:
    with serving(served, make_rules("127.0.0.1", None, {"PUNA_API_KEY": KEY})) as address:
        yield connect(address)


def form_of(schema: dict[str, Any], *, strict: bool | None = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": strict}}


def test_every_answer_to_a_json_schema_is_valid_streamed_or_whole(client):
    asked = ASK | {"response_format": form_of(ORDER), "n": 6, "seed": 3}
    whole = [choice.message.content for choice in client.chat.completions.create(**asked).choices]
    parts = [""] * 6
    for event in client.chat.completions.create(**asked, stream=True):
        for choice in event.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == whole and len(set(whole)) > 3
    for text in whole:
        jsonschema.validate(json.loads(text), ORDER)


def test_a_completion_takes_the_same_forms(client):
    form = {"type": "grammar", "syntax": "regex", "definition": "[a-f]{3}-[0-9]{2}"}
    told = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 50, "temperature": 2.0}
    for choice in client.completions.create(**told, extra_body={"response_format": form}).choices:
        assert re.fullmatch("[a-f]{3}-[0-9]{2}", choice.text) and choice.finish_reason == "stop"
    answer = client.completions.create(**told, extra_body={"response_format": form_of(SHOP)})
    assert all(json.loads(choice.text)["city"] in ("Rome", "Köln") for choice in answer.choices)


def test_any_json_object_and_a_lark_grammar_are_forms_too(client):
    for seed in range(4):
        answer = client.chat.completions.create(**ASK, seed=seed, response_format={"type": "json_object"}).choices[0]
        assert answer.message.content.startswith("{")
        assert answer.finish_reason == "length" or isinstance(json.loads(answer.message.content), dict)
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "yes" | "no, " /[a-z]{2,9}/'}
    for seed in range(4):
        answer = client.chat.completions.create(**ASK, seed=seed, extra_body={"response_format": form}).choices[0]
        assert re.fullmatch("yes|no, [a-z]{2,9}", answer.message.content)


SETTINGS = {
    "json": {},
    "ipython": {"environment": "ipython", "builtin_tools": ["brave_search"]},
    "tag": {"call_format": "tag"},
}


def check_calls(calls) -> None:
    for call in calls:
        assert call.id and call.function.name in SCHEMAS
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_named_function_is_called_with_valid_arguments(client, setting):
    for name in SCHEMAS:
        chosen = {"type": "function", "function": {"name": name}}
        answer = client.chat.completions.create(
            **ASK, tools=TOOLS, tool_choice=chosen, n=4, seed=1, extra_body=SETTINGS[setting]
        )
        for choice in answer.choices:
            assert [call.function.name for call in choice.message.tool_calls] == [name]
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            check_calls(choice.message.tool_calls)


@pytest.mark.parametrize("setting", SETTINGS)
def test_when_a_call_is_required_nothing_else_comes(client, setting):
    asked = ASK | {"tools": TOOLS, "tool_choice": "required", "n": 8, "seed": 2, "parallel_tool_calls": False}
    asked["max_tokens"] = 400
    names = set()
    for choice in client.chat.completions.create(**asked, extra_body=SETTINGS[setting]).choices:
        if choice.finish_reason == "length":
            assert setting == "ipython", "only code and a search have no bound"
            continue
        (call,) = choice.message.tool_calls
        names.add(call.function.name)
        if call.function.name in SCHEMAS:
            check_calls([call])
    assert names


@pytest.mark.parametrize("setting", SETTINGS)
def test_with_auto_a_call_that_is_begun_is_held_to_its_schema(client, served, setting):
    # A bias makes the random model begin calls: by the brace, the tag or python_tag.
    begin = {"json": '{"', "tag": "<function=", "ipython": ""}[setting]
    ids = served.tokenizer.encode(begin) or [served.format.python_tag]
    asked = ASK | {"tools": TOOLS, "tool_choice": "auto", "n": 12, "seed": 4, "logit_bias": {str(i): 14 for i in ids}}
    choices = client.chat.completions.create(**asked, extra_body=SETTINGS[setting]).choices
    for choice in choices:
        calls = choice.message.tool_calls or []
        check_calls(call for call in calls if call.function.name in SCHEMAS)
        assert {call.function.name for call in calls} <= {*SCHEMAS, "brave_search", "code_interpreter"}
        assert not calls or choice.finish_reason == "tool_calls"


def test_with_auto_free_text_stays_free(client):
    answers = client.chat.completions.create(**ASK, tools=TOOLS, n=8, seed=5).choices
    free = client.chat.completions.create(**ASK, tools=TOOLS, n=8, seed=5, tool_choice="auto").choices
    assert [each.message.content for each in answers] == [each.message.content for each in free]
    assert any(each.message.content for each in answers)


def test_with_none_no_call_can_begin(client, served):
    bias = {str(served.format.python_tag): 100}
    asked = ASK | {"tools": TOOLS, "n": 4, "seed": 6, "logit_bias": bias, "max_tokens": 20, "logprobs": True}
    for choice in client.chat.completions.create(**asked, tool_choice="none").choices:
        assert not choice.message.tool_calls
        assert "<|python_tag|>" not in [entry.token for entry in choice.logprobs.content]


def test_a_form_and_tools_leave_a_choice_of_the_two(client, served):
    schema = {"enum": ["open", "closed"]}
    (quote,) = served.tokenizer.encode('"')
    asked = ASK | {"tools": TOOLS, "response_format": form_of(schema), "n": 4, "seed": 7, "parallel_tool_calls": False}
    for bias, reason in ((100, "stop"), (-100, "tool_calls")):
        for choice in client.chat.completions.create(**asked, logit_bias={str(quote): bias}).choices:
            assert choice.finish_reason == reason
            check_calls(choice.message.tool_calls or [])
            if reason == "stop":
                jsonschema.validate(json.loads(choice.message.content), schema)


HUGE = {"type": "object", "properties": {f"p{at}": {} for at in range(9_000)}}
EXPONENTIAL = {
    "allOf": [{"anyOf": [{"properties": {f"{i}{j}": {"maxLength": j}}} for j in range(3)]} for i in range(14)]
}
WIDE = {"type": "object", "properties": {f"p{at}": {"type": "boolean"} for at in range(900)}}
LATE = {"type": "array", "prefixItems": [{"type": "string", "minLength": 40, "maxLength": 40}, WIDE], "minItems": 2}
ENDLESS = {"allOf": [{"type": "string", "pattern": f"(a|b|c)*a(a|b){{{n}}}c"} for n in range(5, 25)]}
BAD_FORMS: dict[str, dict[str, Any]] = {
    "broken": {"response_format": form_of({"type": "strange"})},
    "huge": {"response_format": form_of(HUGE)},
    "exponential": {"response_format": form_of(EXPONENTIAL)},
    "not strict and broken": {"response_format": form_of({"type": ["strange"]}, strict=False)},
    "elsewhere": {"response_format": form_of({"$ref": "https://example.com/schema"})},
    "regex": {"response_format": {"type": "grammar", "syntax": "regex", "definition": "(a"}},
    "lark": {"response_format": {"type": "grammar", "syntax": "lark", "definition": "begin: x"}},
    "too long": {"response_format": {"type": "grammar", "syntax": "regex", "definition": "a" * 200_000}},
    "tool": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": 3}}}]},
    "tool without object": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]
    },
    "exponential tool": {"tools": [{"type": "function", "function": {"name": "f", "parameters": EXPONENTIAL}}]},
    "no such tool": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
    "no tools": {"tool_choice": "required"},
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_form_that_cannot_be_held_is_a_400_and_the_server_goes_on(client, name):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(ASK | {"max_tokens": 20} | BAD_FORMS[name]))
    expected = "tool_choice" if name.startswith("no ") and "tool" in name else next(iter(BAD_FORMS[name]))
    assert str(caught.value.param).startswith(expected) and len(caught.value.message) < 700
    answer = client.chat.completions.create(**ASK, response_format=form_of(SHOP), seed=1)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SHOP)


LETTER = {"type": "object", "properties": {"to": {"type": "string", "pattern": "^(?!a)[a-z]+$"}}, "required": ["to"]}
LETTER["additionalProperties"] = False


@pytest.mark.parametrize("stream", [False, True])
def test_a_pattern_that_no_grammar_holds_is_left_out_and_named_in_a_header(client, stream):
    write = {"type": "function", "function": {"name": "write", "parameters": LETTER}}
    for asked, place in (
        ({"tools": [*TOOLS, write]}, "tool write"),
        ({"response_format": form_of(LETTER, strict=False)}, "response_format"),
    ):
        raw = client.chat.completions.with_raw_response.create(**(ASK | {"max_tokens": 8}), **asked, stream=stream)
        warning = raw.headers["x-puna-warning"]
        assert warning.startswith(f'{place}, field to: "pattern" is left out (') and "[a-z]" not in warning
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="a", max_tokens=8, extra_body={"response_format": form_of(LETTER, strict=False)}
    )
    assert 'field to: "pattern" is left out' in raw.headers["x-puna-warning"]
    raw = client.chat.completions.with_raw_response.create(**(ASK | {"max_tokens": 8}), tools=TOOLS)
    assert "x-puna-warning" not in raw.headers


def test_a_strict_schema_with_such_a_pattern_is_refused_by_tool_field_and_keyword(client):
    write = {"type": "function", "function": {"name": "write", "parameters": LETTER, "strict": True}}
    with pytest.raises(openai.BadRequestError, match='tool write, field to: "pattern", which a strict') as caught:
        client.chat.completions.create(**ASK, tools=[*TOOLS, write])
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match='response_format, field to: "pattern", which') as caught:
        client.chat.completions.create(**ASK, response_format=form_of(LETTER))
    assert caught.value.param == "response_format"


def test_a_form_that_turns_out_too_complex_fails_alone_with_a_400(client):
    def ask(form: dict[str, Any] | None) -> Any:
        return client.chat.completions.create(
            **(ASK | {"max_tokens": 900}), seed=9, **({"response_format": form} if form else {})
        )

    expected = ask(None).choices
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, form) for form in (None, form_of(LATE), None, form_of(LATE))]
    assert [asked[0].result().choices, asked[2].result().choices] == [expected, expected]
    for failed in (asked[1], asked[3]):
        error = failed.exception()
        assert isinstance(error, openai.BadRequestError) and "grammar" in error.message


def test_a_grammar_that_would_compile_for_ever_is_a_400_and_stalls_no_one(client):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        endless = threads.submit(client.chat.completions.create, **ASK, response_format=form_of(ENDLESS))
        greedy = ASK | {"max_tokens": 5, "temperature": 0}
        assert client.chat.completions.create(**greedy).usage.completion_tokens == 5
        error = endless.exception()
    assert isinstance(error, openai.BadRequestError) and "seconds to compile" in error.message
    answer = client.chat.completions.create(**ASK, response_format=form_of(SHOP | {"description": "another"}))
    jsonschema.validate(json.loads(answer.choices[0].message.content), SHOP)


def test_more_grammars_than_can_wait_are_answered_with_503(client, served, monkeypatch):
    full = Admission(1, noun="grammars")
    full.take("0", 1)
    full.take("", 1)
    monkeypatch.setattr(served.grammars, "_admission", full)
    refused = served.engine.metrics.outcomes["refused"]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASK, response_format=form_of(SHOP))
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
    assert served.engine.metrics.outcomes["refused"] == refused + 1


def test_a_tenant_that_is_refused_often_waits_for_grammars_too(client, served, monkeypatch):
    full = Admission(1, noun="grammars")
    full.take("", 1)
    monkeypatch.setattr(served.grammars, "_admission", full)
    monkeypatch.setattr(served.engine._pace, "delay", lambda tenant: full.release(tenant) or 0.0)
    said = client.chat.completions.create(**ASK, response_format=form_of(SHOP)).choices[0].message
    jsonschema.validate(json.loads(said.content), SHOP)


def test_sampling_settings_reach_the_choice(client, served):
    (token,) = served.tokenizer.encode("o")[:1]
    said = client.chat.completions.create(**(ASK | {"max_tokens": 6}), logit_bias={str(token): 100}, seed=1)
    assert said.choices[0].message.content == served.tokenizer.decode([token]) * 6
    greedy = client.chat.completions.create(**(ASK | {"temperature": 0, "max_tokens": 30})).choices
    for one in ({"top_k": 1}, {"min_p": 1.0}):
        hot = client.chat.completions.create(**(ASK | {"temperature": 2, "max_tokens": 30}), extra_body=one).choices
        assert hot[0].message == greedy[0].message
    for penalty in ({"repetition_penalty": 50.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        told = ASK | {"temperature": 0, "max_tokens": 60}
        plain = client.completions.create(prompt="o", **{k: told[k] for k in told if k != "messages"})
        varied = client.completions.create(
            prompt="o", **{k: told[k] for k in told if k != "messages"}, extra_body=penalty
        )
        assert plain.choices[0].text != varied.choices[0].text, penalty


def test_how_to_sample_is_taken_from_the_checkpoint_where_a_request_says_nothing(checkpoint, client, tmp_path):
    directory = tmp_path / "tiny"
    shutil.copytree(checkpoint, directory)
    path = directory / "generation_config.json"
    asked = {"model": "tiny", "messages": HI, "max_tokens": 20}
    greedy = client.chat.completions.create(**asked, temperature=0).choices
    for told in ({"do_sample": False}, {"temperature": 2.0, "top_k": 1}, {"min_p": 1.0, "temperature": 9}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": None, "do_sample": True} | told))
        with serving(open_served(directory)) as url:
            assert connect(url).chat.completions.create(**asked).choices == greedy
    for name, value in (("temperature", "hot"), ("top_k", 1.5), ("repetition_penalty", 0), ("top_p", True)):
        path.write_text(json.dumps({name: value}))
        with pytest.raises(CheckpointError, match=name):
            open_served(directory)
