"""`response_format`, `tools` and `tool_choice` -> the compiled grammar of an answer.

Compiles in separate threads, so that neither the engine nor the event loop waits. The chat format decides the spelling
of calls, the engine the semantics of a grammar.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Request

from puna.formats.chat.call_grammar import CallRules, call_grammar
from puna.formats.chat.conversation import Conversation
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.grammar.grammar import (
    Grammar,
    GrammarCompiler,
    json_grammar,
    lark_grammar,
    regex_grammar,
    with_layout,
)
from puna.pipeline.errors import ChatError, RequestError
from puna.serving.admission.admission import Admission
from puna.serving.errors import Refusal, overloaded
from puna.serving.middleware.warnings import warn
from puna.serving.requests.chat import ChatRequest
from puna.serving.requests.forms import GrammarFormat, JsonObjectFormat, JsonSchemaFormat, ResponseFormat, TextFormat
from puna.serving.requests.tools import NamedChoice

NUM_THREADS, THREADS_PER_TENANT = 3, 2
MAX_WAITING = 64
MAX_SECONDS = 10.0

Fit = Callable[[Any, bool, str], dict[str, Any]]  # (schema, is_strict, place) -> what a grammar holds of the schema.
Spell = Callable[[Fit], str]
Admit = Callable[[Callable[[], None], str], Awaitable[None]]  # (take, tenant): as EngineClient.admit


class Grammars:
    """Compiles for one tokenizer; one that fails or takes too long is refused, and the next is compiled.

    No tenant can take all the threads, nor more than its share of the queue.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], admit: Admit | None = None):
        self._admit = admit
        self._compiler = GrammarCompiler(tokenizer, stop_ids)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._admission = Admission(MAX_WAITING, noun="grammars")
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(THREADS_PER_TENANT))

    async def compile(self, spell: Spell, *, param: str, tenant: str = "") -> Grammar:
        """Return the grammar that `spell` gives as text; RequestError or Refusal naming `param` where it cannot be.

        `notes` of the grammar name the keywords of schemas that the grammar does not hold.
        """
        take = partial(self._admission.take, tenant, 1)
        await self._admit(take, tenant) if self._admit else take()
        try:
            return await self._compile_in_turn(spell, param, self._turns[tenant])
        finally:
            self._admission.release(tenant)

    async def _compile_in_turn(self, spell: Spell, param: str, turn: asyncio.Semaphore) -> Grammar:
        loop = asyncio.get_running_loop()
        job: Future[Grammar] | None = None

        def end_turn(_: object) -> None:
            with suppress(RuntimeError):  # The loop is closed when the server has stopped.
                loop.call_soon_threadsafe(turn.release)

        try:
            async with asyncio.timeout(MAX_SECONDS):
                await turn.acquire()
                job = self._threads.submit(self._compile, spell, param)
                # NOTE: a turn ends with its thread's work, not with the patience of the one who waits for it.
                job.add_done_callback(end_turn)
                return await asyncio.wrap_future(job)
        except TimeoutError:
            if job and job.running():
                message = f"{param}: a grammar that takes more than {MAX_SECONDS:g} seconds to compile."
                raise Refusal(400, message, param=param) from None
            raise overloaded("Other grammars are being compiled.") from None

    def _compile(self, spell: Spell, param: str) -> Grammar:
        notes: list[str] = []

        def fit(schema: Any, is_strict: bool, place: str) -> dict[str, Any]:
            fitted = self._compiler.fit(schema, is_strict=is_strict, place=place)
            notes.extend(fitted.notes)
            return fitted.schema

        try:
            return self._compiler.compile(spell(fit), param=param, notes=notes)
        except RecursionError:
            raise RequestError("a schema that is nested too deeply", param=param) from None
        except RequestError as error:
            error.param = error.param or param
            raise


async def answer_grammar(grammars: Grammars, form: ResponseFormat | None, *, tenant: str = "") -> Grammar | None:
    """Return the grammar of an answer without calls; None for free text."""
    if form is None or isinstance(form, TextFormat):
        return None
    return await grammars.compile(lambda fit: _spell_answer(form, fit), param="response_format", tenant=tenant)


async def message_grammar(
    grammars: Grammars, body: ChatRequest, conversation: Conversation, *, tenant: str = ""
) -> Grammar | None:
    """Return the grammar of the next message: a call, or text or an answer in its form where the choice allows it."""
    choice, form = body.tool_choice or "auto", body.response_format
    name = choice.function.name if isinstance(choice, NamedChoice) else ""
    if name and name not in body.strictness:
        raise RequestError(f"tool_choice names {name!a}", expected="one of the tools", param="tool_choice")
    if choice == "none" or (choice == "auto" and not conversation.tools):
        return await answer_grammar(grammars, form, tenant=tenant)
    if choice == "required" and not (conversation.tools or conversation.environment):
        raise RequestError("tool_choice 'required' without tools", expected="tools to choose from", param="tool_choice")
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
    """Name the keywords of schemas that the grammar does not hold in the warning header."""
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
