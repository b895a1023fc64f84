"""A foreign chat template -> findings: differences from Llama 3.1's format, token by token, on a set of dialogues.

Foreign templates never make prompts: Puna's format is formats/chat/format.py.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.planning.doctor.render import Rendered, render
from puna.planning.doctor.report import Report, listed
from puna.planning.doctor.template_child import MARK_END, MARK_START

MAX_TEMPLATE = 2**18
HOSTILE = {"security", "memory", "time", "died"}
TOOLS_ONLY = {"tools", "call", "result", "built-in"}
DATES = re.compile(
    r"(<\|start_header_id\|>system<\|end_header_id\|>\n\n(?:Environment: \w+\n)?(?:Tools: [^\n]*\n+)?)"
    r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n*"
)
EMPTY_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
# A family of templates by a text that no other family writes.
FAMILIES = (
    ("tools_in_user_message", "Hugging Face's stock Llama 3.1 template"),
    ("<|im_start|>", "ChatML"),
    ("[INST]", "Llama 2's or Mistral's format"),
    ("<|start_header_id|>", "a template of the Llama 3 family"),
)
COPY_REMEDY = "Take the chat_template.jinja that Puna writes, unless the model was trained with this one"

ASK = Message("user", "Where is my order?")
ANSWER = Message("assistant", "On its way.")
SYSTEM = Message("system", "Be brief.")
LOOK = ToolCall("find_order", {"order": "48151"})
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find an order.",
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    },
}


class Case(NamedTuple):
    """A dialogue for the comparison; a prompt ends in the open header of the assistant."""

    kind: str
    conversation: Conversation
    is_prompt: bool = False


CASES = (
    Case("prompt", Conversation((ASK,)), is_prompt=True),
    Case("plain", Conversation((ASK, ANSWER))),
    Case("system", Conversation((SYSTEM, ASK, ANSWER))),
    Case(
        "multi-turn", Conversation((ASK, ANSWER, Message("user", "Thanks!"), Message("assistant", "Welcome.\n\nBye.")))
    ),
    Case("tools", Conversation((ASK, ANSWER), tools=(TOOL,))),
    Case("call", Conversation((ASK, Message("assistant", "", (LOOK,))), tools=(TOOL,))),
    Case(
        "result",
        Conversation((ASK, Message("assistant", "", (LOOK,)), Message("tool", '{"at": "sea"}'), ANSWER), tools=(TOOL,)),
    ),
    Case(
        "built-in",
        Conversation(
            (ASK, Message("assistant", "", (ToolCall("brave_search", {"query": "orders"}),))),
            environment="ipython",
            builtin_tools=("brave_search",),
        ),
    ),
)


def check_template(
    template: Any, tokenizer: Tokenizer, roles: Mapping[str, str], where: str, report: Report, *, marks: bool = True
) -> None:
    """Report differences between a Jinja template and ChatFormat.

    Args:
        roles: Texts of special tokens for the template, by variable: {"bos_token": "<|begin_of_text|>"}.
        where: File of the template, for findings.
        marks: Whether a template without {% generation %} is a finding.
    """
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        expected = f"expected text of at most {MAX_TEMPLATE:,} characters"
        report.add("template-invalid", where, f"a chat template that is no text, or long; {expected}", COPY_REMEDY)
        return
    rendered = render(template, [_variables(case) | dict(roles) for case in CASES])
    if not _check_endings(rendered, where, report):
        return
    _check_failures(rendered, where, report)
    if marks and not any(f"{MARK_START}On its way." in answer.text for answer in rendered):
        remedy = "Train from conversations with Puna, which masks by itself, or take the template that Puna writes"
        what = (
            "no {% generation %} around what the assistant says: training on the assistant's words only gets an empty"
        )
        report.add("template-mask-empty", where, f"{what} mask, and learns nothing", remedy)
    texts = {
        case.kind: answer.text.replace(MARK_START, "").replace(MARK_END, "")
        for case, answer in zip(CASES, rendered, strict=True)
        if not answer.kind
    }
    _check_begins(texts, where, report)
    verdicts = {case.kind: _compare(case, texts[case.kind], tokenizer) for case in CASES if case.kind in texts}
    _report_verdicts(verdicts, f"{where}, {_family(template)}", where, report)
    same = sum(not verdict for verdict in verdicts.values())
    report.facts["chat template"] = f"the same as Llama 3.1's format in {same} of {len(CASES)} kinds of dialogue"


def _variables(case: Case) -> dict[str, Any]:
    data = case.conversation.to_json()
    named = {"messages": data["messages"], "tools": data.get("tools"), "documents": None}
    extra = {name: data[name] for name in ("environment", "builtin_tools") if name in data}
    return named | extra | {"add_generation_prompt": case.is_prompt}


def _check_endings(rendered: list[Rendered], where: str, report: Report) -> bool:
    """Report a template refused by Jinja or beyond a limit; return whether comparison is possible."""
    for answer in rendered:
        if answer.kind in HOSTILE:
            reason = {"memory": "more than 256 MiB of memory, or a number without end"}.get(answer.kind, answer.error)
            remedy = "Don't use this template, and look at where it comes from; Puna never runs it outside its limits"
            report.add("template-hostile", where, f"the template was stopped: {reason!a:.300}", remedy)
            return False
        if answer.kind == "syntax":
            report.add("template-invalid", where, f"not Jinja: {answer.error!a:.300}", COPY_REMEDY)
            return False
    assert len(rendered) == len(CASES)
    return True


def _check_failures(rendered: list[Rendered], where: str, report: Report) -> None:
    for code, is_tools in (("template-fails", False), ("template-tools-fail", True)):
        failed = [
            (case.kind, answer.error)
            for case, answer in zip(CASES, rendered, strict=True)
            if answer.kind and (case.kind in TOOLS_ONLY) == is_tools
        ]
        if failed:
            kinds = listed([kind for kind, _ in failed], most=8)
            report.add(code, where, f"cannot render {kinds}: {failed[0][1]!a:.200}", COPY_REMEDY)


def _check_begins(texts: dict[str, str], where: str, report: Report) -> None:
    begin = "<|begin_of_text|>"
    counts = {len(text) - len(text.replace(begin, "")) for text in texts.values()}
    if any(count > len(begin) for count in counts):
        what = "the template writes begin_of_text more than once; expected it once, at the start"
        report.add("bos-doubled", where, what, "Remove all but the first: a doubled one costs quality without an error")
    if any(not text.startswith(begin) for text in texts.values()):
        remedy = "Let the template write <|begin_of_text|> first, or name bos_token in tokenizer_config.json"
        report.add("template-bos-missing", where, "a dialogue doesn't start with begin_of_text; expected it", remedy)


class Verdict(NamedTuple):
    """Difference of a rendering from ChatFormat: dates alone, or the first different token."""

    is_dates: bool
    difference: str


def _compare(case: Case, text: str, tokenizer: Tokenizer) -> Verdict | None:
    """Return the difference from ChatFormat, or None; `_check_begins` reports doubled or missing begin_of_text."""
    chat = ChatFormat(tokenizer)
    expected = chat.prompt(case.conversation) if case.is_prompt else chat.encode(case.conversation).ids
    text = "<|begin_of_text|>" + text.replace("<|begin_of_text|>", "")
    ids = encode_marked(text, tokenizer)
    if ids == expected:
        return None
    dateless = encode_marked(DATES.sub(r"\1", text).replace(EMPTY_SYSTEM, ""), tokenizer)
    if dateless == expected:
        return Verdict(True, first_difference(ids, expected, tokenizer))
    return Verdict(False, first_difference(dateless, expected, tokenizer))


def _report_verdicts(verdicts: dict[str, Verdict | None], named: str, where: str, report: Report) -> None:
    dated = [kind for kind, verdict in verdicts.items() if verdict and verdict.is_dates]
    if dated:
        difference = next(verdict.difference for verdict in verdicts.values() if verdict and verdict.is_dates)
        remedy = (
            "Nothing if the model was trained with dates; else take Puna's template: a date that moves changes answers"
        )
        report.add("template-dates", where, f"puts dates into {listed(dated, most=8)}: {difference}", remedy)
    for kind, verdict in verdicts.items():
        if verdict and not verdict.is_dates:
            code = "template-tools-differ" if kind in TOOLS_ONLY else "template-differs"
            report.add(code, f"{where} ({kind})", f"{named}: {verdict.difference}", COPY_REMEDY)


def encode_marked(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a rendered prompt; spelled special tokens count as special, as in external programs."""
    names = sorted(tokenizer.special_ids, key=len, reverse=True)
    ids: list[int] = []
    for index, part in enumerate(re.split(rf"<\|({'|'.join(map(re.escape, names))})\|>", text)):
        ids += [tokenizer.special(part)] if index % 2 else tokenizer.encode(part)
    return ids


def first_difference(ids: list[int], expected: list[int], tokenizer: Tokenizer) -> str:
    """Describe the first different token of two prompts, with the text before and the two continuations."""
    pairs = enumerate(zip(ids, expected, strict=False))
    index = next((at for at, (left, right) in pairs if left != right), min(len(ids), len(expected)))
    before, here, there = (
        ascii(tokenizer.decode(part)) if part else "the end"
        for part in (expected[max(0, index - 4) : index], ids[index : index + 6], expected[index : index + 6])
    )
    return f"from token {index} on, after {before}, it writes {here}; expected {there}"


def _family(template: str) -> str:
    return next((name for sign, name in FAMILIES if sign in template), "no known template")
