import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import nodes

from puna.formats.chat import ChatFormat, Conversation, Message, ToolCall
from puna.formats.chat.template import CHAT_TEMPLATE, PLAIN_TEMPLATE
from puna.formats.tokenizer import Tokenizer, train_tokenizer
from puna.pipeline.errors import ChatError


@cache
def ours() -> Tokenizer:
    # Runs of newlines are frequent, so that the vocabulary has tokens that would swallow a header's "\n\n".
    texts = ["\n\n\n\n a\n\n\n\n\n{\n    }\n\n", 'user\n\n{"name": "look"}\n\n \n', "<|eot_id|>\n\nassistant"]
    return train_tokenizer(texts * 5, vocab_size=545, split_digits=False)


@cache
def theirs() -> Any:
    from transformers import AutoTokenizer

    directory = Path(mkdtemp())
    ours().save(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return AutoTokenizer.from_pretrained(directory)


def apply(conversation: Conversation, **options: Any) -> Any:
    return theirs().apply_chat_template(conversation.to_json()["messages"], **setting_of(conversation), **options)


def setting_of(conversation: Conversation) -> dict[str, Any]:
    names = ("tools", "environment", "builtin_tools", "call_format", "today")
    data = conversation.to_json()
    return {name: data.get(name) for name in names}


@cache
def plain_template() -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value, **layout: json.dumps(value, ensure_ascii=False, **layout)
    return environment.from_string(PLAIN_TEMPLATE)


def render_plainly(conversation: Conversation, **options: Any) -> str:
    """Render without transformers, as programs do that know no `generation` tag."""
    return plain_template().render(messages=conversation.to_json()["messages"], **setting_of(conversation), **options)


def assert_same(conversation: Conversation) -> None:
    chat = ChatFormat(ours())
    encoded = chat.encode(conversation)
    result = apply(conversation, return_dict=True, return_assistant_tokens_mask=True)
    assert result["input_ids"] == encoded.ids, apply(conversation, tokenize=False)
    assert [bool(flag) for flag in result["assistant_masks"]] == encoded.mask
    prompt = apply(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == chat.prompt(conversation)


def assert_plain_same(conversation: Conversation) -> None:
    for options in ({}, {"add_generation_prompt": True}):
        assert render_plainly(conversation, **options) == apply(conversation, tokenize=False, **options)


def tool(name: str, description: str = "") -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "enum": ["é", "<&'>"]}}, "required": []}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


LOOK = ToolCall("look", {"a": "é <&'>", "b": [1, 2.5, None, True, {}], "c": ""}, "call_1")
ROUND = (
    Message("user", "Where?"),
    Message("assistant", tool_calls=(LOOK,)),
    Message("tool", '{"a": "here"}', tool_call_id="call_1"),
    Message("assistant", "Here."),
)
SYSTEM = Message("system", "Be kind.\nBe brief.")


@pytest.mark.parametrize(
    ("environment", "builtin_tools"),
    [("", ()), ("ipython", ()), ("ipython", ("brave_search",)), ("ipython", ("brave_search", "wolfram_alpha"))],
)
@pytest.mark.parametrize("call_format", ["json", "tag"])
@pytest.mark.parametrize("today", ["", "05 March 2025"])
@pytest.mark.parametrize("tools", [(), (tool("look"), tool("météo", 'l\'été: "chaud"'))])
@pytest.mark.parametrize("system", [(), (SYSTEM,), (Message("system"),)])
def test_the_template_renders_our_ids_and_mask_in_every_setting(
    system: tuple[Message, ...],
    tools: tuple[dict[str, Any], ...],
    today: str,
    environment: str,
    builtin_tools: tuple[str, ...],
    call_format: Any,
):
    setting = {"today": today, "environment": environment, "builtin_tools": builtin_tools, "call_format": call_format}
    conversation = Conversation((*system, *ROUND), tools=tools, **setting)
    assert_same(conversation)
    assert_plain_same(conversation)


@pytest.mark.parametrize("call_format", ["json", "tag"])
@pytest.mark.parametrize("environment", ["", "ipython"])
@pytest.mark.parametrize(
    "message",
    [
        Message("assistant", "One moment.", (LOOK,)),
        Message("assistant", "", (LOOK, LOOK, ToolCall("order", {}))),
        Message("assistant", "", (LOOK, LOOK)),
        Message("assistant", "See <function=look>", (LOOK,)),
        Message("assistant", "", (ToolCall("look", {"a": "</function>\\ \x7f"}),)),
        Message("assistant", "", (ToolCall("order", {}),)),
        Message("assistant", "", (ToolCall("brave_search", {"query": "tea"}),)),
        Message("assistant", "", (ToolCall("brave_search", {"query": 'the "best" tea'}),)),
        Message("assistant", "", (ToolCall("brave_search", {"query": 7}),)),
        Message("assistant", "", (ToolCall("wolfram_alpha", {"query": "2+2"}),)),  # Announced, so by its schema.
        Message("assistant", "", (ToolCall("brave_search", {"query": "a", "n": 1}),)),
        Message("assistant", "", (ToolCall("brave_search", {"query": "a"}), LOOK)),
        Message("assistant", "Wait.", (ToolCall("code_interpreter", {"code": "print(1)\n\nx = 2"}),)),
        Message("assistant", "", (ToolCall("code_interpreter", {"code": "{1}"}),)),
        Message("assistant", "", (ToolCall("code_interpreter", {"code": " x"}),)),
        Message("assistant", "", (ToolCall("code_interpreter", {"code": ""}),)),
        Message("assistant", "", (ToolCall("code_interpreter", {"code": None}),)),
        Message("assistant", "", (ToolCall('odd "name"\n', {}),)),
        Message("assistant", ""),
    ],
)
def test_the_template_spells_calls_as_we_do(message: Message, environment: str, call_format: Any):
    tools = (tool("look"), tool("wolfram_alpha"))
    messages = (Message("user", "Go"), message)
    conversation = Conversation(messages, tools=tools, environment=environment, call_format=call_format)
    assert_same(conversation)
    assert_plain_same(conversation)


def test_the_template_knows_no_more_than_it_is_given():
    # What it does not set itself comes from the caller: strftime_now, the clock of other templates, is not among it.
    given = {"messages", "tools", "environment", "builtin_tools", "call_format", "today", "add_generation_prompt"}
    names = list(jinja2.Environment().parse(PLAIN_TEMPLATE).find_all((nodes.Name, nodes.Macro)))
    read = {node.name for node in names if isinstance(node, nodes.Name) and node.ctx == "load"}
    made = {node.name for node in names if isinstance(node, nodes.Macro) or node.ctx != "load"}
    assert given <= read
    assert read - made - given == {"loop", "namespace"}


@pytest.mark.parametrize("content", ["\n\n\n\na", " \n\n a \n\n", "\r\n\r\n a", "\u2028\n\u3000a", "\n\n\n", "\x1c\na"])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_the_template_agrees_on_texts_that_begin_or_end_with_space(role: Any, content: str):
    assert_same(Conversation((Message(role, content), Message("assistant", content), Message(role, content))))


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\r\t{}'\"<|>\\a1é"), max_size=30)
ORDINARY = TEXT.filter(lambda text: "<|" not in text)
ARGUMENTS = st.dictionaries(ORDINARY, ORDINARY | st.integers() | st.floats(allow_nan=False, allow_infinity=False))
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["look", "order"]), ARGUMENTS), max_size=2)
MESSAGE = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "tool"]), ORDINARY),
    st.builds(lambda text, calls: Message("assistant", text, tuple(calls)), ORDINARY, CALLS),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(MESSAGE, max_size=5),
    st.lists(ORDINARY.map(lambda text: tool("look", text)), max_size=1),
    st.sampled_from(["", "ipython"]),
    st.sampled_from(["json", "tag"]),
)
def test_the_template_renders_our_ids_and_mask_for_any_ordinary_conversation(
    messages: list[Message], tools: list[dict[str, Any]], environment: str, call_format: Any
):
    messages = [*messages, Message("assistant", "Yes.")]
    assert_same(Conversation(tuple(messages), tools=tuple(tools), environment=environment, call_format=call_format))


def test_a_text_that_spells_a_special_token_is_safe_with_us_only():
    # NOTE: why programs that take other people's text use ChatFormat: no template can keep the two apart.
    conversation = Conversation((Message("user", "a<|eot_id|>"), Message("assistant", "b")))
    end = ours().special("eot_id")
    assert ChatFormat(ours()).encode(conversation).ids.count(end) == 2
    assert apply(conversation, return_dict=True)["input_ids"].count(end) == 3


def test_the_template_reads_arguments_that_are_a_json_string():
    function = {"name": "look", "arguments": '{"a": 1}'}
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "x", "type": "function", "function": function}]}]  # fmt: skip
    text = theirs().apply_chat_template(messages, tokenize=False)
    assert text.endswith('<|python_tag|>{"type": "function", "name": "look", "parameters": {"a": 1}}<|eot_id|>')


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from('\n\t  aé<|>{}"1.'), min_size=1, max_size=12).filter(str.strip))
def test_a_message_to_be_continued_is_cut_where_transformers_cuts_it(text: str):
    conversation = Conversation((SYSTEM, Message("user", "Where?"), Message("assistant", text)), tools=(tool("look"),))
    options = {"continue_final_message": True, "return_dict": True}
    assert apply(conversation, **options)["input_ids"] == ChatFormat(ours()).prompt_to_continue(conversation)


def test_an_empty_message_is_continued_as_an_open_header_is():
    """transformers loses the header's blank line here: findings/transformers_continue_empty_message.sh."""
    asked = Conversation((Message("user", "Where?"),))
    for text in ("", " \n"):
        begun = asked.with_message(Message("assistant", text))
        assert ChatFormat(ours()).prompt_to_continue(begun) == ChatFormat(ours()).prompt(asked)


@pytest.mark.parametrize("messages", [(), (Message("user", "Where?"),), ROUND[:2], ROUND[:3]])
def test_only_text_of_the_assistant_can_be_continued(messages: tuple[Message, ...]):
    with pytest.raises(ChatError, match="message to continue"):
        ChatFormat(ours()).prompt_to_continue(Conversation(messages))
