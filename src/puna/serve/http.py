"""Uvicorn's server and HTTP protocol, with errors in our format and an end for streams that outlast a shutdown."""

import asyncio
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from puna.serve.engine_thread import EngineThread
from puna.serve.refusals import Refusal, encode_json

LAST_SECONDS = 2.0


class Server(uvicorn.Server):
    """Waits for running requests when told to stop; shortly before it gives up, ends them with an error."""

    def __init__(self, config: uvicorn.Config, engine: EngineThread):
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        patience = max(0.0, (self.config.timeout_graceful_shutdown or 0) - LAST_SECONDS)
        ending = asyncio.get_running_loop().call_later(patience, self._engine.refuse_and_end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


class JsonProtocol(H11Protocol):
    """HTTP/1.1 whose answer to bytes that are no HTTP is JSON."""

    def send_400_response(self, msg: str) -> None:
        body = encode_json(Refusal(400, msg, code="invalid_http").body())
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
