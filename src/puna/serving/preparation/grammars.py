"""`response_format`, `tools` and `tool_choice` -> the compiled grammar of a response.

The chat format writes the grammar of calls; the engine enforces grammars.
"""

from fastapi import Request

from puna.formats.chat.call_grammar import CallRules, call_grammar
from puna.formats.chat.conversation import Conversation
from puna.inference.engine.grammar.grammar import Grammar, json_grammar, lark_grammar, regex_grammar, with_layout
from puna.pipeline.errors import ChatError, RequestError
from puna.serving.generation.grammar_pool import Fit, GrammarPool
from puna.serving.middleware.warnings import warn
from puna.serving.requests.chat import ChatRequest
from puna.serving.requests.forms import GrammarFormat, JsonObjectFormat, JsonSchemaFormat, ResponseFormat, TextFormat
from puna.serving.requests.tools import NamedChoice


async def answer_grammar(grammars: GrammarPool, form: ResponseFormat | None, *, tenant: str = "") -> Grammar | None:
    """Return the grammar of a response without calls; None for free text."""
    if form is None or isinstance(form, TextFormat):
        return None
    return await grammars.compile(lambda fit: _spell_answer(form, fit), param="response_format", tenant=tenant)


async def message_grammar(
    grammars: GrammarPool, body: ChatRequest, conversation: Conversation, *, tenant: str = ""
) -> Grammar | None:
    """Return the grammar of the next message: calls, text or formatted output, as `tool_choice` allows."""
    choice, form = body.tool_choice or "auto", body.response_format
    name = choice.function.name if isinstance(choice, NamedChoice) else ""
    if name and name not in body.strictness:
        raise RequestError(
            f"tool_choice names {name!a}", expected="the name of one of the request's tools", param="tool_choice"
        )
    if choice == "none" or (choice == "auto" and not conversation.tools):
        return await answer_grammar(grammars, form, tenant=tenant)
    if choice == "required" and not (conversation.tools or conversation.environment):
        raise RequestError("tool_choice 'required' without tools", expected="at least one tool", param="tool_choice")
    has_answer = choice == "auto" and not (form is None or isinstance(form, TextFormat))
    rules = CallRules(
        must_call=choice != "auto",
        name=name,
        is_parallel=body.parallel_tool_calls is not False,
        strict=frozenset(tool for tool, is_strict in body.strictness.items() if is_strict),
        has_answer=has_answer,
    )

    def spell(fit: Fit) -> str:
        answer = _spell_answer(form, fit) if has_answer and form else ""
        try:
            lark = call_grammar(
                conversation,
                rules,
                lambda tool, schema, strict: with_layout(fit(schema, strict, f"tool {tool}")),
            )
        except ChatError as error:
            raise RequestError(error.given, expected=error.expected, param="tools") from None
        return lark_grammar(lark, answer=answer)

    return await grammars.compile(spell, param="tools", tenant=tenant)


def warn_of_notes(request: Request, grammar: Grammar | None) -> None:
    """Warn about schema keywords without effect in the grammar."""
    for note in grammar.notes if grammar else ():
        warn(request, note)


def _spell_answer(form: ResponseFormat, fit: Fit) -> str:
    if isinstance(form, JsonSchemaFormat):
        return json_grammar(fit(form.json_schema.schema_, bool(form.json_schema.strict), "response_format"))
    if isinstance(form, GrammarFormat):
        return lark_grammar(form.definition) if form.syntax == "lark" else regex_grammar(form.definition)
    if isinstance(form, JsonObjectFormat) and form.schema_ is not None:
        return json_grammar(fit(form.schema_, False, "response_format"))
    return json_grammar({"type": "object"})
