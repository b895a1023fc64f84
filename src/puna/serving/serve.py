"""The verb `puna serve`: a checkpoint directory behind an OpenAI-compatible HTTP API, with a chat page.

The server speaks plain HTTP; on a network, run the server behind a proxy with TLS.
"""

import math
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from puna.inference.engine.options import DEFAULTS, EngineOptions
from puna.pipeline.artifacts.licence import badges
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.errors import ConfigError
from puna.pipeline.registry.registry import follow

if TYPE_CHECKING:
    import uvicorn

    from puna.formats.tokenizer.tokenizer import Tokenizer
    from puna.serving.generation.engine_client import EngineClient
    from puna.serving.generation.messages import Facts
    from puna.serving.middleware.rules import Rules
    from puna.serving.served_model import AdapterNames, ServedModel

SHUTDOWN_SECONDS = 30
INTERRUPTED = 130  # exit status after Ctrl-C by convention of shells
# Bounds of flags, where other than 1 to 65,535.
LEAST, MOST = {"port": 0, "max_connections_per_address": 0}, {"adapter_mib": 2**31}


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Flags of the engine.

    Parameters
    ----------
    max_batch
        Largest number of requests in a batch.
    max_context
        Largest number of tokens of prompt and answer together; default: the model's limit.
    dtype
        Data type of weights and activations.
    kv_cache
        Data type of the KV cache: as computed, or int8 in half the memory.
    draft
        Speculative decoding: a smaller checkpoint with the same tokenizer, or "lookup" for n-grams of the prompt.
    adapters
        Directory of LoRA adapters, one per subdirectory; clients select an adapter as the model.
    adapter_mib
        Memory for adapters in MiB; the least recently used adapters are evicted.
    max_step_seconds
        Time limit of an engine step in seconds; beyond the limit the engine's process is restarted.
    """

    max_batch: int = 32
    max_context: int | None = None
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    kv_cache: Literal["stored", "int8"] = "stored"
    draft: str = ""
    adapters: Path | None = None
    adapter_mib: int = 4096
    max_step_seconds: int = 120


def serve(
    checkpoint: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    api_key_file: Path | None = None,
    allow_origin: Annotated[list[str] | None, Parameter(negative="")] = None,
    name: str | None = None,
    max_queue: int = 256,
    max_connections_per_address: Annotated[int, Parameter(show_default=False)] = 0,
    strict_fields: bool = False,
    engine: Annotated[EngineFlags, Parameter(name="*")] = EngineFlags(),
) -> None:
    """Serve a checkpoint through an OpenAI-compatible API, and a chat page for browsers at /.

    Parameters
    ----------
    checkpoint
        Checkpoint directory, or a registry: then the release in production.
    host
        Address to listen on; addresses other than loopback need a key.
    port
        Port to listen on; 0 for any free port.
    api_key_file
        File of API keys; a line has a key of 32 or more characters, then models (default: all). Or: PUNA_API_KEY.
    allow_origin
        Origin of web pages whose scripts may call the API (CORS), such as https://shop.example; may be repeated.
    name
        Model name for clients; default: the directory's name.
    max_queue
        Largest number of waiting and running continuations, in equal shares for keys; more get a 503.
    max_connections_per_address
        Largest number of connections from an address; default: half of all. Behind a proxy, all share one address.
    strict_fields
        Reject requests with fields without effect, instead of a warning in the header X-Puna-Warning.
    """
    _require_bounds(
        port=port,
        max_connections_per_address=max_connections_per_address,
        max_queue=max_queue,
        max_batch=engine.max_batch,
        adapter_mib=engine.adapter_mib,
        max_step_seconds=engine.max_step_seconds,
    )
    rules = _read_rules(host, port, api_key_file, allow_origin or [], max_connections_per_address)
    spec, name = engine_spec(checkpoint, engine), name or checkpoint.resolve().name
    served, unfit = open_supervised(spec, name, max_queue, engine.max_step_seconds)
    print(*filter(None, (served.notice, *unfit)), sep="\n", file=sys.stderr)
    try:
        make_server(replace(served, strict_fields=strict_fields), rules, host=host, port=port).run()
    except KeyboardInterrupt:  # Ctrl-C has stopped the server in order; the traceback would be noise.
        sys.exit(INTERRUPTED)


def _require_bounds(**flags: int) -> None:
    for name, value in flags.items():
        least, most = LEAST.get(name, 1), MOST.get(name, 65_535)
        if not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value}", expected=f"{least} to {most}")


def _read_rules(host: str, port: int, api_key_file: Path | None, origins: list[str], per_address: int) -> "Rules":
    """Check that serving is installed and the address free; return the rules."""
    try:
        import_module("llguidance")
        from puna.serving.browser.origins import parse_origins
        from puna.serving.middleware.rules import make_rules
        from puna.serving.protocol.connections import default_limits, raise_open_files
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}", hint="pip install 'puna[serve]'") from None
    raise_open_files()
    rules = make_rules(host, api_key_file, os.environ)
    _require_free(host, port)
    return replace(rules, origins=parse_origins(origins), connections=default_limits(per_address))


def _require_free(host: str, port: int) -> None:
    """Refuse an address in use, before a model is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--host {host} --port {port}: {reason}", expected="a free address of this machine") from None


def engine_spec(checkpoint: Path, flags: EngineFlags) -> dict[str, Any]:
    """Return the engine's settings as JSON for the engine's process."""
    options: dict[str, Any] = {
        "max_batch": flags.max_batch,
        "max_context": flags.max_context,
        "dtype": None if flags.dtype == "stored" else flags.dtype,
        "is_int8_cache": flags.kv_cache == "int8",
        "adapters": flags.adapters and str(flags.adapters.resolve()),
        "adapter_bytes": flags.adapter_mib << 20,
    }
    return {"checkpoint": str(follow(checkpoint).resolve()), "draft": flags.draft, "options": options}


def open_supervised(
    spec: Mapping[str, Any], name: str, max_queue: int, stall_seconds: float
) -> tuple["ServedModel", list[str]]:
    """Load a checkpoint in a separate process; return the served model and a reason for every unfit adapter.

    Only the engine's process imports torch. This process holds the connections, also during restarts of the engine.
    """
    from puna.formats.tokenizer.tokenizer import Tokenizer
    from puna.serving.generation.engine_process import AdapterFolder, EngineProcess

    engine = EngineProcess(spec, max_jobs=max_queue, stall_seconds=stall_seconds)
    facts, adapters, path = engine.open(meanwhile=_import_server), spec["options"]["adapters"], Path(spec["checkpoint"])
    folder = AdapterFolder(Path(adapters)) if adapters else None
    return _served(path, name, Tokenizer.load(path), engine, facts, folder), facts.unfit_adapters


def _import_server() -> None:
    """Import the web server while the engine's process imports torch."""
    for name in ("puna.serving.app", "puna.serving.protocol.server"):
        import_module(name)


def open_served(
    checkpoint: Path,
    *,
    name: str | None = None,
    max_queue: int = 256,
    options: EngineOptions = DEFAULTS,
    draft: str = "",
) -> "ServedModel":
    """Load a checkpoint in this process, with an engine that the application starts: for tests and programs.

    Example:
        >>> served = open_served(Path("build/student"))
        >>> app = build_app(served, make_rules("127.0.0.1", None, {}))
    """
    from puna.serving.generation.engine_thread import EngineThread
    from puna.serving.generation.loading import facts_of, open_sampler

    opened = follow(checkpoint)
    sampler = open_sampler(opened, options=options, draft=draft)
    engine, facts = EngineThread(sampler.engine, max_jobs=max_queue), facts_of(opened, sampler)
    name = name or checkpoint.resolve().name
    return _served(opened, name, sampler.tokenizer, engine, facts, sampler.engine.adapters)


def _served(
    path: Path,
    name: str,
    tokenizer: "Tokenizer",
    engine: "EngineClient",
    facts: "Facts",
    adapters: "AdapterNames | None",
) -> "ServedModel":
    from puna.formats.chat.format import ChatFormat
    from puna.serving.served_model import ServedModel

    return ServedModel(
        name=name,
        tokenizer=tokenizer,
        format=ChatFormat(tokenizer),
        engine=engine,
        max_context=facts.max_context,
        stop_ids=facts.stop_ids,
        defaults=facts.defaults,
        notice=", ".join(badges(licences_of(path))),
        adapters=adapters,
    )


def make_server(served: "ServedModel", rules: "Rules", *, host: str, port: int) -> "uvicorn.Server":
    """Build the HTTP server."""
    from puna.serving.app import build_app
    from puna.serving.browser.origins import share_with
    from puna.serving.protocol.connections import Connections, default_limits
    from puna.serving.protocol.http import ServerConfig
    from puna.serving.protocol.server import Server

    limits = rules.connections or default_limits()
    config = ServerConfig(
        share_with(build_app(served, rules), rules.origins),
        Connections(limits),
        host=host,
        port=port,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config, served.engine)
