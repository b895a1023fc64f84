#!/usr/bin/env bash
# Surprise: where a process has no open files left, asyncio's server does not stop accepting: it fails and logs as many times
#   as its backlog is long, for each event of the listening socket, and plans as many new starts. With uvicorn's backlog of
#   2,048 one client with idle connections writes hundreds of megabytes of log (Python 3.11; _accept_connection has no return).
# Why it matters here: 1,100 connections that sent nothing, with 1,024 open files, made a log of 490 MB, and /health timed out.
#   Puna accepts 16 connections at once, stays below the limit of open files, and limits equal lines of the log.
# Source: CPython 3.11, Lib/asyncio/selector_events.py, BaseSelectorEventLoop._accept_connection
set -euo pipefail
python3 - <<'PYTHON'
import asyncio
import resource
import socket
import sys

BACKLOG, NUM_FILES = 2048, 64
resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_FILES, NUM_FILES))


async def main() -> int:
    lines = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: lines.append(context["message"]))
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=BACKLOG)
    port = server.sockets[0].getsockname()[1]
    clients = []
    try:
        while True:
            clients.append(socket.create_connection(("127.0.0.1", port)))
            await asyncio.sleep(0)
    except OSError:
        await asyncio.sleep(0.1)
    return len(lines)


number = asyncio.run(main())
print(f"Python {sys.version.split()[0]}: {number} lines in 0.1 s of a server with {NUM_FILES} open files")
assert number >= 1000, "the behaviour is gone"
PYTHON
