"""Checkpoints and endpoints of an evaluation -> completers, the one interface to local and remote models."""

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, field_validator

from puna.inference.completer.completer import Completer
from puna.inference.completer.opening import open_completer
from puna.inference.completer.settings import flat_endpoint
from puna.inference.engine.options import EngineOptions
from puna.model.kernels.device import DeviceName
from puna.pipeline.config import StageConfig


class EndpointSettings(StageConfig):
    """A model behind an OpenAI-compatible endpoint, to evaluate beside checkpoints.

    Example:
        >>> EndpointSettings(endpoint="http://localhost:8000/v1", model="large-70b").model
        'large-70b'
    """

    endpoint: str = Field(description="OpenAI-compatible address of the model, up to /v1")
    model: str = Field(min_length=1, description="Name of the model at the endpoint")
    key_variable: str = Field(default="", description="Environment variable that holds the endpoint's API key")

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("an address that begins with http:// or https://")
        return endpoint


def open_model(
    model: Path | EndpointSettings, options: EngineOptions, device: DeviceName, secret: Callable[[str], str]
) -> Completer:
    """Open a checkpoint in this process, or an endpoint.

    Args:
        model: Directory of a checkpoint, or an endpoint.
        options: Options of the engine; an endpoint uses only the number of concurrent requests, `max_batch`.
        device: Device of a checkpoint.
        secret: Returns the value of an environment variable by name, such as `Run.secret`.

    Example:
        >>> completer = open_model(Path("build/model"), DEFAULTS, "cpu", run.secret)
        >>> completer.complete([Prompt(conversation)], Sampling())[0].message.content
        'We open at nine.'
    """
    source = model
    if isinstance(source, EndpointSettings):
        source = flat_endpoint(source.endpoint, source.model, source.key_variable, options.max_batch)
    return open_completer(source, options=options, secret=secret, device=device)
