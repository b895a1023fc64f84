"""`puna chat`: a checkpoint -> a conversation in the terminal, streaming; lines from a pipe get one answer each.

Shows the tool calls that the model makes and takes their results from the keyboard; runs no tool itself.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from puna.chat import ChatFormat, Conversation, Message
from puna.checkpoint.checkpoint import Checkpoint
from puna.engine.local import LocalSampler
from puna.engine.sampler import FinishReason, SamplingParams
from puna.errors import ChatError, ConfigError, PunaError, RequestError

HELP = "/new starts over, /tool TEXT gives a tool's result, /exit or Ctrl-D ends; Ctrl-C stops an answer."
CALL_OPENINGS = ("{", "[", "<function=")
# What a model writes may hold sequences that drive the terminal; only line breaks and tabs pass.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Answer(NamedTuple):
    """What was streamed. `num_shown` characters are on the screen; `reason` None: stopped from the keyboard."""

    ids: list[int]
    num_shown: int
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
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_tokens: int = 512,
    seed: int | None = None,
) -> None:
    """Talk with a checkpoint. From a pipe, each line gets one answer.

    Parameters
    ----------
    checkpoint
        The checkpoint directory.
    system
        The system message.
    system_file
        A file with the system message.
    tools_file
        A JSON list of the tools that the model may call, as in OpenAI's API. Their results are typed in.
    environment
        "ipython" for models that mark their calls for a code interpreter.
    temperature
        0 always takes the most likely token.
    top_p
        Sample among the most likely tokens that together have this probability.
    max_tokens
        The most tokens an answer may have.
    seed
        The same seed, words and checkpoint give the same answers.
    """
    if system and system_file:
        raise ConfigError("both --system and --system-file", expected="one of them")
    system = _read(system_file).strip() if system_file else system
    opening = (Message("system", system),) if system else ()
    start = Conversation(opening, _read_tools(tools_file), environment=environment)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    sampler = LocalSampler.open(checkpoint, max_batch=1)
    stop_ids = Checkpoint.open(checkpoint).stop_ids
    converse(Dialogue(sampler, start, params, stop_ids, Console(highlight=False)))


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
        self._python_tag = sampler.tokenizer.special("python_tag")
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
        answer = self._stream(prompt, params, tools=bool(conversation.tools))
        if answer.reason == "error":
            raise RequestError(f"the answer failed ({answer.error})")
        if answer.ids:
            reply = self._format.parse(answer.ids, conversation.tools)
            self._show_rest(reply, answer)
            self.conversation = conversation.with_message(reply)

    def _stream(self, prompt: list[int], params: SamplingParams, *, tools: bool) -> Answer:
        """Print an answer while it comes, but hold back what is or may be a tool call."""
        ids: list[int] = []
        text, num_shown, reason, error = "", 0, None, ""
        stream = self._sampler.stream(prompt, params)
        try:
            for chunk in stream:
                ids += chunk.ids
                reason, error = chunk.finish_reason, chunk.error
                text += "" if self._python_tag in ids else chunk.text
                if not (tools and text.lstrip().startswith(CALL_OPENINGS)):
                    self._write(text[num_shown:])
                    num_shown = len(text)
        except KeyboardInterrupt:
            reason = None
        finally:
            stream.close()
        return Answer(ids, num_shown, reason, error)

    def _show_rest(self, reply: Message, answer: Answer) -> None:
        """Print what was held back as what it turned out to be."""
        if not (reply.tool_calls and answer.num_shown):
            self._write(reply.content[answer.num_shown :])
        if reply.content or not reply.tool_calls:
            self._write("\n")
        for call in reply.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            self.console.out(printable(f"calls {call.name} {arguments}"), style="cyan")
        if self.console.is_terminal and answer.reason in (None, "length"):
            self.console.out(f"[cut after {len(answer.ids)} tokens]", style="dim")

    def _write(self, text: str) -> None:
        # Not by way of rich, which would turn tabs into spaces.
        self.console.file.write(printable(text))
        self.console.file.flush()


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


def printable(text: str) -> str:
    """Replace control characters, with which a text could drive the terminal."""
    return text.translate(_CONTROLS)


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


def _read_tools(path: Path | None) -> tuple[dict[str, Any], ...]:
    if path is None:
        return ()
    try:
        tools = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({error})", expected="JSON") from None
    return Conversation.from_json({"messages": [], "tools": tools}).tools
