"""A checkpoint or an endpoint -> the completer for the source."""

from collections.abc import Callable
from pathlib import Path

from puna.inference.completer.completer import Completer
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.http import EndpointClient
from puna.inference.completer.local import LocalCompleter
from puna.inference.completer.settings import MAX_CONCURRENCY, EndpointConfig
from puna.inference.engine.options import EngineOptions
from puna.model.kernels.device import DeviceName

TIMEOUT = 600.0


def open_completer(
    checkpoint: Path | None,
    endpoint: str,
    model: str,
    key_variable: str,
    *,
    secret: Callable[[str], str],
    options: EngineOptions,
    device: DeviceName = "auto",
) -> Completer:
    """Open the model that flat settings of a stage name; `require_one_source` has checked the settings.

    Args:
        checkpoint: Checkpoint to run in this process, or None.
        endpoint: Address of an endpoint up to /v1, without a checkpoint.
        model: Name of the model at the endpoint.
        key_variable: Environment variable with the API key, or "".
        secret: Returns the value of an environment variable.
        options: Engine options of a checkpoint; `max_batch` is also the number of requests in flight.
        device: Device of a checkpoint.

    Example:
        >>> open_completer(Path("build/model"), "", "", "", secret=run.secret, options=EngineOptions())
    """
    if checkpoint is not None:
        return LocalCompleter.open(checkpoint, options, device)
    config = EndpointConfig(
        url=endpoint,
        model=model,
        key_variable=key_variable,
        concurrency=min(options.max_batch, MAX_CONCURRENCY),
        timeout=TIMEOUT,
    )
    return EndpointCompleter(EndpointClient(config, secret(key_variable) if key_variable else ""))
