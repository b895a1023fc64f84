"""The flags of `puna chat` -> the start of a conversation and how to sample; terminal.py holds the conversation.

Imports no torch before a checkpoint is opened, so `puna chat --help` stays quick.
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
    """How answers are sampled; what is not told is the checkpoint's own, as of `puna serve`.

    Parameters
    ----------
    temperature
        0 always takes the most likely token.
    top_p
        Sample among the most likely tokens that together have this probability.
    top_k
        Sample among so many of the most likely tokens; 0 among all.
    min_p
        Sample among tokens with at least this share of the greatest probability.
    repetition_penalty
        Above 1 avoids what the conversation holds.
    presence_penalty
        Above 0 avoids what the answer holds.
    frequency_penalty
        Above 0 avoids what the answer holds, the more the more often.
    max_tokens
        The most tokens an answer may have.
    seed
        The same seed, words and checkpoint give the same answers.
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
        The checkpoint directory, or one that releases were promoted into: then the release in use.
    system
        The system message.
    system_file
        A file with the system message.
    tools_file
        A JSON list of the tools that the model may call, as in OpenAI's API. Their results are typed in.
    environment
        "ipython" turns the code interpreter on: calls are marked with python_tag.
    builtin_tools
        A tool that the model knows without a schema: brave_search or wolfram_alpha; may be repeated. It takes
        "ipython" along.
    call_format
        How the model is asked to call the tools of the file: in JSON, or in <function=NAME> tags.
    today
        The date that the system message tells, as DD Month YYYY.
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
        raise ConfigError("both --system and --system-file", expected="one of them")
    text = _read(path).strip() if path else text
    return (Message("system", text),) if text else ()


def _read_tools(path: Path | None) -> tuple[dict[str, Any], ...]:
    if path is None:
        return ()
    try:
        tools = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({error})", expected="JSON") from None
    return Conversation.from_json({"messages": [], "tools": tools}).tools
