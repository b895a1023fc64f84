"""What an assistant may write where tools are offered: what a walk through the grammar says is read as it was meant."""

import json
import random
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from puna.formats.chat import ChatFormat, Conversation, Message, ToolCall
from puna.formats.chat.call_grammar import CallRules, call_grammar
from puna.formats.chat.parse import CODE_TAKEN
from puna.formats.tokenizer import Tokenizer, train_tokenizer
from puna.inference.engine.grammar.grammar import GrammarCompiler, json_grammar, lark_grammar, with_layout
from puna.pipeline.errors import ChatError

ORDER = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "by": {"type": "string", "maxLength": 6},
    },
    "required": ["number"],
    "additionalProperties": False,
}
NOTE = {"properties": {"text": {"enum": ["a</function>b", 'q"\\', "größer"]}}, "required": ["text"]}
NOTE["additionalProperties"] = False
SCHEMAS: dict[str, dict[str, Any]] = {"find_order": ORDER, "note-1.a": NOTE}
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in SCHEMAS)
CALL = '{"type": "function", "name": "find_order", "parameters": {"number": 17, "by": "Zoë"}}'
SETTINGS: dict[str, dict[str, Any]] = {
    "json": {},
    "ipython": {"environment": "ipython", "builtin_tools": ("brave_search",)},
    "tag": {"call_format": "tag"},
    "ipython and tag": {"environment": "ipython", "call_format": "tag"},
}
OTHER_NAMES = {"brave_search", "code_interpreter"}
# What a model could begin with to have a call read that is not held to its schema.
ATTEMPTS = (
    "",
    "We open at nine.",
    '{"name": "find_order", "parameters": {"number": "seventeen"}}',
    '{"parameters": {"number": "x"}, "name": "find_order"}',
    ' [{"name" : "find_order"}]',
    '\x1c{"name":"find_order"}',
    '{"na\\u006de": "find_order"}',
    '{"name": "find\\u005forder"}',
    '{"city": "Rome", "name": "find_orders"}; {"name": "note-1.a"}',
    "<function=find_order>{}</function>",
    'Sure. <function=find_order>{"number": "x"}</function>',
    '<function=note-1.a>{"text": "a</function>b"}</function>',
    "<|python_tag|>print(1)",
    '<|python_tag|>{"name": "find_order", "parameters": {}}',
    '<|python_tag|> {"name": "other", "parameters": {}}',
    '<|python_tag|>brave_search.call(query="x")',
    "<|python_tag|><function=other>{}</function>",
)


@cache
def tokenizer() -> Tokenizer:
    text = (
        f'When do you open? At nine, größer. {CALL} <function=find_order>{{"n": 1}}</function> brave_search.call(query='
    )
    return train_tokenizer([text] * 3, vocab_size=560, split_digits=False)


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer(), tokenizer().stop_ids)


def spelled(attempt: str) -> list[int]:
    marked = attempt.startswith("<|python_tag|>")
    ids = [tokenizer().special("python_tag")] if marked else []
    return ids + tokenizer().encode(attempt.removeprefix("<|python_tag|>"))


def walk(grammar: str, attempt: str, seed: int) -> list[int] | None:
    """Say what the attempt says for as long as that is admitted, then anything that is; None if it goes on too long."""
    rng, matcher, wanted, ids = (
        random.Random(seed),
        compiler().compile(grammar).matcher(),
        spelled(attempt),
        list[int](),
    )
    while len(ids) < 250:
        admitted = np.flatnonzero(matcher.admitted(tokenizer().vocab_size) == 0)
        assert len(admitted), tokenizer().decode(ids)
        stops = [token for token in admitted if token in tokenizer().stop_ids]
        if wanted and wanted[0] in admitted:
            token = wanted.pop(0)
        else:
            wanted = []
            token = int(rng.choice(stops if stops and rng.random() < 0.3 else admitted))
        matcher.accept(token)
        ids.append(token)
        if token in tokenizer().stop_ids:
            return ids
    return None


def grammar_of(setting: str, rules: CallRules) -> str:
    conversation = Conversation((Message("user", "?"),), tools=TOOLS, **SETTINGS[setting])
    lark = call_grammar(conversation, rules, lambda _, schema, strict: with_layout(schema))
    return lark_grammar(lark, answer=json_grammar({"enum": ["open", {"n": 1}]}) if rules.has_answer else "")


def check(message: Message) -> None:
    for call in message.tool_calls:
        assert call.name in SCHEMAS or call.name in OTHER_NAMES, message
        if call.name in SCHEMAS:
            jsonschema.validate(call.arguments, SCHEMAS[call.name])


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_is_said_a_call_that_is_read_is_held_to_its_schema(setting, attempt):
    for seed in range(2):
        if ids := walk(grammar_of(setting, CallRules()), attempt, seed):
            check(ChatFormat(tokenizer()).parse(ids, TOOLS))


@pytest.mark.parametrize("setting", SETTINGS)
def test_where_a_call_is_asked_for_there_is_one(setting):
    for seed, attempt in enumerate(("", "We open", "{", "<function=", "<|python_tag|>{", '<|python_tag|>{"name"')):
        for rules in (CallRules(must_call=True), CallRules(must_call=True, name="note-1.a")):
            ids = walk(grammar_of(setting, rules), attempt, seed)
            if ids is None:
                assert "ipython" in setting and not rules.name, "only code has no end"
                continue
            message = ChatFormat(tokenizer()).parse(ids, TOOLS)
            assert message.tool_calls and not message.content
            assert not rules.name or [call.name for call in message.tool_calls] == [rules.name]
            check(message)


def test_what_the_format_writes_is_admitted():
    calls = ({"number": 17, "by": "Zoë"}, {"number": 3})
    for setting in SETTINGS:
        conversation = Conversation((Message("user", "?"),), tools=TOOLS, **SETTINGS[setting])
        prompt = ChatFormat(tokenizer()).prompt(conversation)
        for content in ("", "I look."):
            said = {"role": "assistant", "content": content, "tool_calls": []}
            said["tool_calls"] = [{"function": {"name": "find_order", "arguments": each}} for each in calls]
            data = conversation.to_json()
            whole = Conversation.from_json(data | {"messages": [*data["messages"], said]})
            matcher = compiler().compile(grammar_of(setting, CallRules())).matcher()
            for token in ChatFormat(tokenizer()).encode(whole).ids[len(prompt) :]:
                assert matcher.admitted(tokenizer().vocab_size)[token] == 0, (setting, content)
                matcher.accept(token)


def test_an_answer_in_a_form_or_a_call_but_no_other_text():
    for setting in SETTINGS:
        grammar = grammar_of(setting, CallRules(has_answer=True))
        for seed, attempt in enumerate(('"op', '{"n', CALL, "We open")):
            if ids := walk(grammar, attempt, seed):
                message = ChatFormat(tokenizer()).parse(ids, TOOLS)
                assert message.tool_calls or json.loads(message.content) in ("open", {"n": 1})
                check(message)


def test_one_call_at_most_where_parallel_ones_are_not_wanted():
    for setting in ("json", "tag"):
        for seed in range(4):
            ids = walk(grammar_of(setting, CallRules(must_call=True, is_parallel=False)), "", seed)
            assert ids and len(ChatFormat(tokenizer()).parse(ids, TOOLS).tool_calls) == 1


def test_parameters_that_are_no_object_are_refused():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
    conversation = Conversation((), tools=(tool,))
    with pytest.raises(ChatError, match="parameters of f"):
        call_grammar(conversation, CallRules(), lambda _, schema, strict: schema)
    with pytest.raises(ChatError, match="without tools"):
        call_grammar(Conversation(()), CallRules(must_call=True), lambda _, schema, strict: schema)


ANY_ARGUMENTS = ({"type": "function", "function": {"name": "keep", "parameters": {"type": "object"}}},)
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["</function>", "<function=keep>{}", "a\\</function>\\", '"}</function>', "\x7f\x00"]
)
# Free text may not open a call of a tool that is offered.
CONTENTS = st.text(max_size=6) | st.sampled_from(["a</function>", '{"city": "Rome"}', "<function>", "\x7f"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


def calls() -> st.SearchStrategy[list[ToolCall]]:
    kept = st.builds(lambda arguments: ToolCall("keep", arguments), st.dictionaries(TEXTS, VALUES, max_size=2))
    return st.lists(kept, min_size=1, max_size=2)


def built_in_calls() -> st.SearchStrategy[list[ToolCall]]:
    codes = st.text() | st.sampled_from(["{", "\x85", " print(1)", "[x]", "<function=keep>{}</function>", "\x1c{"])
    return (
        st.builds(lambda code: ToolCall("code_interpreter", {"code": code}), codes)
        | st.builds(lambda query: ToolCall("brave_search", {"query": query}), st.text())
    ).map(lambda call: [call])


def assert_admitted_and_read_back(calls: list[ToolCall], content: str, setting: str) -> None:
    conversation = Conversation((Message("user", "?"),), tools=ANY_ARGUMENTS, **SETTINGS[setting])
    message = Message("assistant", content, tuple(calls))
    chat = ChatFormat(tokenizer())
    whole = replace(conversation, messages=(*conversation.messages, message))
    ids = chat.encode(whole).ids[len(chat.prompt(conversation)) :]
    read = chat.parse(ids, ANY_ARGUMENTS)
    assert read.tool_calls == message.tool_calls and read.content == content.strip()
    lark = call_grammar(conversation, CallRules(), lambda _, schema, strict: with_layout(schema))
    matcher = compiler().compile(lark_grammar(lark)).matcher()
    for at, token in enumerate(ids):
        assert matcher.admitted(tokenizer().vocab_size)[token] == 0, tokenizer().decode(ids[: at + 1])
        matcher.accept(token)


@given(calls(), CONTENTS, st.sampled_from(list(SETTINGS)))
@example([ToolCall("keep", {"a</function>": "b</function>"})], "", "tag")
def test_whatever_the_format_writes_the_grammar_admits_and_the_parser_reads_back(calls, content, setting):
    assert_admitted_and_read_back(calls, content, setting)


@given(built_in_calls(), CONTENTS)
def test_so_are_searches_and_code(calls, content):
    # Another spelling of these calls is JSON, which the grammar keeps for tools with a schema.
    (call,) = calls
    text = next(iter(call.arguments.values()))
    is_native = '"' not in text if call.name == "brave_search" else text == text.strip() and text
    assume(is_native and not text.startswith(CODE_TAKEN))
    assert_admitted_and_read_back(calls, content, "ipython")
