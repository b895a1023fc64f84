"""Grammar texts -> compiled grammars, in threads: neither the engine nor the event loop waits."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.grammar.grammar import Grammar, GrammarCompiler
from puna.pipeline.errors import RequestError
from puna.serving.admission.admission import Admission
from puna.serving.errors import HttpError, overloaded

NUM_THREADS, THREADS_PER_TENANT = 3, 2
MAX_WAITING = 64
MAX_SECONDS = 10.0

Fit = Callable[
    [Any, bool, str], dict[str, Any]
]  # (schema, is_strict, place) -> the part of the schema that a grammar can express
Spell = Callable[[Fit], str]
Admit = Callable[[Callable[[], None], str], Awaitable[None]]  # (take, tenant): as EngineClient.admit


class GrammarPool:
    """Threads that compile grammars for a tokenizer, with a time limit per grammar.

    No tenant takes all threads, or more than an equal share of the queue.

    Example:
        >>> pool = GrammarPool(tokenizer, stop_ids)
        >>> grammar = await pool.compile(lambda fit: json_grammar({"type": "object"}), param="response_format")
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], admit: Admit | None = None):
        self._admit = admit
        self._compiler = GrammarCompiler(tokenizer, stop_ids)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._admission = Admission(MAX_WAITING, noun="grammars")
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(THREADS_PER_TENANT))

    async def compile(self, spell: Spell, *, param: str, tenant: str = "") -> Grammar:
        """Compile the grammar text from `spell`; `notes` of the grammar list schema keywords without effect.

        Raises:
            RequestError: An invalid schema or grammar in field `param`.
            HttpError: Status 400 for a compilation beyond the time limit, 503 for a full queue.
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
            with suppress(RuntimeError):  # The event loop is closed after the server has stopped.
                loop.call_soon_threadsafe(turn.release)

        try:
            async with asyncio.timeout(MAX_SECONDS):
                await turn.acquire()
                job = self._threads.submit(self._compile, spell, param)
                # NOTE: a turn lasts until the thread is free, also after a timeout of the waiting request.
                job.add_done_callback(end_turn)
                return await asyncio.wrap_future(job)
        except TimeoutError:
            if job and job.running():
                message = f"{param}: a grammar that takes more than {MAX_SECONDS:g} seconds to compile."
                raise HttpError(400, message, param=param) from None
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
