"""Network access of the process -> errors, except for connections within the machine."""

import ipaddress
import os
import sys
from typing import Any

from puna.pipeline.errors import ConfigError

ADDRESSING = ("socket.connect", "socket.sendto", "socket.sendmsg")
NAMING = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def enforce() -> None:
    """Block the network for the process irrevocably, and switch libraries to offline mode.

    NOTE: the block covers Python's sockets, used by all dependencies; native code is not covered.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ADDRESSING:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # a Unix socket's address is its path
    elif event in NAMING:
        host = arguments[0]
    elif event == "socket.getnameinfo":
        host = arguments[0][0]
    else:
        return
    if host and not _is_here(host):
        raise ConfigError(f"--offline, but something asks for {host!a:.100}", hint="Fetch what is missing without it")


def _is_here(host: str | bytes) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
