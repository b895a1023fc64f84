import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meta_chat import chat, ids_of, llama, tool

from puna.formats.chat import Conversation, Message, ToolCall
from puna.formats.chat.parse import read_tags

START, EOM, EOT, PYTHON_TAG = 128006, 128008, 128009, 128010


def call(name: str, **arguments: Any) -> Message:
    return Message("assistant", tool_calls=(ToolCall(name, arguments),))


def asked_then(*messages: Message, **setting: Any) -> Conversation:
    return Conversation((Message("user", "Hi"), *messages), **setting)


def parse(text: str, *tools: dict[str, Any]) -> Message:
    """Parse a body in which special tokens are spelled out."""
    return chat().parse(ids_of(text), tools)


SONGS = tool(
    "songs",
    n={"type": "integer"},
    price={"type": ["number", "null"]},
    live={"type": "boolean"},
    order={"type": "string"},
    tags={"type": "array", "items": {"type": "integer"}},
    maybe={"anyOf": [{"type": "integer"}, {"type": "null"}]},
    box={"type": "object", "properties": {"n": {"type": "integer"}}},
)


@pytest.mark.parametrize(
    "body",
    [
        '{"type": "function", "name": "songs", "parameters": {"n": 10}}<|eot_id|>',
        '{"name": "songs", "parameters": {"n": 10}}',  # The Hugging Face template's spelling.
        '\n{\n    "name": "songs",\n    "arguments": "{\\"n\\": 10}"\n}\n<|eot_id|>',
        '[{"name": "songs", "parameters": {"n": "10"}}]',
        '<|python_tag|>{"type": "function", "name": "songs", "parameters": {"n": "10"}}<|eom_id|>',
        '<function=songs>{"n": 10}</function><|eot_id|>',
        '<|python_tag|><function=songs>{"n": 10}</function>',
    ],
)
def test_every_spelling_of_a_call_is_read(body: str):
    assert parse(body, SONGS) == call("songs", n=10)


@pytest.mark.parametrize("separator", ["; ", ";", "\n", ", ", "", "<|python_tag|>"])
def test_several_calls_are_read(separator: str):
    one, two = '{"name": "songs", "parameters": {"n": 1}}', '{"name": "songs", "parameters": {"n": 2}}'
    message = parse(f"<|python_tag|>{one}{separator}{two}<|eom_id|>", SONGS)
    assert [each.arguments for each in message.tool_calls] == [{"n": 1}, {"n": 2}]


def test_several_tagged_calls_are_read_with_the_text_around_them():
    message = parse('First <function=songs>{"n": 1}</function> <function=songs>{}</function>', SONGS)
    assert message == Message("assistant", "First", (ToolCall("songs", {"n": 1}), ToolCall("songs", {})))


def test_what_follows_the_tag_and_is_no_json_is_a_built_in_call_or_code():
    assert parse('<|python_tag|>wolfram_alpha.call(query="2+2")<|eom_id|>') == call("wolfram_alpha", query="2+2")
    assert parse("<|python_tag|>x = {}\nprint(x)<|eom_id|>") == call("code_interpreter", code="x = {}\nprint(x)")


@pytest.mark.parametrize(
    ("body", "tools"),
    [
        ('{"name": "songs", "parameters": {"n": 10}}', ()),  # Nobody offered a tool: an answer in JSON.
        ('{"name": "Anna", "age": 7}', (SONGS,)),  # Not one of the tools.
        ('Call it so: {"name": "songs", "parameters": {"n": 10}}', (SONGS,)),
        ('{"name": "songs", "parameters": {"n": 10}} {"name": "Anna"}', (SONGS,)),
        ("[]", (SONGS,)),
        ("<function=dance>{}</function>", (SONGS,)),
        ("<function=songs>n=10</function>", (SONGS,)),
        ("wolfram_alpha.call(query=\"2+2\")", (SONGS,)),
    ],
)  # fmt: skip
def test_text_that_only_looks_like_a_call_stays_text(body: str, tools: tuple[dict[str, Any], ...]):
    assert parse(body, *tools) == Message("assistant", body)


@pytest.mark.parametrize(
    "garbage",
    [
        '{"type": "function", "name": "songs", "parameters": {"n": 1',
        '{"name": "songs", "parameters": {"n": NaN}}',
        '{"name": "songs", "parameters": {"n": 1e999}}',
        '{"name": "songs", "parameters": {"order": "\\ud800"}}',
        '{"name": "songs", "parameters": [1]}',
        '{"name": "songs", "parameters": "n"}',
        '{"name": 7, "parameters": {}}',
        '{"name": "songs", "parameters": {"n": ' + "9" * 5000 + "}}",
        '{"name": "songs", "parameters": ' + '{"box":' * 20_000,
        "[" * 50_000,
    ],
    ids=lambda text: text[:60],
)
def test_a_broken_call_is_text_with_or_without_the_tag(garbage: str):
    assert parse(garbage, SONGS) == Message("assistant", garbage)
    assert parse(f"<|python_tag|>{garbage}<|eom_id|>", SONGS) == Message("assistant", garbage)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"n": "10", "price": "2.5", "live": "True", "maybe": "3"}, {"n": 10, "price": 2.5, "live": True, "maybe": 3}),
        ({"n": "ten", "price": "null", "live": "maybe"}, {"n": "ten", "price": None, "live": "maybe"}),
        ({"order": 10482, "n": 3.5}, {"order": "10482", "n": 3.5}),
        ({"order": "10482", "other": "5"}, {"order": "10482", "other": "5"}),
        ({"tags": ["1", 2], "box": {"n": "4"}}, {"tags": [1, 2], "box": {"n": 4}}),
        ({"tags": '["1"]', "box": '{"n": "4"}'}, {"tags": [1], "box": {"n": 4}}),
        ({"n": '1}, "x": {'}, {"n": '1}, "x": {'}),
    ],
)
def test_arguments_take_the_types_of_the_schema(given: dict[str, Any], read: dict[str, Any]):
    (found,) = parse(json.dumps({"name": "songs", "parameters": given}), SONGS).tool_calls
    assert found.arguments == read
    assert {name: type(value) for name, value in found.arguments.items()} == {
        name: type(value) for name, value in read.items()
    }


def test_a_call_keeps_what_the_model_wrote_where_its_schema_changed_it():
    body = '{"name": "songs", "parameters": {"n": "10", "box": {"n": 4}}}; <function=songs>{"n": 10}</function>'
    (changed,) = parse(body.partition(";")[0], SONGS).tool_calls
    assert (changed.arguments, changed.original) == ({"n": 10, "box": {"n": 4}}, {"n": "10", "box": {"n": 4}})
    (as_written,) = parse(body.partition("; ")[2], SONGS).tool_calls
    assert as_written.original is None
    assert ids_of_call(changed) == ids_of_call(ToolCall("songs", changed.arguments))


def ids_of_call(each: ToolCall) -> list[int]:
    return chat().encode(asked_then(Message("assistant", tool_calls=(each,)), tools=(SONGS,))).ids


@pytest.mark.parametrize("parameters", [None, [], "odd", {"properties": [{"n": {}}]}, {"properties": {"n": 7}}])
def test_odd_schemas_leave_arguments_as_they_are(parameters: Any):
    odd = {"type": "function", "function": {"name": "songs", "parameters": parameters}}
    assert parse('{"name": "songs", "parameters": {"n": "1"}}', odd) == call("songs", n="1")


def test_parsing_stops_at_the_end_token_and_drops_stray_special_tokens():
    ids = [START, *llama().encode("Yes."), 128004, EOT, *llama().encode("more")]
    assert chat().parse(ids) == Message("assistant", "Yes.")
    assert chat().parse([]) == Message("assistant", "")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 128255) | st.sampled_from([PYTHON_TAG, EOT, EOM, *llama().encode('{"name": "songs"}')])))
@example([PYTHON_TAG])
@example([PYTHON_TAG, PYTHON_TAG])
def test_parsing_never_raises_whatever_the_ids(ids: list[int]):
    assert chat().parse(ids, [SONGS]).role == "assistant"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TOOLS = (tool("look"), tool("order"))
CALLS = (
    st.builds(
        ToolCall,
        st.sampled_from(["look", "order", "unknown", "brave_search", "code_interpreter", 'odd "name"\n']),
        st.dictionaries(st.text(max_size=8), VALUES, max_size=3),
        st.text(max_size=3),
    )
    | st.builds(lambda query: ToolCall("brave_search", {"query": query}), st.text())
    | st.builds(
        lambda begin, rest: ToolCall("code_interpreter", {"code": begin + rest}),
        st.sampled_from(["", "{", "<function=f>{}</function>", "brave_search.call(", " ", "print("]),
        st.text(),
    )
)


@settings(max_examples=300, deadline=None)
@given(
    st.text() | st.sampled_from(["<function=look>{}</function>", "So <function=", '{"name": "look"}', "a</function>"]),
    st.lists(CALLS, min_size=1, max_size=3),
    st.sampled_from([(), TOOLS]),
    st.sampled_from(["", "ipython"]),
    st.sampled_from(["json", "tag"]),
)
@example("", [ToolCall("look", {"</function>": "\\</function>"})], TOOLS, "", "tag")
def test_parsing_inverts_rendering_for_any_message_with_calls(
    content: str, calls: list[ToolCall], tools: tuple[dict[str, Any], ...], environment: str, call_format: Any
):
    message = Message("assistant", content, tuple(calls))
    conversation = asked_then(message, tools=tools, environment=environment, call_format=call_format)
    encoded = chat().encode(conversation)
    body = encoded.ids[encoded.mask.index(True) :]
    without_ids = tuple(ToolCall(each.name, each.arguments) for each in calls)
    expected = Message("assistant", content.strip(), without_ids)
    assert chat().parse(body, tools) == expected
    assert chat().parse(body[:-1], tools) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(), st.sampled_from([(), TOOLS]))
def test_parsing_inverts_rendering_for_plain_text(content: str, tools: tuple[dict[str, Any], ...]):
    encoded = chat().encode(asked_then(Message("assistant", content), tools=tools))
    assert chat().parse(encoded.ids[encoded.mask.index(True) :], tools) == Message("assistant", content.strip())


def test_a_closing_tag_within_an_argument_closes_nothing():
    text = '<function=find>{"by": "a</function>b\\"</function>", "n": 1}</function><function=find>{"n": 2}</function>'
    calls, rest = read_tags(text, {"find": None})
    assert [call.arguments for call in calls] == [{"by": 'a</function>b"</function>', "n": 1}, {"n": 2}] and rest == ""
    odd = '<function=find>{"n": "}</function>'
    assert read_tags(odd, {"find": None}) == ((), odd)


def test_types_in_upper_case_are_those_of_the_schema():
    parameters = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}, "order": {"type": ["STRING", "NULL"]}}}
    tool = {"type": "function", "function": {"name": "songs", "parameters": parameters}}
    (found,) = parse(json.dumps({"name": "songs", "parameters": {"n": "10", "order": 7}}), tool).tool_calls
    assert found.arguments == {"n": 10, "order": "7"}


def test_types_of_other_languages_are_those_of_the_grammar():
    parameters = {
        "type": "dict",
        "properties": {"n": {"type": "int"}, "order": {"type": "str"}, "at": {"type": "float"}},
    }
    tool = {"type": "function", "function": {"name": "songs", "parameters": parameters}}
    (found,) = parse(json.dumps({"name": "songs", "parameters": {"n": "3", "order": 7, "at": "0.5"}}), tool).tool_calls
    assert found.arguments == {"n": 3, "order": "7", "at": 0.5}
