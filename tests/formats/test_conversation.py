import json
from typing import Any

import pytest

from puna.formats.chat import Conversation, Message, ToolCall
from puna.pipeline.errors import ChatError

IPYTHON = {"environment": "ipython"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_a_conversation_survives_json():
    conversation = Conversation(
        (
            Message("system", "Be kind."),
            Message("user", "Hi"),
            Message("assistant", "", (ToolCall("f", {"a": [1, None, "é"]}, "call_1"),)),
            Message("tool", "7", tool_call_id="call_1"),
            Message("assistant", "Seven."),
        ),
        tools=(TOOL,),
        environment="ipython",
        today="05 March 2025",
        id="c1",
        metadata={"source": "hand"},
        builtin_tools=("brave_search", "wolfram_alpha"),
        call_format="tag",
    )
    assert Conversation.from_json(json.loads(json.dumps(conversation.to_json()))) == conversation
    assert Conversation.from_json({"messages": []}) == Conversation(())
    assert Conversation(()).to_json() == {"messages": []}


def test_arguments_as_the_model_wrote_them_survive_json_and_make_no_other_call():
    changed, plain = ToolCall("f", {"a": 3}, original={"a": "3"}), ToolCall("f", {"a": 3})
    assert changed == plain
    conversation = Conversation((Message("assistant", "", (changed, plain)),))
    read = Conversation.from_json(json.loads(json.dumps(conversation.to_json())))
    assert [call.original for call in read.messages[0].tool_calls] == [{"a": "3"}, None]


def test_the_spellings_of_openai_and_hugging_face_mean_the_same():
    function = {"name": "f", "arguments": '{"a": 1}'}
    openai = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
                {"id": "x", "type": "function", "function": function}]},
            {"role": "tool", "content": "7", "tool_call_id": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }  # fmt: skip
    hugging_face = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "assistant", "tool_calls": [
                {"id": "x", "function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "ipython", "name": "f", "content": "7", "tool_call_id": "x"},
        ],
        "tools": [{"name": "f"}],
    }  # fmt: skip
    assert Conversation.from_json(openai) == Conversation.from_json(hugging_face)


def test_a_message_can_be_added_without_changing_the_conversation():
    conversation = Conversation((Message("user", "Hi"),), today="05 March 2025")
    longer = conversation.with_message(Message("assistant", "Hello."))
    assert [message.content for message in longer.messages] == ["Hi", "Hello."]
    assert (len(conversation.messages), longer.today) == (1, "05 March 2025")


def with_messages(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def with_call(**fields: Any) -> dict[str, Any]:
    return with_messages({"role": "assistant", "tool_calls": [fields]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"conversation is list; expected a JSON object"),
        ({}, r"messages is missing"),
        ({"messages": {}}, r"messages is dict; expected list"),
        (with_messages() | {"source": "x"}, r"unknown field source.*metadata"),
        (with_messages() | {"environment": "bash"}, r"environment 'bash'"),
        (with_messages() | {"today": "2025-03-05"}, r"today '2025-03-05'; expected DD Month YYYY"),
        (with_messages() | {"builtin_tools": ["brave_search"]}, r"builtin_tools without an environment.*ipython"),
        (with_messages() | IPYTHON | {"builtin_tools": ["browser"]}, r"builtin_tools has 'browser'.*brave_search"),
        (with_messages() | IPYTHON | {"builtin_tools": ["brave_search"] * 2}, r"brave_search is offered twice"),
        (
            with_messages() | IPYTHON | {"builtin_tools": ["brave_search"], "tools": [{"name": "brave_search"}]},
            r"brave_search is offered twice",
        ),
        (with_messages() | {"call_format": "xml"}, r"call_format 'xml'; expected one of json, tag"),
        (with_messages() | {"call_format": "tag", "tools": [{"name": "a b"}]}, r"tools\[0\] is named 'a b'"),
        (with_messages() | {"tools": [{"type": "function"}]}, r"tools\[0\]; expected"),
        (with_messages() | {"tools": ["f"]}, r"tools\[0\] is str"),
        (with_messages("Hi"), r"messages\[0\] is str"),
        (with_messages({"content": "Hi"}), r"messages\[0\]\.role is missing"),
        (with_messages({"role": "bot", "content": "Hi"}), r"messages\[0\]: role 'bot'; expected one of system"),
        (with_messages({"role": "user", "content": 7}), r"messages\[0\]\.content is int"),
        (with_messages({"role": "user", "content": [{"type": "image_url"}]}), r"content\[0\] is of type 'image_url'"),
        (with_messages({"role": "user", "text": "Hi"}), r"unknown field messages\[0\]\.text"),
        (with_messages({"role": "user", "name": "Bo"}), r"unknown field messages\[0\]\.name"),
        (with_messages({"role": "user", "tool_call_id": "x"}), r"messages\[0\]: tool_call_id in a user message"),
        (
            with_messages({"role": "user", "tool_calls": [{"function": {"name": "f"}}]}),
            r"messages\[0\]: tool_calls in a user message",
        ),
        (with_call(), r"messages\[0\]\.tool_calls\[0\]\.function is missing"),
        (with_call(type="custom", function={}), r"tool_calls\[0\]\.type is 'custom'"),
        (with_call(function={}), r"tool_calls\[0\]\.function\.name is missing"),
        (with_call(function={"name": ""}), r"messages\[0\]: a tool call without a name"),
        (with_call(function={"name": "f", "original": "{}"}), r"original is str; expected dict"),
        (with_call(function={"name": "f", "arguments": "{"}), r"arguments is not JSON"),
        (with_call(function={"name": "f", "arguments": "[1]"}), r"arguments is list"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named(data: Any, message: str):
    with pytest.raises(ChatError, match=message):
        Conversation.from_json(data)
