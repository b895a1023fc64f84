"""A checkpoint directory -> a server with an OpenAI-compatible API: the verb `puna serve`.

Speaks plain HTTP; beyond this machine put a proxy with TLS before it.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from puna.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import uvicorn

    from puna.serve.gate import Rules
    from puna.serve.served import Served

SHUTDOWN_SECONDS = 30


def serve(
    checkpoint: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    api_key_file: Path | None = None,
    name: str | None = None,
    max_batch: int = 32,
    max_queue: int = 256,
    max_context: int | None = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
) -> None:
    """Serve a checkpoint through an OpenAI-compatible API.

    Parameters
    ----------
    checkpoint
        The directory.
    host
        The address to listen on; beyond this machine only with a key.
    port
        The port to listen on; 0 takes a free one.
    api_key_file
        A file with one key a line, each of 32 characters or more. The variable PUNA_API_KEY holds one too.
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
    """
    bounds = (("port", port, 0), ("max-batch", max_batch, 1), ("max-queue", max_queue, 1))
    for flag, value, least in bounds:
        if not least <= value <= 65_535:
            raise ConfigError(f"--{flag} {value}", expected=f"{least} to 65535")
    if max_context is not None and max_context < 2:
        raise ConfigError(f"--max-context {max_context}", expected="2 or more tokens")
    try:
        from puna.serve.gate import make_rules
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}", hint="pip install 'puna[serve]'") from None
    rules = make_rules(host, api_key_file, os.environ)
    served = open_served(
        checkpoint, name=name, max_batch=max_batch, max_queue=max_queue, max_context=max_context, dtype=dtype
    )
    if served.notice:
        print(served.notice, file=sys.stderr)
    make_server(served, rules, host=host, port=port).run()


def open_served(
    checkpoint: Path,
    *,
    name: str | None = None,
    max_batch: int = 32,
    max_queue: int = 256,
    max_context: int | None = None,
    dtype: str = "stored",
) -> "Served":
    """Load a checkpoint and put an engine, not started yet, behind it."""
    import torch

    from puna.artifact import verifying
    from puna.chat.format import ChatFormat
    from puna.checkpoint.checkpoint import Checkpoint
    from puna.engine.local import LocalSampler
    from puna.licence import badges
    from puna.lineage import licences_of
    from puna.serve.engine_thread import EngineThread
    from puna.serve.served import Served

    with verifying(checkpoint):
        sampler = LocalSampler.open(
            checkpoint,
            max_batch=max_batch,
            max_context=max_context,
            dtype=None if dtype == "stored" else getattr(torch, dtype),
        )
    chat_format = ChatFormat(sampler.tokenizer)
    temperature, top_p = _sampling_defaults(checkpoint)
    stop_ids = (*Checkpoint.open(checkpoint).stop_ids, *chat_format.stop_ids)
    return Served(
        name=name or checkpoint.resolve().name,
        tokenizer=sampler.tokenizer,
        format=chat_format,
        engine=EngineThread(sampler.engine, max_jobs=max_queue),
        max_context=sampler.max_context,
        stop_ids=tuple(dict.fromkeys(stop_ids)),
        temperature=temperature,
        top_p=top_p,
        notice=", ".join(badges(licences_of(checkpoint))),
    )


def _sampling_defaults(checkpoint: Path) -> tuple[float, float]:
    """Read temperature and top_p from generation_config.json, 0 for greedy; what it does not say is OpenAI's 1."""
    from puna.checkpoint.directory import find_file, read_json

    path = find_file(checkpoint, "generation_config.json")
    config = read_json(path) if path else {}
    values: list[float] = []
    for name, most in (("temperature", 2.0), ("top_p", 1.0)):
        value = config.get(name)
        value = 1.0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise CheckpointError(f"{path}: {name} = {value!r}", expected=f"a number from 0 to {most:g}")
        values.append(float(value))
    return 0.0 if config.get("do_sample") is False else values[0], values[1]


def make_server(served: "Served", rules: "Rules", *, host: str, port: int) -> "uvicorn.Server":
    """Build the HTTP server."""
    import uvicorn

    from puna.serve.app import JsonProtocol, Server, build_app

    config = uvicorn.Config(
        build_app(served, rules),
        host=host,
        port=port,
        http=JsonProtocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config, served.engine)
