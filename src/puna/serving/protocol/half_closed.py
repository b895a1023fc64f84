"""A client that has closed its sending side -> still served, and noticed when it is gone for good.

`nc` and some HTTP clients shut their sending side down after the request (RFC 9112, section 9.6). A client that is gone
sends the very same FIN. The two differ only once bytes are sent: a closed socket answers them with a reset (RST).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

# Every answer begins with these bytes (RFC 9112, section 4), so they can be sent before there is an answer.
PREFIX = b"HTTP/1.1 "
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 15.0
STREAM_SECONDS = 1.0


class PrefixedTransport:
    """A transport of an answer that may have begun: the first write leaves out the sent part of PREFIX."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._num_sent = 0
        self._has_written = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send_early(self) -> None:
        """Send the next byte of PREFIX, if one is left and the answer has not begun."""
        if not self._has_written and self._num_sent < len(PREFIX):
            self._transport.write(PREFIX[self._num_sent : self._num_sent + 1])
            self._num_sent += 1

    def write(self, data: bytes) -> None:
        self._transport.write(data if self._has_written else data[self._num_sent :])
        self._has_written = True


class Probe:
    """Sends a little from time to time until the answer is complete; aborts the connection once the client is gone.

    Args:
        transport: The connection.
        send: Sends a few bytes that mean nothing; returns False once the answer is complete.
        is_stream: Tells whether `send` may be called any number of times.
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
