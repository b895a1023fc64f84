"""Bytes of a connection -> requests for the application, within limits of time, size and number.

Invalid HTTP gets a JSON error. Half-closed connections are served; connections of stalled clients are closed. uvicorn
and h11 parse the requests.
"""

import asyncio
import socket
import sys
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from puna.serving.errors import HttpError, encode_json, overloaded
from puna.serving.protocol.connections import Connections, address_key
from puna.serving.protocol.half_closed import PrefixedTransport, Probe

LINGER_SECONDS = 2.0
# Bound on the event loop's work per read: 16 KiB may hold 2,700 chunks of one byte.
READ_BYTES = 16 * 1024
MAX_FRAMING_BYTES = 64 * 1024
MAX_PIPELINED_BYTES = 64 * 1024
# Bound on the kernel's buffer for a client that does not read; the kernel's default can be megabytes.
SEND_BUFFER_BYTES = 256 * 1024
PROBE_EVENT = b":\n\n"  # a comment of server-sent events


class ServerConfig(uvicorn.Config):
    """uvicorn's settings with the registry of connections, for every HttpProtocol."""

    def __init__(self, app: Any, connections: Connections, **settings: Any):
        super().__init__(app, http=HttpProtocol, **settings)
        self.connections = connections
        self.read_buffer = bytearray(READ_BYTES)  # shared by all connections: every read is copied at once


class HttpProtocol(H11Protocol, asyncio.BufferedProtocol):
    """A connection; BufferedProtocol bounds the size of a read."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self.address = ""
        own = cast(ServerConfig, config)
        self._registry, self._buffer = own.connections, own.read_buffer
        # Start of the wait for request headers; None between requests and during a request.
        self._head_since: float | None = self.loop.time()
        self._num_framing = 0
        self._unsent, self._unsent_since = 0, self.loop.time()
        self._is_half_closed = self._is_refused = False

    @property
    def _is_waiting(self) -> bool:
        """Whether the server waits for a request or the rest of a request."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if connected := transport.get_extra_info("socket"):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.address = address_key(self.client[0]) if self.client else ""
        if not self._registry.admit(self):
            self._answer(overloaded("The server has too many connections."))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.forget(self)
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        cycle = self.cycle
        if self._head_since is None and (cycle is None or cycle.response_complete):
            self._head_since = self.loop.time()
        size = len(cycle.body) if cycle and cycle.more_body else None
        super().data_received(data)
        if size is not None and self.cycle is cycle and not self._is_refused:
            self._num_framing += len(data) - (len(cycle.body) - size)
            if self._num_framing > MAX_FRAMING_BYTES and cycle.more_body:
                self.refuse(HttpError(400, "The body's chunks are too small.", code="invalid_http"))
        elif cycle is not self.cycle:
            self._num_framing = 0
        self._note_state()

    def handle_events(self) -> None:
        """Handle received bytes; read on after a complete request, since only a read detects a disconnect."""
        super().handle_events()
        if self.flow.read_paused and self.cycle and not self.cycle.more_body:
            waiting, _ = self.conn.trailing_data
            if len(waiting) < MAX_PIPELINED_BYTES:
                self.flow.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection until the response is sent; answer an incomplete request with a 400."""
        if self._is_waiting or self._is_refused:
            is_half_body = self.cycle is not None and not self.cycle.response_complete
            if not self._is_refused and (is_half_body or self.conn.trailing_data[0]):
                self.refuse(HttpError(400, "The request ends before it is complete.", code="invalid_http"))
            return False
        self._is_half_closed = True
        transport = PrefixedTransport(self.transport)
        self.cycle.transport = cast(asyncio.Transport, transport)

        def send() -> bool:
            if self.cycle.response_complete:
                return False
            if not self.cycle.response_started:
                transport.send_early()
            elif self._is_event_stream and not self.flow.write_paused:
                self.transport.write(self.conn.send(h11.Data(data=PROBE_EVENT)) or b"")
            return True

        Probe(self.transport, send, lambda: self.cycle.response_started and self._is_event_stream)
        return True

    @property
    def _is_event_stream(self) -> bool:
        return bool(self.scope.get("state", {}).get("is_event_stream"))

    def on_response_complete(self) -> None:
        self._head_since = self.loop.time() if self.conn.trailing_data[0] else None
        super().on_response_complete()
        self._note_state()
        if self._is_half_closed and self._is_waiting and not self.transport.is_closing():
            self.transport.close()

    def _note_state(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            self._head_since = None
        if self in self.connections:
            self._registry.set_waiting(self, is_waiting=self._is_waiting)

    def check(self, now: float) -> None:
        """Close the connection of a slow client; called about once a second."""
        limits = self._registry.limits
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        if unsent and now - self._unsent_since > limits.stall_seconds:
            self.transport.abort()
        elif self._head_since is not None and now - self._head_since > limits.head_seconds:
            has_begun = bool(self.conn.trailing_data[0])
            if has_begun and not self._is_refused:
                message = f"The request's headers took longer than {limits.head_seconds:g} seconds."
                self.refuse(HttpError(408, message, code="request_timeout"))
            else:
                self.transport.abort()

    def give_way(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP, or endless headers; uvicorn calls this while it handles the error."""
        error = sys.exception()
        is_too_long = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        message = "The request's headers are too long." if is_too_long else msg
        self.refuse(HttpError(431 if is_too_long else 400, message, code="invalid_http"))

    def refuse(self, refusal: HttpError) -> None:
        """Send an error unless a response has begun; read no more and close the connection."""
        self._is_refused = True
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state is h11.SEND_BODY:
            return self.transport.abort()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(refusal)
        # NOTE: closing the socket while the client sends can lose the response.
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        return None

    def _answer(self, refusal: HttpError) -> None:
        body = encode_json(refusal.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}" for name, value in (headers | (refusal.headers or {})).items()]
        head = "\r\n".join([f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}", *lines, "", ""])
        self.transport.write(head.encode("ascii") + body)

    def shutdown(self) -> None:
        """Close at the server's shutdown, after the running response."""
        with suppress(h11.LocalProtocolError):
            return super().shutdown()
        return self.transport.abort()
