"""uvicorn's server with bounds: lets running requests finish after SIGTERM, checks connections every second."""

import asyncio
import logging
import socket

import uvicorn

from puna.serving.generation.engine_client import EngineClient
from puna.serving.protocol.http import HttpProtocol
from puna.serving.protocol.log_limit import LogLimit

LAST_SECONDS = 2.0
ANY_ADDRESS = ("0.0.0.0", "::", "")
# NOTE: asyncio accepts this many connections in a row; without free file descriptors asyncio logs an error for every
# attempt (python/cpython#151615). BACKLOG is the length of the kernel's queue.
ACCEPTS_AT_ONCE = 16
BACKLOG = 2048

logger = logging.getLogger("uvicorn.error")  # where uvicorn says that it runs


class Server(uvicorn.Server):
    """Lets running requests finish after SIGTERM; shortly before the deadline, the rest ends with an error."""

    def __init__(self, config: uvicorn.Config, engine: EngineClient):
        super().__init__(config)
        self._engine = engine
        self._log_limit = LogLimit()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address of the chat page."""
        self._log_limit.install()
        self.config.backlog = ACCEPTS_AT_ONCE
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                with socket.socket(fileno=listener.dup().detach()) as same:
                    same.listen(BACKLOG)
        for server in self.servers[:1]:
            port = server.sockets[0].getsockname()[1]
            host = "localhost" if self.config.host in ANY_ADDRESS else self.config.host
            logger.info("The chat page is at http://%s:%d/", f"[{host}]" if ":" in host else host, port)

    async def on_tick(self, counter: int) -> bool:
        """Every second, close connections of too slow clients; uvicorn calls `on_tick` every 0.1 s."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.check(now)
            self._log_limit.flush()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        patience = max(0.0, (self.config.timeout_graceful_shutdown or 0) - LAST_SECONDS)
        ending = asyncio.get_running_loop().call_later(patience, self._engine.refuse_and_end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            self._log_limit.remove()
