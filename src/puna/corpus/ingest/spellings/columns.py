"""The columns beside the dialogue of a row -> system message, tools, a refusal, or metadata.

Prompt columns of other trainers become system messages, tools or history where Puna has an equivalent; other prompt
columns are errors. Columns that repeat the dialogue or describe the row become metadata.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from puna.corpus.ingest.spellings.messages import parsed, read_messages
from puna.pipeline.errors import ChatError

Row = dict[str, Any]

SYSTEM = (
    *("system", "system_prompt", "system_message", "system_instruction", "system_content", "system_text", "sys_prompt"),
    *("instructions", "preamble", "developer_prompt"),
)
TOOLS = (
    *("tools", "functions", "tool_defs", "tool_definitions", "tool_schemas", "tool_list", "tools_json", "oai_tools"),
    *("available_tools", "available_functions", "function_definitions", "custom_tools"),
)
HISTORY = ("history", "chat_history", "conversation_history", "dialog_history")
MEDIA = ("images", "image", "videos", "video", "audios", "audio", "objects", "bbox")
# Columns that other programs put into the prompt, without a place in Puna's prompt format.
REFUSED = (
    *(
        "documents",
        "document",
        "context",
        "contexts",
        "passages",
        "knowledge",
        "knowledge_base",
        "chunks",
        "retrieved_documents",
    ),
    *("chat_template_kwargs", "chat_template", "chat_template_args", "template_kwargs", "date_string", "prefix"),
    *("suffix", "few_shot", "demonstrations", "examples", "persona", "character", "reasoning_content", "thinking"),
    *("tool_responses", "retrieved_docs", "search_results", *HISTORY),
)
# Columns that a single question may depend on. Beside a whole dialogue the columns describe the row.
MATERIAL = (
    *("choices", "options", "passage", "article", "paragraph", "story", "facts", "background", "evidence"),
    *("hint", "hints", "schema", "table"),
)
# Columns with a text of the dialogue: beside messages, either a copy of a message or an error.
TEXTS = ("prompt", "instruction", "input", "question", "query", "completion", "response", "output", "text")
# Verdicts on a single answer (KTO), which SFT rows cannot express.
VERDICTS = ("label", "kto_tag")
_REFUSED_BESIDE = frozenset((*REFUSED, *MEDIA))
_REFUSED_BESIDE_QUESTION = _REFUSED_BESIDE.union(MATERIAL)
_EMPTY_TEXTS = ("", "[]", "{}", "null")
_LIST_IN_TEXT = re.compile(r"\s*\[\s*\{")


class Beside(NamedTuple):
    """System message, tools and metadata columns beside a dialogue.

    Example:
        >>> beside({"system": "Be brief.", "id": 3}, set(), []).system
        'Be brief.'
    """

    system: str
    tools: list[Any]
    descriptive: tuple[str, ...]


def beside(row: Row, used: set[str], messages: Sequence[Row], *, is_question: bool = False) -> Beside:
    """Sort the columns outside the dialogue's layout.

    Args:
        row: All columns of the row.
        used: Names of the dialogue's columns and of Puna's own fields.
        messages: The dialogue in OpenAI's spelling.
        is_question: Whether the dialogue is a question column with an answer column.

    Raises:
        ChatError: A prompt column has no place in a conversation, or a column contradicts the dialogue.

    Example:
        >>> beside({"id": 3, "source": "web", "system": "Be brief."}, {"id"}, []).descriptive
        ('source',)
    """
    others = {name: value for name, value in row.items() if name not in used and value is not None}
    filled = {name: value for name, value in others.items() if is_given(value)}
    for name, value in filled.items():
        if name not in SYSTEM and name not in TOOLS:
            _refuse_prompt_column(name, value, _REFUSED_BESIDE_QUESTION if is_question else _REFUSED_BESIDE)
            _refuse_other_text(name, value, messages)
    descriptive = tuple(name for name in others if name not in filled or name not in (*SYSTEM, *TOOLS))
    return Beside(_system(filled, messages), _tools(filled), descriptive)


def with_system(messages: list[Row], system: str) -> list[Row]:
    """Return a dialogue with a system message, unless the dialogue has a non-empty system message.

    Example:
        >>> with_system([{"role": "user", "content": "Open?"}], "Be brief.")[0]
        {'role': 'system', 'content': 'Be brief.'}
    """
    if not system:
        return messages
    first = messages[0] if messages else {}
    is_there = first.get("role") == "system"
    if is_there and str(first.get("content") or "").strip():
        return messages
    return [{"role": "system", "content": system}, *messages[int(is_there) :]]


def with_history(messages: list[Row], row: Row, used: set[str]) -> list[Row]:
    """Return a dialogue after the turns of a history column; add the column's name to `used`.

    The history is a list of messages, or of [question, answer] pairs as in LLaMA-Factory and ms-swift.

    Example:
        >>> with_history([{"role": "user", "content": "And now?"}], {"history": [["Open?", "Yes."]]}, set())[1]
        {'role': 'assistant', 'content': 'Yes.'}
    """
    name = next((name for name in HISTORY if row.get(name) is not None), "")
    history = row.get(name)
    history = parsed(history, name) if isinstance(history, str) and history.strip() else history
    if not history:
        return messages
    used.add(name)
    if not isinstance(history, list):
        raise ChatError(
            f"{name} is {type(history).__name__}", expected="a list of [question, answer] pairs or of messages"
        )
    if all(isinstance(item, dict) for item in history):
        earlier = read_messages(history, name).messages
    else:
        pairs = [_pair(pair, f"{name}[{index}]") for index, pair in enumerate(history)]
        roles = ("user", "assistant")
        earlier = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    start = 1 if messages and messages[0]["role"] == "system" else 0
    if messages[start : start + len(earlier)] == earlier:
        return messages
    return [*messages[:start], *earlier, *messages[start:]]


def _pair(pair: Any, place: str) -> list[str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise ChatError(f"{place} is no pair of texts", expected="[question, answer]")
    return cast(list[str], pair)


def tool_list(value: Any, name: str) -> list[Any]:
    """Read tool definitions: a list, a single definition, JSON in a string, or a list of JSON strings.

    Example:
        >>> tool_list('[{"name": "now"}]', "tools")
        [{'name': 'now'}]
    """
    value = parsed(value, name) if isinstance(value, str) and value.strip() else value
    if not value:
        return []
    tools = cast(list[Any], value) if isinstance(value, list) else [value]
    return [parsed(tool, f"{name}[{index}]") if isinstance(tool, str) else tool for index, tool in enumerate(tools)]


def has(row: Row, name: str) -> bool:
    """Tell whether a row has a value in a column.

    Example:
        >>> has({"answer": ""}, "answer"), has({"answer": None}, "answer")
        (True, False)
    """
    return row.get(name) is not None


def first_given(row: Row, names: Sequence[str]) -> str:
    """Return the first column with content, otherwise the first column; "" for no columns.

    Datasets joined from several files pad an absent column with an empty list.

    Example:
        >>> first_given({"messages": [], "conversations": ["..."]}, ["messages", "conversations"])
        'conversations'
    """
    return next((name for name in names if is_given(row[name])), next(iter(names), ""))


def is_given(value: Any) -> bool:
    """Tell whether a value has content; empty texts, lists and objects have no content.

    Example:
        >>> is_given([]), is_given({"a": None}), is_given(0)
        (False, False, True)
    """
    if isinstance(value, dict):
        return any(map(is_given, cast(Row, value).values()))  # NOTE: Arrow pads absent objects.
    if isinstance(value, list):
        return any(map(is_given, cast(list[Any], value)))
    return value is not None and not (isinstance(value, str) and value.strip() in _EMPTY_TEXTS)


def _refuse_prompt_column(name: str, value: Any, refused: frozenset[str]) -> None:
    is_text_or_more = isinstance(value, str | list | dict | bytes)  # A number counts or rates.
    if is_text_or_more and name in refused:
        raise ChatError(
            f"the column '{name}' belongs to the prompt, and a conversation has no place for it",
            expected="prompt text only in messages, system prompts and tools",
        )
    if name in VERDICTS and isinstance(value, bool):
        raise ChatError(
            f"the column '{name}' judges one answer alone (KTO)", expected="answers to train on, or preference pairs"
        )
    if name == "mask" and str(value).lower() not in ("user", "human"):
        raise ChatError(
            f"the column 'mask' is {value!r}", expected="'User', since the assistant's answers are trained on"
        )
    if name == "info" and any(f'"{tools}"' in json.dumps(value, default=str).replace("\\", "") for tools in TOOLS):
        raise ChatError("the column 'info' holds tools", expected="tool definitions in a column 'tools'")


def _refuse_other_text(name: str, value: Any, messages: Sequence[Row]) -> None:
    """Raise ChatError for a column with words, messages or tools that are missing from the dialogue."""
    if name in TEXTS and isinstance(value, str):
        texts = [message["content"].strip() for message in messages if isinstance(message.get("content"), str)]
        text = value.strip()
        is_copy = any(text in each for each in texts) or (name == "text" and bool(texts) and texts[-1] in text)
        if not is_copy:
            raise ChatError(
                f"the column '{name}' has text that is missing from the messages", expected="one dialogue per row"
            )
    value = parsed(value, name) if isinstance(value, str) and _LIST_IN_TEXT.match(value) else value
    if _looks_like(value, ("role", "content")) or _looks_like(value, ("from", "value")):
        stated = [(message["role"], message.get("content")) for message in read_messages(value, name).messages]
        dialogue = [(message["role"], message.get("content")) for message in messages]
        if stated not in (dialogue[: len(stated)], dialogue[len(dialogue) - len(stated) :]):
            raise ChatError(f"the column '{name}' holds other messages", expected="one dialogue per row")
    elif _looks_like(value, ("name", "parameters")) or _looks_like(_inner(value), ("name", "parameters")):
        raise ChatError(f"the column '{name}' holds tools", expected="tool definitions in a column 'tools'")


def _inner(value: Any) -> list[Any]:
    items = cast(list[Any], value) if isinstance(value, list) else []
    return [item["function"] for item in items if isinstance(item, dict) and isinstance(item.get("function"), dict)]


def _looks_like(value: Any, names: tuple[str, ...]) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) and set(names) <= set(item) for item in value)


def _system(others: Row, messages: Sequence[Row]) -> str:
    prompts = {name: others[name] for name in SYSTEM if name in others}
    for name, value in prompts.items():
        if not isinstance(value, str):
            raise ChatError(f"the column '{name}' is {type(value).__name__}", expected="a string")
    texts = {name: value.strip() for name, value in prompts.items()}
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str) and first["content"].strip():
        texts["the first message"] = first["content"].strip()
    if len(set(texts.values())) > 1:
        raise ChatError(f"{' and '.join(texts)} hold different system messages", expected="one system message per row")
    return next(iter(prompts.values()), "")


def _tools(others: Row) -> list[Any]:
    lists = {name: tool_list(others[name], name) for name in TOOLS if name in others}
    filled = {name: tools for name, tools in lists.items() if tools}
    first = next(iter(filled.values()), [])
    if any(tools != first for tools in filled.values()):
        raise ChatError(f"{' and '.join(filled)} hold different tools", expected="one list of tools per row")
    return first
