"""A checkpoint directory -> a server with an OpenAI-compatible API and a chat page: the verb `puna serve`.

Speaks plain HTTP; beyond this machine put a proxy with TLS before it.
"""

import os
import socket
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from puna.engine.options import DEFAULTS, EngineOptions
from puna.errors import ConfigError

if TYPE_CHECKING:
    import torch
    import uvicorn

    from puna.serve.middleware.gate import Rules
    from puna.serve.served import Served

SHUTDOWN_SECONDS = 30
OPENAIS_TEMPERATURE = 1.0


def serve(
    checkpoint: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    api_key_file: Path | None = None,
    allow_origin: Annotated[list[str] | None, Parameter(negative="")] = None,
    name: str | None = None,
    max_batch: int = 32,
    max_queue: int = 256,
    max_context: int | None = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    kv_cache: Literal["stored", "int8"] = "stored",
    draft: str = "",
    adapters: Path | None = None,
    adapter_mib: int = 4096,
    strict_fields: bool = False,
) -> None:
    """Serve a checkpoint through an OpenAI-compatible API, and a chat page for browsers at /.

    Parameters
    ----------
    checkpoint
        The directory, or one that releases were promoted into: then the release in use.
    host
        The address to listen on; beyond this machine only with a key.
    port
        The port to listen on; 0 takes a free one.
    api_key_file
        A file with one key of 32 characters or more a line, and its models if not all; PUNA_API_KEY holds one too.
    allow_origin
        Origin of web pages whose scripts may call the API (CORS), such as https://shop.example; may be repeated.
    name
        What clients call the model, instead of the directory's name.
    max_batch
        How many requests are generated side by side.
    max_queue
        How many are held at once, the running ones included; more are answered with 503.
    max_context
        The longest prompt and answer together, if less than the model can do.
    dtype
        The type of weights and activations.
    kv_cache
        What keys and values are kept in: as they are computed, or as int8, half as large.
    draft
        A smaller checkpoint of the same tokenizer that guesses tokens ahead, or "lookup" to guess from the prompt.
    adapters
        A directory whose subdirectories are adapters of the model; clients name one as the model.
    adapter_mib
        How many MiB adapters may take in memory; what is not in use makes room for what is asked for.
    strict_fields
        Refuse fields that have no effect, instead of accepting them with the header X-Puna-Warning.
    """
    _require_bounds(port=port, max_batch=max_batch, max_queue=max_queue, adapter_mib=adapter_mib)
    rules = _read_rules(host, port, api_key_file, allow_origin or [])
    options = EngineOptions(max_batch, max_context, None, *_types_of(dtype, kv_cache), adapters, adapter_mib << 20)
    served = open_served(checkpoint, name=name, max_queue=max_queue, options=options, draft=draft)
    print(*filter(None, (served.notice, *served.unfit_adapters())), sep="\n", file=sys.stderr)
    make_server(replace(served, strict_fields=strict_fields), rules, host=host, port=port).run()


def _require_bounds(**flags: int) -> None:
    for name, value in flags.items():
        least, most = 0 if name == "port" else 1, 2**31 if name == "adapter_mib" else 65_535
        if not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value}", expected=f"{least} to {most}")


def _read_rules(host: str, port: int, api_key_file: Path | None, origins: list[str]) -> "Rules":
    """Collect the gate's rules for an address that is free; before all else, check that serving is installed."""
    try:
        import_module("llguidance")
        from puna.serve.browser.origins import parse_origins
        from puna.serve.middleware.gate import make_rules
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}", hint="pip install 'puna[serve]'") from None
    rules = replace(make_rules(host, api_key_file, os.environ), origins=parse_origins(origins))
    _require_free(host, port)
    return rules


def _require_free(host: str, port: int) -> None:
    """Refuse an address that is taken before a model is loaded for it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--host {host} --port {port}: {reason}", expected="an address that is free here") from None


def _types_of(dtype: str, kv_cache: str) -> "tuple[torch.dtype | None, bool]":
    """Return the type of the weights, and whether the cache is rounded to int8."""
    import torch

    return None if dtype == "stored" else getattr(torch, dtype), kv_cache == "int8"


def open_served(
    checkpoint: Path,
    *,
    name: str | None = None,
    max_queue: int = 256,
    options: EngineOptions = DEFAULTS,
    draft: str = "",
) -> "Served":
    """Load a checkpoint and put an engine, not started yet, behind it."""
    from puna.artifact import verifying
    from puna.chat.format import ChatFormat
    from puna.checkpoint.checkpoint import Checkpoint
    from puna.engine.local import LocalSampler, sampling_defaults
    from puna.engine.sampler import SamplingParams
    from puna.licence import badges
    from puna.lineage import licences_of
    from puna.serve.generation.engine_thread import EngineThread
    from puna.serve.served import Served
    from puna.shelf.shelf import follow

    opened = follow(checkpoint)
    readable = Checkpoint.open(opened).config.max_context
    if options.max_context is not None and not 2 <= options.max_context <= readable:
        raise ConfigError(f"--max-context {options.max_context}", expected=f"2 to {readable}, which the model can read")
    with verifying(opened):
        sampler = LocalSampler.open(opened, options=options, draft=draft)
    chat_format = ChatFormat(sampler.tokenizer)
    stop_ids = (*Checkpoint.open(opened).stop_ids, *chat_format.stop_ids)
    return Served(
        name=name or checkpoint.resolve().name,
        tokenizer=sampler.tokenizer,
        format=chat_format,
        engine=EngineThread(sampler.engine, max_jobs=max_queue),
        max_context=sampler.max_context,
        stop_ids=tuple(dict.fromkeys(stop_ids)),
        defaults=sampling_defaults(opened, SamplingParams(temperature=OPENAIS_TEMPERATURE)),
        notice=", ".join(badges(licences_of(opened))),
        adapters=sampler.engine.adapters,
    )


def make_server(served: "Served", rules: "Rules", *, host: str, port: int) -> "uvicorn.Server":
    """Build the HTTP server."""
    import uvicorn

    from puna.serve.app import JsonProtocol, Server, build_app
    from puna.serve.browser.origins import share_with

    config = uvicorn.Config(
        share_with(build_app(served, rules), rules.origins),
        host=host,
        port=port,
        http=JsonProtocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config, served.engine)
