"""Reading a message while it comes: the same as reading it whole, and as early as is certain."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meta_chat import chat, ids_of, llama, tool

from puna.formats.chat import Conversation, Message, ToolCall
from puna.formats.chat.stream import MessageStream, Part
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.outputs import Chunk
from puna.serving.routes.chat_reply import ChatReply
from puna.serving.served_model import ServedModel

TOOLS = (tool("look", n={"type": "integer"}), tool("order"))
CALL = '{"name": "look", "parameters": {"n": 1}}'
TAG = '<function=look>{"n": "1"}</function>'


def text_of(parts: list[Part]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def calls_of(parts: list[Part]) -> list[ToolCall]:
    return [part for part in parts if isinstance(part, ToolCall)]


def stream(pieces: list[list[int]], tools: tuple[dict[str, Any], ...] = TOOLS) -> list[list[Part]]:
    reader = MessageStream(chat(), tools)
    return [*(reader.feed(piece) for piece in pieces), reader.finish()]


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    for size in sizes:
        pieces.append(ids[:size])
        ids = ids[size:]
    return [*pieces, ids]


FRAGMENTS = [
    *("{", '"', "[", "[{", "}", "]", "<", "<func", "tion=", "look", "order", "dance", ">", "/", "\n", "  ", "é", "😀 "),
    *("1", ".", '{"', '"name": "look"', "; ", "{}", "<function=", "<function=look>", "</function>"),
    *("<function=dance>{}</function>", "<function=dance>"),
    *(CALL, TAG, f"[{CALL}]", "Hello there.", "print(1)", 'brave_search.call(query="tea")', "[1] says", "\u3000"),
    *("<|python_tag|>", "<|python_tag|>", "<|eot_id|>", "<|start_header_id|>"),
]  # fmt: skip
GARBAGE = st.lists(st.sampled_from(FRAGMENTS), max_size=7).map(lambda parts: ids_of("".join(parts)))
TOKENS = st.lists(
    st.sampled_from(FRAGMENTS).map(ids_of) | st.integers(0, 128_255).map(lambda token: [token]), max_size=9
)
TEXT = st.text(max_size=12) | st.sampled_from(["", " So:\n", "<function=look>", "{ "])
ARGUMENTS = st.dictionaries(st.sampled_from(["n", "a"]), st.text(max_size=5) | st.integers(), max_size=2)
CALLS = st.lists(
    st.builds(ToolCall, st.sampled_from(["look", "order", "unknown", "brave_search"]), ARGUMENTS)
    | st.builds(lambda code: ToolCall("code_interpreter", {"code": code}), st.text(min_size=1, max_size=9)),
    max_size=3,
)


@st.composite
def written(draw: st.DrawFn) -> list[int]:
    """A message as a well-behaved model writes it."""
    message = Message("assistant", draw(TEXT), tuple(draw(CALLS)))
    setting: dict[str, Any] = {
        "environment": draw(st.sampled_from(["", "ipython"])),
        "call_format": draw(st.sampled_from(["json", "tag"])),
    }
    encoded = chat().encode(Conversation((message,), tools=TOOLS, **setting))
    return encoded.ids[encoded.mask.index(True) :]


IDS = GARBAGE | TOKENS.map(lambda groups: [token for group in groups for token in group]) | written()
SIZES = st.lists(st.integers(0, 6), max_size=12)


@settings(max_examples=600, deadline=None)
@given(IDS, SIZES, st.sampled_from([(), TOOLS]))
@example(ids_of(f"Wait {TAG} and <function=dance>{{}}</function> "), [1] * 99, TOOLS)
@example(ids_of(f"\n{TAG}\n{TAG} done \n"), [1] * 99, TOOLS)
@example(ids_of(f"a <function=dance> {TAG}"), [1] * 99, TOOLS)
@example(ids_of(f" One.\n<|python_tag|>{CALL}"), [1] * 99, ())
@example(ids_of("😀")[:1], [1], TOOLS)
def test_a_stream_equals_the_whole_however_it_is_cut(ids: list[int], sizes: list[int], tools: Any):
    expected = chat().parse(ids, tools)
    parts = [part for told in stream(cut(ids, sizes), tools) for part in told]
    assert text_of(parts) == expected.content
    assert calls_of(parts) == list(expected.tool_calls)
    assert [call.original for call in calls_of(parts)] == [call.original for call in expected.tool_calls]
    assert "" not in parts


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("We open <fast> at nine.", TOOLS),
        ("[1] says that it is so.", TOOLS),
        ("[a link](to/somewhere) is here", TOOLS),
        ("{x} is a set", TOOLS),
        ("a < b <function of x> c", TOOLS),
        ('so {"a": 1} it is', TOOLS),
        ("no <function=dance> for <function=look> us", TOOLS),  # One is no tool, so neither is a call.
        (" \n so", TOOLS),
        (CALL, ()),
        (TAG, ()),
    ],
)
def test_plain_text_comes_while_it_is_written(text: str, tools: Any):
    *before, last = [[token] for token in ids_of(text)]
    told = text_of([part for parts in stream(before, tools)[:-1] for part in parts])
    assert told == llama().decode([token for piece in before for token in piece]).rstrip()
    assert text_of([part for parts in stream([*before, last], tools) for part in parts]) == text


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (f"One moment. {TAG}{TAG}", "One moment."),
        (f"One moment.\n<|python_tag|>{CALL}", "One moment."),
        (f"{CALL}", ""),
        (f"[{CALL}, {CALL}]", ""),
    ],
)
def test_calls_come_with_the_token_that_ends_the_turn_and_nothing_of_them_as_text(text: str, first: str):
    ids = ids_of(text)
    reader = MessageStream(chat(), TOOLS)
    before = [part for token in ids for part in reader.feed([token])]
    assert (text_of(before), calls_of(before)) == (first, [])
    end = llama().special("eot_id")
    parts = reader.feed([end, *ids])
    assert parts and parts == [ToolCall("look", {"n": 1})] * len(parts)
    assert (reader.feed(ids), reader.finish()) == ([], [])


def test_a_call_that_stays_open_comes_as_text_in_the_end():
    told = stream([[token] for token in ids_of('Look: <function=look>{"n": 1')])
    assert text_of([part for parts in told[:-1] for part in parts]) == "Look:"
    assert told[-1] == [' <function=look>{"n": 1']


@settings(max_examples=300, deadline=None)
@given(IDS, SIZES)
@example(ids_of(f" One.\n<|python_tag|>{CALL}"), [1] * 99)
@example(ids_of("<|python_tag|>print(1"), [1] * 99)
def test_a_message_that_is_cut_off_is_text_and_calls_nothing(ids: list[int], sizes: list[int]):
    ids = [token for token in ids if token not in chat().stop_ids]
    reader = MessageStream(chat(), TOOLS)
    parts = [part for piece in cut(ids, sizes) for part in reader.feed(piece)] + reader.finish(is_ended=False)
    assert calls_of(parts) == []
    assert text_of(parts) == llama().decode([token for token in ids if not llama().is_special(token)])


def replied(ids: list[int], sizes: list[int], stops: list[str], tools: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Let a client's reply be read from an engine that generates `ids`; return text, calls and why it ended."""
    served = ServedModel("tiny", llama(), chat(), None, 4096, chat().stop_ids)  # pyright: ignore[reportArgumentType]
    reply, engine = ChatReply(served, tools), TextStream(llama(), stops)
    text, told, left = "", None, len(ids)
    for piece in cut(ids, sizes):
        known, left = "".join(engine.feed(token) for token in piece if not engine.is_stopped), left - len(piece)
        is_stopped = engine.is_stopped or bool(set(piece) & set(chat().stop_ids))
        reason = "stop" if is_stopped else None if left else "length"
        told = reply.feed(Chunk(tuple(piece), known + (engine.finish() if reason else ""), finish_reason=reason))
        text += told.text if told else ""
        if reason:
            break
    assert told
    return text, told.tool_calls, told.finish_reason or ""


@settings(max_examples=300, deadline=None)
@given(IDS, SIZES, st.lists(st.sampled_from(["there", "\n", "name", "é", ">"]), max_size=2))
def test_a_client_gets_what_was_said_or_what_there_is_of_it(ids: list[int], sizes: list[int], stops: list[str]):
    engine, plain, generated, has_ended = TextStream(llama(), stops), "", list[int](), False
    for token in ids:
        generated.append(token)
        plain += engine.feed(token)
        has_ended = token in chat().stop_ids
        if engine.is_stopped or has_ended:
            break
    plain += engine.finish()
    text, calls, reason = replied(generated, sizes, stops, list(TOOLS))
    whole = chat().parse(generated, TOOLS)
    if not has_ended or not whole.tool_calls:
        assert (text, calls) == (plain, [])
        assert reason == ("stop" if engine.is_stopped or has_ended else "length")
    else:
        assert text == whole.content and reason == "tool_calls"
        functions = [call["function"] for call in calls]
        assert [ToolCall(each["name"], json.loads(each["arguments"])) for each in functions] == list(whole.tool_calls)


def test_where_nothing_may_be_called_a_reply_is_its_text():
    body = f"<|python_tag|>{CALL}<|eot_id|>"
    assert replied(ids_of(body), [1] * 99, [], None) == (CALL, [], "stop")
