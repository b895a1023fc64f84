"""Every form of the prompt format: ids written out, the reference package's code, and Meta's own document of it."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from llama_models.datatypes import RawMessage, StopReason, ToolPromptFormat
from llama_models.datatypes import ToolCall as ReferenceCall
from llama_models.llama3.chat_format import ChatFormat as ReferenceFormat
from llama_models.llama3.tokenizer import Tokenizer as ReferenceTokenizer
from meta_chat import chat, ids_of, llama, tool

from puna.formats.chat import Conversation, Message, ToolCall
from puna.formats.chat.format import opening

GOLDEN = Path(__file__).with_name("prompt_golden.txt")
DOCUMENT = Path(str(files("llama_models") / "llama3_1" / "prompt_format.md"))
PYTHON_TAG = 128010
DATE = "21 September 2024"


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str) -> Message:
    return Message("assistant", text)


def called(*calls: ToolCall) -> Message:
    return Message("assistant", tool_calls=calls)


SYSTEM = Message("system", "Be kind.")
LOOK = ToolCall("look", {"city": "Rome"})
LOOK_TOOL = tool("look", city={"type": "string"})
LOOK_TOOL["function"]["description"] = "Tell the weather"
TEA = ToolCall("brave_search", {"query": "tea"})
ROOT = ToolCall("wolfram_alpha", {"query": "2+2"})
CODE = ToolCall("code_interpreter", {"code": "print(7)"})
BUILTIN: dict[str, Any] = {"environment": "ipython", "builtin_tools": ("brave_search", "wolfram_alpha")}

FORMS = {
    "plain dialogue without a system message": Conversation((user("Hi"), said("Hello."))),
    "plain dialogue with a system message": Conversation((SYSTEM, user("Hi"), said("Hello."), user("Bye"))),
    "date and system message": Conversation((SYSTEM, user("Hi")), today=DATE),
    "date alone": Conversation((user("Hi"),), today=DATE),
    "built-in call, brave_search": Conversation((user("tea"), called(TEA)), **BUILTIN),
    "built-in call, wolfram_alpha, with everything in the system message": Conversation(
        (SYSTEM, user("2+2"), called(ROOT)), today=DATE, **BUILTIN
    ),
    "one built-in tool offered": Conversation((user("tea"),), environment="ipython", builtin_tools=("brave_search",)),
    "code interpreter": Conversation((user("7"), called(CODE)), environment="ipython"),
    "JSON call in ipython, and its result": Conversation(
        (user("Rome"), called(LOOK), Message("tool", "sunny"), said("Sunny.")),
        tools=(LOOK_TOOL,),
        environment="ipython",
    ),
    "JSON call without an environment": Conversation((user("Rome"), called(LOOK)), tools=(LOOK_TOOL,)),
    "several JSON calls": Conversation((user("Rome"), called(LOOK, LOOK)), tools=(LOOK_TOOL,)),
    "tag call, and its result": Conversation(
        (user("Rome"), called(LOOK), Message("tool", "sunny")),
        tools=(LOOK_TOOL,),
        environment="ipython",
        call_format="tag",
    ),
    "several tag calls, two tools": Conversation(
        (user("Rome"), called(LOOK, LOOK)), tools=(LOOK_TOOL, tool("order")), call_format="tag"
    ),
    "whole interaction with a built-in tool": Conversation(
        (SYSTEM, user("2+2"), called(ROOT), Message("tool", '{"result": "4"}'), said("4."), user("Thanks")), **BUILTIN
    ),
}

# Where the package's code departs from Meta's document, and the forms in which it shows.
NO_PYTHON_TAG = "the code writes python_tag before Python source alone, the document before every call in ipython"
DEPARTURES = {
    "built-in call, brave_search": NO_PYTHON_TAG,
    "built-in call, wolfram_alpha, with everything in the system message": NO_PYTHON_TAG,
    "whole interaction with a built-in tool": NO_PYTHON_TAG,
    "JSON call in ipython, and its result": NO_PYTHON_TAG,
}
# Meta's document knows one call a turn. The code puts several next to one another, and encodes each on its own.
SEAMS = {"several JSON calls": "; ", "several tag calls, two tools": ""}


@cache
def golden() -> dict[str, list[tuple[list[int], str]]]:
    """Read the file: a form's name after #, then lines of ids and, between bars, the text that they stand for."""
    found: dict[str, list[tuple[list[int], str]]] = {}
    for block in re.split("^# ", GOLDEN.read_text(encoding="utf-8"), flags=re.M)[1:]:
        name, *lines = block.strip().splitlines()
        cells = (line.split("|", 1) for line in lines)
        found[name] = [(list(map(int, ids.split())), text[:-1].replace("\\n", "\n")) for ids, text in cells]
    return found


def golden_ids(name: str) -> list[int]:
    return [token_id for ids, _ in golden()[name] for token_id in ids]


@cache
def reference() -> ReferenceFormat:
    return ReferenceFormat(ReferenceTokenizer.get_instance())


def reference_ids(conversation: Conversation) -> list[int]:
    """Let the reference package render a dialogue; what stands before it is text to its code."""
    raw = [RawMessage(role=header, content=text) for header, text in opening(conversation)]  # pyright: ignore[reportArgumentType]
    raw += [_raw(message, conversation) for message in conversation.messages if message.role != "system"]
    style = ToolPromptFormat.function_tag if conversation.call_format == "tag" else ToolPromptFormat.json
    return reference().encode_dialog_prompt(raw, style).tokens


def _raw(message: Message, conversation: Conversation) -> RawMessage:
    calls = [ReferenceCall(call_id="", tool_name=call.name, arguments=call.arguments) for call in message.tool_calls]
    expects_result = calls and conversation.environment and conversation.call_format == "json"
    reason = StopReason.end_of_message if expects_result else StopReason.end_of_turn
    return RawMessage(role=message.role, content=message.content, tool_calls=calls, stop_reason=reason)


def test_the_golden_file_has_every_form_and_says_what_each_id_stands_for():
    assert list(golden()) == list(FORMS)
    tokenizer = reference().tokenizer
    for pieces in golden().values():
        assert [tokenizer.decode(ids) for ids, _ in pieces] == [text for _, text in pieces]


@pytest.mark.parametrize("name", FORMS)
def test_each_form_has_its_golden_ids(name: str):
    assert chat().prompt(FORMS[name]) == golden_ids(name)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in DEPARTURES | SEAMS])
def test_the_reference_package_gives_the_same_ids(name: str):
    assert reference_ids(FORMS[name]) == golden_ids(name)


@pytest.mark.parametrize("name", DEPARTURES)
def test_the_package_leaves_python_tag_out_where_its_document_has_it(name: str):
    assert PYTHON_TAG in golden_ids(name)
    assert reference_ids(FORMS[name]) == [token_id for token_id in golden_ids(name) if token_id != PYTHON_TAG]


@pytest.mark.parametrize("name", SEAMS)
def test_the_package_joins_several_calls_without_anything_between(name: str):
    theirs, ours = reference_ids(FORMS[name]), golden_ids(name)
    assert theirs != ours
    text = llama().decode(ours)
    one = "</function>" if FORMS[name].call_format == "tag" else '"Rome"}}'
    assert llama().decode(theirs) == text.replace(one + SEAMS[name], one)


def test_the_package_escapes_what_is_not_ascii_and_we_do_not():
    conversation = Conversation((user("Rome"), called(ToolCall("look", {"city": "Köln"}))), tools=(LOOK_TOOL,))
    ours, theirs = llama().decode(chat().prompt(conversation)), llama().decode(reference_ids(conversation))
    assert "Köln" in ours
    assert theirs == ours.replace("Köln", "K\\u00f6ln")


class Example(NamedTuple):
    """A section of Meta's document as a conversation, and the edits that make its text ours, each with its reason."""

    section: str
    conversation: Conversation
    answer: Message
    edits: tuple[tuple[str, str, str], ...] = ()
    answer_edits: tuple[tuple[str, str, str], ...] = ()


STRAY_NEWLINE = ("\n<|eot_id|>", "<|eot_id|>", "space around a text is no part of it")
STRAY_BLANK = ("\n\nCutting", "\nCutting", "the document has a blank line here only if there is no line of tools")
HELPFUL = Message("system", "You are a helpful assistant.")
TRENDING = "Returns the trending songs on a Music site"
# The document's schemas are not JSON Schema; they are rendered as they are given.
SONGS = {
    "type": "function",
    "function": {
        "name": "trending_songs",
        "description": TRENDING,
        "parameters": {
            "type": "object",
            "properties": [
                {"n": {"type": "object", "description": "The number of songs to return"}},
                {"genre": {"type": "object", "description": "The genre of the songs to return"}},
            ],
            "required": ["n"],
        },
    },
}
TAGGED_SONGS = {
    "type": "function",
    "function": {
        "name": "trending_songs",
        "description": TRENDING,
        "parameters": {
            "genre": {"description": "The genre of the songs to return", "param_type": "str", "required": False},
            "n": {"description": "The number of songs to return", "param_type": "int", "required": True},
        },
    },
}
PRIME = """def is_prime(n):
    if n <= 1
        return False
    for i in range(2, int(n**0.5) + 1):
        if n % i == 0:
            return False
    return True

print(is_prime(7))  # Output: True"""
IPYTHON: dict[str, Any] = {"environment": "ipython"}


def sections() -> dict[str, list[str]]:
    """Return the blocks of text in each section of the document that has any."""
    parts = (part.partition("\n") for part in re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.M))
    blocks = {title.strip(): re.findall(r"^```\n(.*?)\n```$", body, re.M | re.S) for title, _, body in parts}
    return {title: found for title, found in blocks.items() if found}


def pi() -> str:
    """The tool's result in the document, which is long."""
    return sections()["Built-in tools full interaction"][0].split("ipython<|end_header_id|>")[1].split("<|eot_id|>")[0]


EXAMPLES = (
    Example(
        "User and assistant conversation",
        Conversation(
            (
                Message("system", "You are a helpful assistant"),
                user("Answer who are you in the form of jeopardy?"),
            )
        ),
        said('Here\'s my response\n\n"What is a helpful assistant?"'),
    ),
    Example(
        "Builtin Tool Calling",
        Conversation((HELPFUL, user("Search the web for the latest price of 1oz gold?")), today=DATE, **BUILTIN),
        called(ToolCall("brave_search", {"query": "latest price of 1oz gold"})),
        (STRAY_NEWLINE,),
    ),
    Example(
        "Builtin Code Interpreter",
        Conversation(
            (user("Write code to check if number is prime, use that to see if the number 7 is prime"),), **IPYTHON
        ),
        called(ToolCall("code_interpreter", {"code": PRIME})),
    ),
    Example(
        "Built-in tools full interaction",
        Conversation(
            (
                user("What is the 100th decimal of pi?"),
                called(ToolCall("wolfram_alpha", {"query": "100th decimal of pi"})),
                Message("tool", pi()),
            ),
            **BUILTIN,
        ),
        said("The 100th decimal of pi is 7."),
        (STRAY_NEWLINE, ("\n\n\n{", "\n\n{", "space around a text is no part of it")),
    ),
    Example(
        "JSON based tool calling",
        Conversation((HELPFUL, user("Use tools to get latest trending songs")), (SONGS,), today=DATE, **IPYTHON),
        called(ToolCall("trending_songs", {"n": "10", "genre": "all"})),
        (
            STRAY_NEWLINE,
            STRAY_BLANK,
            ('["n"]', f'[\n{" " * 16}"n"\n{" " * 12}]', "the document's schema is not laid out alike everywhere"),
        ),
        (
            ("{\n    ", "{", "we write a call on one line, as Meta's code does"),
            (",\n    ", ", ", "the same"),
            ("{    ", "{", "the same"),
            ("    ", "", "the same"),
            ("\n", "", "the same"),
        ),
    ),
    Example(
        "`<function>` based tool calling",
        Conversation(
            (HELPFUL, user("Use tools to get latest trending songs")),
            (TAGGED_SONGS,),
            today=DATE,
            call_format="tag",
            **IPYTHON,
        ),
        called(ToolCall("trending_songs", {"n": 10})),
        (STRAY_NEWLINE, STRAY_BLANK),
    ),
)


def edited(text: str, edits: tuple[tuple[str, str, str], ...]) -> str:
    for old, new, reason in edits:
        assert old in text, f"no difference any more: {reason}"
        text = text.replace(old, new)
    return text


def test_every_dialogue_of_the_document_is_an_example_here():
    assert set(sections()) - {example.section for example in EXAMPLES} == {"Llama 3.1 Base Model"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.section)
def test_we_write_what_metas_document_writes_but_for_the_listed_differences(example: Example):
    asked, answered = sections()[example.section]
    prompt = chat().prompt(example.conversation)
    assert prompt == ids_of(edited(asked, example.edits))
    encoded = chat().encode(example.conversation.with_message(example.answer))
    assert encoded.ids[len(prompt) :] == ids_of(edited(answered, example.answer_edits))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.section)
def test_we_read_the_answers_of_metas_document_as_they_stand(example: Example):
    answered = sections()[example.section][1]
    assert chat().parse(ids_of(answered), example.conversation.tools) == example.answer


def test_a_base_models_prompt_is_begin_of_text_and_the_text():
    (asked, _) = sections()["Llama 3.1 Base Model"]
    assert chat().document(asked.removeprefix("<|begin_of_text|>"))[:-1] == ids_of(asked)
