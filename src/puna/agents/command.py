"""The flags of `puna chat` -> the first messages of a conversation and the sampling parameters.

Imports no torch before the checkpoint is opened, so `puna chat --help` stays fast.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from puna.formats.chat.conversation import CallFormat, Conversation, Message
from puna.pipeline.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; without a flag the defaults of the checkpoint apply, as in `puna serve`.

    Parameters
    ----------
    temperature
        Sampling temperature; 0 always takes the most likely token.
    top_p
        Nucleus sampling: sample among the most likely tokens with this total probability.
    top_k
        Number of most likely tokens to sample from; 0 samples from the whole vocabulary.
    min_p
        Smallest probability of a sampled token, relative to the most likely token.
    repetition_penalty
        Above 1, tokens of the conversation become less likely.
    presence_penalty
        Above 0, tokens of the answer become less likely.
    frequency_penalty
        Above 0, tokens of the answer become less likely with every occurrence.
    max_tokens
        Largest number of tokens in an answer.
    seed
        Seed of the random numbers; equal seeds, messages and checkpoints give equal answers.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int = 512
    seed: int | None = None


def chat(
    checkpoint: Path,
    /,
    *,
    system: str = "",
    system_file: Path | None = None,
    tools_file: Path | None = None,
    environment: str = "",
    builtin_tools: Annotated[list[str] | None, Parameter(name="--builtin-tool", negative="")] = None,
    call_format: CallFormat = "json",
    today: str = "",
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),
) -> None:
    """Talk with a checkpoint. From a pipe, each line gets one answer.

    Parameters
    ----------
    checkpoint
        Directory of a checkpoint, or of a registry: then the release in use.
    system
        Text of the system message.
    system_file
        File with the system message.
    tools_file
        JSON file with a list of tool definitions, as in OpenAI's API. You type in the results of calls.
    environment
        "ipython" enables the code interpreter: the model marks calls with python_tag.
    builtin_tools
        A tool that the model knows without a schema: brave_search or wolfram_alpha. May be repeated; implies
        "ipython".
    call_format
        Format of calls to the tools of the file: JSON, or <function=NAME> tags.
    today
        Date in the system message, as DD Month YYYY.
    """
    start = Conversation(
        _read_system(system, system_file),
        _read_tools(tools_file),
        environment=environment or ("ipython" if builtin_tools else ""),
        today=today,
        builtin_tools=tuple(builtin_tools or ()),
        call_format=call_format,
    )
    overrides = {name: value for name, value in asdict(sampling).items() if value is not None}
    from puna.agents.terminal import talk

    talk(checkpoint, start, overrides)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path} ({error})", expected="a text file in UTF-8") from None


def _read_system(text: str, path: Path | None) -> tuple[Message, ...]:
    if text and path:
        raise ConfigError("both --system and --system-file", expected="one of --system and --system-file")
    text = _read(path).strip() if path else text
    return (Message("system", text),) if text else ()


def _read_tools(path: Path | None) -> tuple[dict[str, Any], ...]:
    if path is None:
        return ()
    try:
        tools = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({error})", expected="a JSON list of tools") from None
    return Conversation.from_json({"messages": [], "tools": tools}).tools
