"""Half-closed connections: serve clients with only the sending side closed, detect lost clients.

`nc` and some HTTP clients shut down the sending side after the request (RFC 9112, section 9.6). A client that exits
sends the same FIN. Only sending bytes tells the cases apart: a closed socket answers with a reset (RST).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

# Every response begins with PREFIX (RFC 9112, section 4): the bytes can be sent before the response exists.
PREFIX = b"HTTP/1.1 "
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 15.0
STREAM_SECONDS = 1.0


class PrefixedTransport:
    """Transport of a response; the first write omits the part of PREFIX sent early."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._num_sent = 0
        self._has_written = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send_early(self) -> None:
        """Send the next byte of PREFIX, unless the response has begun or PREFIX is sent."""
        if not self._has_written and self._num_sent < len(PREFIX):
            self._transport.write(PREFIX[self._num_sent : self._num_sent + 1])
            self._num_sent += 1

    def write(self, data: bytes) -> None:
        self._transport.write(data if self._has_written else data[self._num_sent :])
        self._has_written = True


class Probe:
    """Probe that sends a few bytes periodically during a response, and aborts the connection of a lost client.

    Args:
        transport: The connection.
        send: Sends a few meaningless bytes; returns False once the response is complete.
        is_stream: Whether `send` may be called any number of times.
    """

    def __init__(self, transport: asyncio.Transport, send: Callable[[], bool], is_stream: Callable[[], bool]):
        self._transport, self._send, self._is_stream = transport, send, is_stream
        self._loop = asyncio.get_running_loop()
        self._seconds = FIRST_SECONDS
        self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        # NOTE: after end of file asyncio no longer watches the socket for reading, so a reset is seen only here.
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        elif self._send():
            self._seconds = min(self._seconds * 2, STREAM_SECONDS if self._is_stream() else LONGEST_SECONDS)
            self._loop.call_later(self._seconds, self._look)
