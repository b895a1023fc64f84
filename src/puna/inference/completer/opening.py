"""A checkpoint or an endpoint -> a completer for prompts."""

from collections.abc import Callable
from pathlib import Path

from puna.inference.completer.completer import Completer
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.http import EndpointClient
from puna.inference.completer.local import LocalCompleter
from puna.inference.completer.settings import EndpointConfig
from puna.inference.engine.options import EngineOptions
from puna.model.kernels.device import DeviceName


def open_completer(
    source: Path | EndpointConfig,
    *,
    options: EngineOptions,
    secret: Callable[[str], str],
    device: DeviceName = "auto",
) -> Completer:
    """Open a checkpoint in-process, or an endpoint.

    Args:
        source: Directory of a checkpoint or adapter, or an endpoint.
        options: Engine options of a checkpoint.
        secret: Returns the value of an environment variable, for example `Run.secret`.
        device: Device of a checkpoint.

    Example:
        >>> open_completer(Path("build/model"), options=EngineOptions(), secret=run.secret)
    """
    if isinstance(source, Path):
        return LocalCompleter.open(source, options, device)
    return EndpointCompleter(EndpointClient.open(source, secret))
