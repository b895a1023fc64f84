"""Limit on concurrent requests: HttpError (503) beyond a tenant's share; routes without keys have no limit."""

from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serving.admission.admission import Admission, RefusalPace
from puna.serving.middleware.keys import OPEN_PATHS


class ConcurrencyMiddleware:
    """Middleware that counts running requests by tenant: every key has a separate share."""

    def __init__(self, app: ASGIApp, max_requests: int):
        self.app = app
        self._admission, self._pace = Admission(max_requests, noun="requests"), RefusalPace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            return await self.app(scope, receive, send)
        tenant = scope["state"]["tenant"].name
        await self._pace.admit(tenant, partial(self._admission.take, tenant, 1))
        try:
            await self.app(scope, receive, send)
        finally:
            self._admission.release(tenant)
