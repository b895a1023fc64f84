"""Commands to the engine and reports from the engine, as JSON frames between two processes.

A frame is a JSON object behind the length in bytes (4 bytes, big-endian). Nothing is pickled.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO

from puna.inference.engine.outputs import Chunk, TokenLogprob, Usage
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline import errors
from puna.pipeline.errors import PunaError, RequestError

# A frame holds the prompts of a request or the chunks of a step; scored prompts make the largest frames.
MAX_FRAME_BYTES = 512 << 20
LENGTH = struct.Struct(">I")
DEFAULTS = SamplingParams()
# Errors that cross the process boundary, by name and with their fields. Any other error arrives without details.
ERROR_TYPES: dict[str, type[PunaError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PunaError)
}


@dataclass(frozen=True, slots=True)
class Job:
    """A continuation: the server's id, prompt and sampling parameters."""

    id: int
    prompt: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit all jobs or none; the report with `ticket` in `settled` has the decision."""

    ticket: int
    jobs: list[Job]
    tenant: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Abort running jobs; unknown ids have no effect."""

    jobs: list[int]


@dataclass(frozen=True, slots=True)
class EndAll:
    """Abort every job."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Stop the engine."""


Command = Submit | Abort | EndAll | Leave


@dataclass(frozen=True, slots=True)
class Report:
    """Results of the engine: chunks of a step by job, and tickets with None (accepted) or an error.

    Example:
        >>> report_to_json(Report(chunks=[(7, Chunk(ids=(72,), text="H"))]))
        {'chunks': [[7, {'ids': (72,), 'text': 'H'}]]}
    """

    chunks: Sequence[tuple[int, Chunk]] = ()
    settled: Sequence[tuple[int, Exception | None]] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a loaded checkpoint for the server's process."""

    max_context: int
    stop_ids: tuple[int, ...]
    defaults: SamplingParams
    unfit_adapters: list[str] = field(default_factory=list)


def frame(message: Mapping[str, Any]) -> bytes:
    """Encode a message; ValueError for more than MAX_FRAME_BYTES."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body):,} bytes; at most {MAX_FRAME_BYTES:,}")
    return LENGTH.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """Return the number of bytes behind a header; ValueError for more than MAX_FRAME_BYTES."""
    (length,) = LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length:,} bytes; at most {MAX_FRAME_BYTES:,}")
    return length


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """Read the next message; None at the end of the stream. ValueError as in `body_length`."""
    header = stream.read(LENGTH.size)
    return json.loads(stream.read(body_length(header))) if len(header) == LENGTH.size else None


def command_to_json(command: Command) -> dict[str, Any]:
    """Encode a command; continuations with the same prompt or grammar share a copy."""
    if isinstance(command, Submit):
        prompts = {id(job.prompt): job.prompt for job in command.jobs}
        grammars = {id(job.params.grammar): job.params.grammar for job in command.jobs if job.params.grammar}
        prompt_places, grammar_places = ({key: at for at, key in enumerate(shared)} for shared in (prompts, grammars))
        return {
            "ticket": command.ticket,
            "tenant": command.tenant,
            "adapter": command.adapter,
            "prompts": list(prompts.values()),
            "grammars": [[grammar.text, grammar.param, grammar.begun] for grammar in grammars.values()],
            "jobs": [
                [
                    job.id,
                    prompt_places[id(job.prompt)],
                    grammar_places.get(id(job.params.grammar)),
                    params_to_json(job.params),
                ]
                for job in command.jobs
            ],
        }
    if isinstance(command, Abort):
        return {"abort": command.jobs}
    return {"end": isinstance(command, Leave)}


def params_to_json(params: SamplingParams) -> dict[str, Any]:
    """Encode the sampling parameters different from the defaults, without the grammar."""
    names = [field.name for field in fields(params) if field.name != "grammar"]
    return {name: value for name in names if (value := getattr(params, name)) != getattr(DEFAULTS, name)}


def params_from_json(values: Mapping[str, Any], **more: Any) -> SamplingParams:
    """Decode sampling parameters; lists become tuples."""
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if biases := frozen.get("logit_bias"):
        frozen["logit_bias"] = tuple((token, bias) for token, bias in biases)
    return SamplingParams(**frozen, **more)


def report_to_json(report: Report) -> dict[str, Any]:
    """Encode a report."""
    message: dict[str, Any] = {}
    if report.chunks:
        message["chunks"] = [[job, _chunk_to_json(chunk)] for job, chunk in report.chunks]
    if report.settled:
        message["settled"] = [[ticket, error and error_to_json(error)] for ticket, error in report.settled]
    if report.usage:
        message["usage"] = {entry.name: getattr(report.usage, entry.name) for entry in fields(report.usage)}
    return message


def report_from_json(message: Mapping[str, Any]) -> Report:
    """Decode a report."""
    return Report(
        [(job, _chunk_from_json(chunk)) for job, chunk in message.get("chunks", ())],
        [(ticket, error and error_from_json(error)) for ticket, error in message.get("settled", ())],
        Usage(**message["usage"]) if "usage" in message else None,
    )


def error_to_json(error: Exception) -> dict[str, Any]:
    """Encode an error: a PunaError with all parts, any other error without details.

    A subclass from another module travels as its nearest class of the error tree.
    """
    if not isinstance(error, PunaError):
        return {"type": None}
    kind = next(kind for kind in type(error).__mro__ if ERROR_TYPES.get(kind.__name__) is kind)
    parts = {"given": error.given, "expected": error.expected, "hint": error.hint}
    param = {"param": error.param} if isinstance(error, RequestError) else {}
    return {"type": kind.__name__} | parts | param


def error_from_json(message: Mapping[str, Any]) -> Exception:
    """Decode an error; RuntimeError for an error without details."""
    parts = dict(message)
    kind = ERROR_TYPES.get(parts.pop("type") or "")
    if kind is None:
        return RuntimeError("the engine failed; the log has the reason")
    return kind(parts.pop("given"), **parts)


def facts_to_json(facts: Facts) -> dict[str, Any]:
    """Encode facts."""
    return asdict(facts) | {"defaults": params_to_json(facts.defaults)}


def facts_from_json(message: Mapping[str, Any]) -> Facts:
    """Decode facts."""
    values = dict(message)
    values["stop_ids"], values["defaults"] = tuple(values["stop_ids"]), params_from_json(values["defaults"])
    return Facts(**values)


def _chunk_to_json(chunk: Chunk) -> dict[str, Any]:
    message: dict[str, Any] = {"ids": chunk.ids, "text": chunk.text}
    if chunk.logprobs:
        message["logprobs"] = [_logprob_to_json(entry) for entry in chunk.logprobs]
    if chunk.finish_reason:
        message["finish_reason"] = chunk.finish_reason
    if chunk.prompt_logprobs:
        message["prompt_logprobs"] = [entry and _logprob_to_json(entry) for entry in chunk.prompt_logprobs]
    if chunk.error:
        message["error"] = error_to_json(chunk.error)
    return message


def _chunk_from_json(message: Mapping[str, Any]) -> Chunk:
    values = dict(message)
    for name in ("logprobs", "prompt_logprobs"):
        values[name] = tuple(entry and _logprob_from_json(entry) for entry in values.get(name, ()))
    if "error" in values:
        values["error"] = error_from_json(values["error"])
    values["ids"] = tuple(values["ids"])
    return Chunk(**values)


def _logprob_to_json(entry: TokenLogprob) -> list[Any]:
    return [entry.id, entry.logprob, entry.top]


def _logprob_from_json(message: list[Any]) -> TokenLogprob:
    token, logprob, top = message
    return TokenLogprob(token, logprob, tuple((other, value) for other, value in top))
