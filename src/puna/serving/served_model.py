"""The served model: checkpoint facts, chat format, engine, and the worker threads shared by all routes.

Reads and writes no JSON: the routes do.
"""

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.sampling.params import SamplingParams
from puna.serving.admission.workers import Workers
from puna.serving.errors import HttpError
from puna.serving.generation.batch import Batch
from puna.serving.generation.engine_client import EngineClient
from puna.serving.generation.grammar_pool import GrammarPool
from puna.serving.middleware.keys import Tenant
from puna.serving.responses.logprob_budget import LogprobBudget, LogprobReservation


class AdapterNames(Protocol):
    """LoRA adapters by name: the engine's loaded adapters, or the adapter folder alone (`AdapterFolder`)."""

    def names(self) -> list[str]: ...

    def find(self, name: str) -> object | None: ...


@dataclass(frozen=True)
class ServedModel:
    """A checkpoint with an engine, shared by all routes. Example: see `puna.serving.serve.open_served`.

    Attributes:
        name: Model name for clients; every adapter is served under the adapter's own name.
        defaults: Sampling parameters for requests without parameters.
        notice: Text that the model's licences require to be shown.
        strict_fields: Whether request fields without effect are errors rather than warnings.
    """

    name: str
    tokenizer: Tokenizer
    format: ChatFormat
    engine: EngineClient
    max_context: int
    stop_ids: tuple[int, ...]
    defaults: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    notice: str = ""
    strict_fields: bool = False
    adapters: AdapterNames | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def grammars(self) -> GrammarPool:
        """Compiler threads for `response_format` and tool schemas."""
        return GrammarPool(self.tokenizer, self.stop_ids, self.engine.admit)

    @cached_property
    def read_workers(self) -> Workers:
        """Threads that parse and validate request bodies."""
        return Workers()

    @cached_property
    def prompt_workers(self) -> Workers:
        """Threads that render and tokenize prompts."""
        return Workers()

    @cached_property
    def logprob_budget(self) -> LogprobBudget:
        """Bound on the log-probabilities of all responses together."""
        return LogprobBudget()

    def names(self, tenant: Tenant) -> list[str]:
        """Return the model names open to a tenant: checkpoint and adapters, or the models of the tenant's key."""
        adapters = self.adapters.names() if self.adapters else []
        names = [self.name, *(name for name in adapters if name != self.name)]
        return [name for name in names if tenant.models is None or name in tenant.models]

    def resolve_adapter(self, name: str, tenant: Tenant) -> str:
        """Return the adapter behind a model name; "" for the checkpoint.

        Raises:
            HttpError: Status 404 for an unknown model, and alike for a model that the tenant's key excludes: the
                response does not reveal that the model exists.
        """
        is_open = tenant.models is None or name in tenant.models
        if is_open and name == self.name:
            return ""
        if is_open and self.adapters and self.adapters.find(name):
            return name
        known = "GET /v1/models lists yours" if self.adapters else f"the served model is {self.name!r}"
        raise HttpError(404, f"There is no model {name!a} here; {known}.", param="model", code="model_not_found")

    async def submit(
        self, requests: list[tuple[list[int], SamplingParams]], num_logprobs: int, *, tenant: str, adapter: str
    ) -> tuple[Batch, LogprobReservation]:
        """Reserve budget for the response's log-probabilities and submit prompts with parameters to the engine."""
        reservation = self.logprob_budget.reserve(num_logprobs)
        try:
            return await self.engine.submit(requests, tenant=tenant, adapter=adapter), reservation
        except BaseException:
            reservation.close()
            raise
