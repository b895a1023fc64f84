"""`puna chat`: a checkpoint -> a conversation in the terminal, streaming; lines from a pipe get one answer each.

Shows the tool calls that the model makes and takes their results from the keyboard; runs no tool itself.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from rich.console import Console

from puna.artifact import verifying
from puna.chat import ChatFormat, Conversation, Message, ToolCall
from puna.chat.conversation import CallFormat
from puna.chat.stream import MessageStream, Part
from puna.checkpoint.adapter import checkpoint_at
from puna.checkpoint.checkpoint import Checkpoint
from puna.engine.local import LocalSampler, sampling_defaults
from puna.engine.options import EngineOptions
from puna.engine.sampler import FinishReason, SamplingParams
from puna.errors import ChatError, ConfigError, PunaError, RequestError
from puna.licence import badges
from puna.lineage import licences_of
from puna.progress import printable
from puna.shelf.shelf import follow

HELP = "/new starts over, /tool TEXT gives a tool's result, /exit or Ctrl-D ends; Ctrl-C stops an answer."


# How Meta samples, where a checkpoint does not say.
METAS = SamplingParams(temperature=0.6, top_p=0.9)


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


class Answer(NamedTuple):
    """What was streamed, and is on the screen. `reason` None: stopped from the keyboard."""

    message: Message
    num_tokens: int
    reason: FinishReason | None
    error: str


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
    told = {name: value for name, value in asdict(sampling).items() if value is not None}
    SamplingParams(**told)  # What is out of bounds is refused before a model is loaded.
    checkpoint = follow(checkpoint)
    dialogue = _open(checkpoint, start, told)
    if badge := ", ".join(badges(licences_of(checkpoint))):
        print(badge, file=sys.stderr)
    converse(dialogue)


class Dialogue:
    """A conversation that grows by what is asked and what the sampler answers."""

    def __init__(
        self,
        sampler: LocalSampler,
        start: Conversation,
        params: SamplingParams,
        stop_ids: tuple[int, ...],
        console: Console,
    ):
        self.conversation, self.console = start, console
        self._sampler, self._start = sampler, start
        self._format = ChatFormat(sampler.tokenizer)
        self._params = replace(params, stop_ids=(*self._format.stop_ids, *stop_ids))

    @property
    def expects_result(self) -> bool:
        """Whether the last answer called a tool."""
        return bool(self.conversation.messages and self.conversation.messages[-1].tool_calls)

    def restart(self) -> None:
        self.conversation = self._start

    def ask(self, message: Message) -> None:
        """Show the answer as it comes and keep both; Ctrl-C ends the answer, and what there is of it stays."""
        conversation = self.conversation.with_message(message)
        prompt = self._format.prompt(conversation)
        room = self._sampler.max_context - len(prompt)
        if room < 1:
            expected = f"less than {self._sampler.max_context:,}"
            raise ChatError(f"a conversation of {len(prompt):,} tokens", expected=expected, hint="/new starts over")
        params = replace(self._params, max_tokens=min(self._params.max_tokens, room))
        answer = self._stream(prompt, params)
        if answer.reason == "error":
            raise RequestError(f"the answer failed ({answer.error})")
        if answer.num_tokens:
            self._show_end(answer)
            self.conversation = conversation.with_message(answer.message)

    def _stream(self, prompt: list[int], params: SamplingParams) -> Answer:
        """Print the text of an answer while it comes; what may be a tool call comes when that is certain."""
        num_tokens, reason, error = 0, None, ""
        reader, parts = MessageStream(self._format, self.conversation.tools), list[Part]()
        stream = self._sampler.stream(prompt, params)
        try:
            for chunk in stream:
                num_tokens += len(chunk.ids)
                reason, error = chunk.finish_reason, chunk.error
                parts += self._show(reader.feed(chunk.ids))
        except KeyboardInterrupt:
            reason = None
        finally:
            stream.close()
        parts += self._show(reader.finish(is_ended=reason == "stop"))
        text = "".join(part for part in parts if isinstance(part, str))
        calls = tuple(part for part in parts if isinstance(part, ToolCall))
        return Answer(Message("assistant", text, calls), num_tokens, reason, error)

    def _show(self, parts: list[Part]) -> list[Part]:
        for part in parts:
            if isinstance(part, str):
                self._write(part)
        return parts

    def _show_end(self, answer: Answer) -> None:
        message = answer.message
        if message.content or not message.tool_calls:
            self._write("\n")
        for call in message.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            self.console.out(printable(f"calls {call.name} {arguments}"), style="cyan")
        if self.console.is_terminal and answer.reason in (None, "length"):
            self.console.out(f"[cut after {answer.num_tokens} tokens]", style="dim")

    def _write(self, text: str) -> None:
        # Not by way of rich, which would turn tabs into spaces.
        self.console.file.write(printable(text))
        self.console.file.flush()


def _open(checkpoint: Path, start: Conversation, told: dict[str, Any]) -> Dialogue:
    with verifying(checkpoint):
        sampler = LocalSampler.open(checkpoint, options=EngineOptions(max_batch=1))
        stop_ids = Checkpoint.open(checkpoint_at(checkpoint)).stop_ids
    params = replace(sampling_defaults(checkpoint, METAS), **told)
    return Dialogue(sampler, start, params, stop_ids, Console(highlight=False))


def converse(dialogue: Dialogue) -> None:
    """Take lines from the terminal or a pipe until they end; a mistake ends only a pipe."""
    is_interactive = sys.stdin.isatty()
    for line in _typed_lines(dialogue.console) if is_interactive else sys.stdin:
        try:
            if line.strip() == "/exit":
                return
            _take_line(dialogue, line.strip())
        except PunaError as error:
            if not is_interactive:
                raise
            dialogue.console.out(str(error), style="red")


def _take_line(dialogue: Dialogue, line: str) -> None:
    command, _, rest = line.partition(" ")
    if line == "/new":
        dialogue.restart()
    elif command == "/tool":
        if not dialogue.expects_result:
            raise ChatError("/tool without a call", expected="it right after an answer that calls a tool")
        dialogue.ask(Message("tool", rest.strip()))
    elif line:
        dialogue.ask(Message("user", line))


def _typed_lines(console: Console) -> Iterator[str]:
    # Loading it gives `input` a history and line editing.
    with suppress(ImportError):
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    console.out(HELP, style="dim")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")


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
