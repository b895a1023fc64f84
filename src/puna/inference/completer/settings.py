"""Settings of an OpenAI-compatible endpoint, shared by every stage with an endpoint."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from puna.pipeline.config import StageConfig

MAX_CONCURRENCY = 1024
FLAT_TIMEOUT = 600.0


class EndpointConfig(StageConfig):
    """An OpenAI-compatible server and its limits.

    Example: the table `[label.endpoint]` of a recipe.

        url = "http://127.0.0.1:8000/v1"
        model = "llama-70b"
    """

    url: str = Field(description="Address of the OpenAI-compatible server up to /v1, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="Name of the model at the server")
    concurrency: int = Field(
        default=8, ge=1, le=MAX_CONCURRENCY, description="Number of requests in flight at the same time"
    )
    timeout: float = Field(
        default=300.0, gt=0, description="Time limit of one request in seconds, after which the request is retried"
    )
    key_variable: str = Field(
        default="", description="Environment variable that holds the API key; empty for servers without keys"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        _require_address(url)
        return url.rstrip("/")


def flat_endpoint(url: str, model: str, key_variable: str, max_batch: int) -> EndpointConfig:
    """Return the endpoint for the flat settings of a stage: address, model, key and batch size."""
    limits = {"concurrency": min(max_batch, MAX_CONCURRENCY), "timeout": FLAT_TIMEOUT}
    return EndpointConfig(url=url, model=model, key_variable=key_variable, **limits)


def require_one_source(checkpoint: Path | None, endpoint: str, model: str, *, spelling: str = "'{}'") -> None:
    """Require either a checkpoint or an endpoint with a model name, as flat settings of a stage.

    Args:
        checkpoint: Checkpoint to run in-process.
        endpoint: Address of the endpoint, up to /v1.
        model: Name of the model at the endpoint.
        spelling: Spelling of a setting's name in errors; {} stands for "checkpoint", "endpoint" or "model".

    Raises:
        ValueError: Two sources or no source are set, the model's name is missing, or the address is
            no HTTP address without a key.
    """
    names = [spelling.format(name) for name in ("checkpoint", "endpoint", "model")]
    if (checkpoint is None) == (not endpoint):
        raise ValueError(f"exactly one of {names[0]} and {names[1]}")
    if bool(endpoint) != bool(model):
        raise ValueError(f"{names[2]} beside {names[1]}, and only there")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"{names[1]} that begins with http:// or https://")
    if endpoint:
        _require_address(endpoint)


def _require_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("http://HOST/v1 or https://HOST/v1, without a key in the address")
