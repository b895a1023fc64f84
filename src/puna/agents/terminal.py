"""A checkpoint -> a streaming conversation in the terminal (`puna chat`); every line of a pipe gets an answer.

The chat shows tool calls of the model and reads the results from the keyboard. No tool is run.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from puna.formats.chat import Conversation, Message, ToolCall
from puna.formats.chat.stream import MessageStream, Part
from puna.inference.completer.local import LocalCompleter
from puna.inference.engine.local import sampling_defaults
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import FinishReason
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.artifacts.artifact import verifying
from puna.pipeline.artifacts.licence import badges
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.errors import ChatError, PunaError, RequestError
from puna.pipeline.progress import printable
from puna.pipeline.registry.registry import follow

HELP = "/new starts over, /tool TEXT enters the result of a tool, /exit or Ctrl-D ends; Ctrl-C stops an answer."


# Sampling defaults of Meta, for checkpoints without generation_config.json.
META_DEFAULTS = SamplingParams(temperature=0.6, top_p=0.9)


class Answer(NamedTuple):
    """The streamed part of an answer; `reason` is None after an interrupt from the keyboard."""

    message: Message
    num_tokens: int
    reason: FinishReason | None
    error: Exception | None


def talk(checkpoint: Path, start: Conversation, overrides: dict[str, Any]) -> None:
    """Open a checkpoint and converse; `overrides` replace the sampling defaults of the checkpoint."""
    SamplingParams(**overrides)  # Refuse invalid values before loading the model.
    checkpoint = follow(checkpoint)
    dialogue = _open(checkpoint, start, overrides)
    if badge := ", ".join(badges(licences_of(checkpoint))):
        print(badge, file=sys.stderr)
    converse(dialogue)


class Dialogue:
    """A growing conversation of the user's messages and the model's answers.

    Example: see `talk`, the caller of `converse`.
    """

    def __init__(
        self,
        model: LocalCompleter,
        start: Conversation,
        params: SamplingParams,
        console: Console,
    ):
        self.conversation, self.console = start, console
        self._sampler, self._format, self._start = model.sampler, model.chat, start
        self._params = replace(params, stop_ids=model.stop_ids)

    @property
    def expects_result(self) -> bool:
        """Whether the last answer called a tool."""
        return bool(self.conversation.messages and self.conversation.messages[-1].tool_calls)

    def restart(self) -> None:
        self.conversation = self._start

    def ask(self, message: Message) -> None:
        """Stream the answer and append message and answer; Ctrl-C ends the answer and keeps the streamed part."""
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
        """Print the text of an answer during generation; hold back a possible tool call until recognized."""
        num_tokens, reason, error = 0, None, None
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
        # NOTE: rich would turn tabs into spaces.
        self.console.file.write(printable(text))
        self.console.file.flush()


def _open(checkpoint: Path, start: Conversation, overrides: dict[str, Any]) -> Dialogue:
    with verifying(checkpoint):
        model = LocalCompleter.open(checkpoint, EngineOptions(max_batch=1))
    params = replace(sampling_defaults(checkpoint, META_DEFAULTS), **overrides)
    return Dialogue(model, start, params, Console(highlight=False))


def converse(dialogue: Dialogue) -> None:
    """Read lines from the terminal or a pipe until the end; an error ends a pipe, but not a terminal session."""
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
            raise ChatError("/tool without a call", expected="/tool directly after an answer with a tool call")
        dialogue.ask(Message("tool", rest.strip()))
    elif line:
        dialogue.ask(Message("user", line))


def _typed_lines(console: Console) -> Iterator[str]:
    # The import gives `input` a history and line editing.
    with suppress(ImportError):
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    console.out(HELP, style="dim")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
