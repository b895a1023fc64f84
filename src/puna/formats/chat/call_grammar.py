"""Tools and the request's tool_choice -> a grammar for the next assistant message, in llguidance's variant of Lark.

The grammar spells calls as format.py does, with arguments that follow the tool's JSON schema, so that parse.py reads
every generated call. Text without a call is unrestricted, except for texts that parse.py would read as a call. The
inference engine compiles the grammar.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from puna.formats.chat.conversation import Conversation, tool_name
from puna.formats.chat.format import CALL_SEPARATOR
from puna.formats.chat.parse import CODE_TAKEN, TAG_CLOSING, TAG_OPENING
from puna.pipeline.errors import ChatError

SchemaLayout = Callable[[str, dict[str, Any], bool], dict[str, Any]]
# JSON types other than objects. Type names of other dialects count as objects: arguments are always named.
NO_OBJECT = {"null", "boolean", "integer", "number", "string", "array"}
ANYTHING = r"/(?s:.*)/"
BLANK = r"[\s\x1c-\x1f]*"  # Characters removed by str.strip.


@dataclass(frozen=True, slots=True)
class CallRules:
    """Restrictions on tool calls: OpenAI's `tool_choice`, `parallel_tool_calls` and `strict`.

    Attributes:
        must_call: Whether text without a call is excluded (`tool_choice: required`).
        name: The only tool that may be called; "" for all tools.
        is_parallel: Whether a message may hold several calls.
        strict: Names of tools with `strict` schemas.
        has_answer: Whether text is replaced by the rule `@answer`, the caller's response format.

    Example:
        >>> CallRules(must_call=True, name="lookup")  # tool_choice names the tool
        CallRules(must_call=True, name='lookup', is_parallel=True, strict=frozenset(), has_answer=False)
    """

    must_call: bool = False
    name: str = ""
    is_parallel: bool = True
    strict: frozenset[str] = frozenset()
    has_answer: bool = False


def call_grammar(conversation: Conversation, rules: CallRules, layout: SchemaLayout) -> str:
    """Return the grammar of the next assistant message.

    Args:
        conversation: Conversation with the tools.
        rules: Restrictions on calls.
        layout: Function of tool name, schema and strictness. Returns the schema to enforce, with JSON whitespace
            options.

    Raises:
        ChatError: The message must be a call, and no tool can be called.
    """
    tools = [tool for tool in conversation.tools if rules.name in ("", tool_name(tool))]
    marked, bare = _calls(conversation, rules, tools)
    if rules.must_call and not (marked or bare):
        raise ChatError("a required tool call without tools", expected="at least one callable tool")
    end = "<|eom_id|>" if conversation.environment else "<|eot_id|>"
    prefix = "" if rules.must_call or rules.has_answer else "PLAIN? "
    starts = [] if rules.must_call else ["@answer" if rules.has_answer else "PLAIN"]
    starts += [f"{prefix}<|python_tag|> ({' | '.join(marked)}) {end}"] if marked else []
    starts += [f"{bare} <|eot_id|>"] if bare else []
    lines = [f"start: {' | '.join(starts)}", *_rules(conversation, rules, tools, layout)]
    return "\n".join([*lines, _code(), _plain(conversation)]) + "\n"


def _calls(conversation: Conversation, rules: CallRules, tools: Sequence[dict[str, Any]]) -> tuple[list[str], str]:
    """Return the rules for calls after python_tag, and the rule for calls without python_tag."""
    marked: list[str] = []
    if conversation.environment and not rules.name:
        marked += [f"builtin_{name}" for name in conversation.builtin_tools] + ["CODE"]
    if not tools:
        return marked, ""
    if conversation.call_format == "tag":
        return marked, "tagged" if rules.must_call or rules.has_answer else "opened tagged_more"
    if conversation.environment:
        return [*marked, "calls"], ""
    return ([], "calls") if rules.must_call or rules.has_answer else (["calls"], "calls")


def _rules(
    conversation: Conversation, rules: CallRules, tools: Sequence[dict[str, Any]], layout: SchemaLayout
) -> list[str]:
    lines = [_builtin(name) for name in conversation.builtin_tools]
    if not tools:
        return lines
    numbers = range(len(tools))
    one = rules.name or not rules.is_parallel
    if conversation.call_format == "tag":
        named = " | ".join(f"tag_{number}" for number in numbers)
        lines += [f"tagged: {_literal(TAG_OPENING)} tagged_more", f"tag: {named}"]
        lines += ["tagged_more: tag" if one else f"tagged_more: tag ({_literal(TAG_OPENING)} tag)*"]
        lines += [f"opened[lazy]: {_regex(rf'(?s:.*){TAG_OPENING}')}"]
    else:
        separator = _literal(CALL_SEPARATOR)
        lines += [f"call: {' | '.join(f'call_{number}' for number in numbers)}"]
        lines += ["calls: call" if one else f"calls: call ({separator} call)*"]
    for number, tool in zip(numbers, tools, strict=True):
        name = tool_name(tool)
        schema = layout(name, _arguments(tool), name in rules.strict)
        arguments = f"arguments_{number}"
        lines += [f"{arguments}: %json {json.dumps(schema, ensure_ascii=False)}"]
        if conversation.call_format == "tag":
            lines += [f"tag_{number}: {_literal(name + '>')} {arguments} {_literal(TAG_CLOSING)}"]
            continue
        heads = ['{"type": "function", "name": '] + ([] if rules.must_call else ['{"name": '])
        spelled = [_literal(f'{head}{json.dumps(name, ensure_ascii=False)}, "parameters": ') for head in heads]
        lines += [f"call_{number}: ({' | '.join(spelled)}) {arguments} {_literal('}')}"]
    return lines


def _arguments(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool's arguments, with the type "object"."""
    schema = tool["function"].get("parameters") or {}
    kind = schema.get("type")
    names = [str(name).lower() for name in (kind if isinstance(kind, list) else [kind])]
    if names and NO_OBJECT.issuperset(names):
        raise ChatError(f"parameters of {tool_name(tool)} of type {kind!r}", expected='"object"')
    return {**schema, "type": "object"}


def _builtin(name: str) -> str:
    return f'builtin_{name}: {_literal(name + ".call(query=")} /"[^"]*"/ {_literal(")")}'


def _code() -> str:
    """Return the rule of Python source: any text that is not spelled as another kind of call."""
    taken = "|".join(map(re.escape, CODE_TAKEN))
    something, other_call = _regex(r"(?s:.*)\S(?s:.*)"), _regex(rf"{BLANK}({taken})(?s:.*)")
    return f"CODE: {ANYTHING} & {something} & ~{other_call}"


def _plain(conversation: Conversation) -> str:
    """Return the rule of text without calls: no JSON and no tag that names a tool."""
    names = "|".join(re.escape(tool_name(tool)) for tool in conversation.tools)
    if not names:
        return f"PLAIN: {ANYTHING}"
    tag = TAG_OPENING if conversation.call_format == "tag" else f"{TAG_OPENING}({names})>"
    # The only other spelling of "name" or of a tool's name in JSON is an escape of an ordinary character.
    json_call = rf'{BLANK}[\[{{](?s:.*)("name"\s*:\s*"({names})"|\\u00[2-7])(?s:.*)'
    return f"PLAIN: {ANYTHING} & ~{_regex(json_call)} & ~{_regex(f'(?s:.*){tag}(?s:.*)')}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    return "/" + pattern.replace("/", r"\/") + "/"
