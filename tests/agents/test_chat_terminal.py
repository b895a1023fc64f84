"""`puna chat`: what a person sees in the terminal, and what a pipe gets."""

import io
import json
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from puna import cli
from puna.agents import terminal
from puna.agents.command import chat
from puna.agents.terminal import Dialogue, converse
from puna.formats.chat import ChatFormat, Conversation, Message, ToolCall
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.tokenizer import train_tokenizer
from puna.inference.completer.local import LocalCompleter
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.outputs import Chunk
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.errors import ChatError, ConfigError, RequestError
from puna.pipeline.progress import printable

TOKENIZER = train_tokenizer(["Hello there, how may I help you today? "] * 3, vocab_size=520, split_digits=False)
FORMAT = ChatFormat(TOKENIZER)
TOOL = {
    "type": "function",
    "function": {"name": "find_order", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}},
}


class ScriptedSampler:
    """Answers with the given texts, one token a chunk; `<|python_tag|>` at the start stands for the special token."""

    tokenizer = TOKENIZER

    def __init__(self, *answers: str, max_context: int = 10_000, interrupt_after: int = -1):
        self.answers, self.max_context, self.interrupt_after = list(answers), max_context, interrupt_after
        self.prompts: list[str] = []
        self.num_closed = 0

    def stream(self, prompt: list[int], params: SamplingParams) -> Generator[Chunk, None, None]:
        self.prompts.append(TOKENIZER.decode(prompt))
        text = self.answers.pop(0)
        ids: list[int] = []
        if text.startswith("<|python_tag|>"):
            ids, text = [TOKENIZER.special("python_tag")], text.removeprefix("<|python_tag|>")
        ids += [*TOKENIZER.encode(text), TOKENIZER.special("eot_id")]
        shown = TextStream(TOKENIZER)
        try:
            for index, token in enumerate(ids):
                if index == self.interrupt_after:
                    raise KeyboardInterrupt
                yield Chunk((token,), shown.feed(token), finish_reason="stop" if index == len(ids) - 1 else None)
        finally:
            self.num_closed += 1


def new_dialogue(sampler: ScriptedSampler, start: Conversation | None = None) -> tuple[Dialogue, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, highlight=False, force_terminal=False, width=40)
    start = start or Conversation(())
    model = LocalCompleter(sampler, FORMAT, FORMAT.stop_ids)  # type: ignore[arg-type]
    return Dialogue(model, start, SamplingParams(), console), screen


def pipe(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_each_line_of_a_pipe_gets_one_answer_with_the_dialogue_so_far(monkeypatch):
    sampler = ScriptedSampler("Hello!", "Fine, and longer than the forty columns of this narrow screen.")
    dialogue, screen = new_dialogue(sampler, Conversation((Message("system", "Be kind."),)))
    pipe(monkeypatch, "Hi", "", "How are you?")
    converse(dialogue)
    assert screen.getvalue() == "Hello!\nFine, and longer than the forty columns of this narrow screen.\n"
    said = [(message.role, message.content) for message in dialogue.conversation.messages]
    assert said[:4] == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "How are you?")]
    assert sampler.prompts[1].count("Hello!") == 1 and sampler.prompts[1].count("Be kind.") == 1


@pytest.mark.parametrize("environment", ["", "ipython"])
def test_a_tool_call_is_shown_as_such_and_its_result_goes_back(monkeypatch, environment):
    call = json.dumps({"type": "function", "name": "find_order", "parameters": {"id": "A7"}})
    tag = "<|python_tag|>" if environment else ""
    sampler = ScriptedSampler(tag + call, "It is on its way.")
    dialogue, screen = new_dialogue(sampler, Conversation((), tools=(TOOL,), environment=environment))
    pipe(monkeypatch, "Where is A7?", '/tool {"state": "sent"}')
    converse(dialogue)
    assert screen.getvalue() == 'calls find_order {"id": "A7"}\nIt is on its way.\n'
    assert dialogue.conversation.messages[1].tool_calls == (ToolCall("find_order", {"id": "A7"}),)
    assert dialogue.conversation.messages[2] == Message("tool", '{"state": "sent"}')


def test_what_only_looked_like_a_call_is_shown_in_full():
    for text in ('{"name": "nothing we offer"}', "[1, 2", "<function=x>"):
        dialogue, screen = new_dialogue(ScriptedSampler(text), Conversation((), tools=(TOOL,)))
        dialogue.ask(Message("user", "JSON, please"))
        assert screen.getvalue() == text + "\n"


def test_text_before_a_marked_call_is_shown_once():
    sampler = ScriptedSampler()
    parts = ((TOKENIZER.encode("One moment."), "One moment."), ([TOKENIZER.special("python_tag")], ""))
    chunks = [Chunk(tuple(ids), text) for ids, text in parts]
    chunks.append(Chunk(tuple(TOKENIZER.encode("print(1)")), "print(1)", finish_reason="stop"))
    sampler.stream = lambda prompt, params: (chunk for chunk in chunks)  # type: ignore[method-assign]
    dialogue, screen = new_dialogue(sampler, Conversation((), environment="ipython"))
    dialogue.ask(Message("user", "Compute"))
    assert screen.getvalue() == 'One moment.\ncalls code_interpreter {"code": "print(1)"}\n'


def test_a_call_that_is_cut_off_by_the_length_calls_nothing():
    ids = [TOKENIZER.special("python_tag"), *TOKENIZER.encode("remove_all(")]
    sampler = ScriptedSampler()
    sampler.stream = lambda prompt, params: (chunk for chunk in [Chunk(tuple(ids), "", finish_reason="length")])  # type: ignore[method-assign]
    dialogue, screen = new_dialogue(sampler, Conversation((), environment="ipython"))
    dialogue.ask(Message("user", "Compute"))
    assert screen.getvalue() == "remove_all(\n"
    assert not dialogue.expects_result


def test_new_forgets_the_dialogue_but_not_the_system_message(monkeypatch):
    dialogue, _ = new_dialogue(ScriptedSampler("One", "Two"), Conversation((Message("system", "Be kind."),)))
    pipe(monkeypatch, "first", "/new", "second", "/exit", "never asked")
    converse(dialogue)
    assert [message.content for message in dialogue.conversation.messages] == ["Be kind.", "second", "Two"]


def test_a_model_cannot_drive_the_terminal():
    dialogue, screen = new_dialogue(ScriptedSampler("red \x1b[31m\x07 bell\r and \x9b2J\n\tindented"))
    dialogue.ask(Message("user", "Hi"))
    assert screen.getvalue() == "red \ufffd[31m\ufffd bell\ufffd and \ufffd2J\n\tindented\n"


def test_an_interrupted_answer_keeps_what_was_said():
    sampler = ScriptedSampler("Hello there", "Yes", interrupt_after=1)
    dialogue, _ = new_dialogue(sampler)
    dialogue.ask(Message("user", "Hi"))
    said = dialogue.conversation.messages[-1]
    assert said.role == "assistant" and 0 < len(said.content) < len("Hello there")
    sampler.interrupt_after = 0
    dialogue.ask(Message("user", "Again"))
    assert dialogue.conversation.messages[-1] == said
    assert sampler.num_closed == 2


def test_a_full_conversation_says_so_and_a_failed_answer_is_not_kept(monkeypatch):
    dialogue, _ = new_dialogue(ScriptedSampler("Hello", max_context=10))
    pipe(monkeypatch, "Is there any room left in here for this line?")
    with pytest.raises(ChatError, match="/new"):
        converse(dialogue)
    sampler = ScriptedSampler()
    failed = [Chunk(finish_reason="error", error=RuntimeError("broken"))]
    sampler.stream = lambda prompt, params: (chunk for chunk in failed)  # type: ignore[method-assign]
    dialogue, _ = new_dialogue(sampler)
    with pytest.raises(RequestError, match="broken"):
        dialogue.ask(Message("user", "Hi"))
    assert dialogue.conversation.messages == ()


def test_a_tool_result_without_a_call_is_refused(monkeypatch):
    dialogue, _ = new_dialogue(ScriptedSampler())
    pipe(monkeypatch, "/tool 5")
    with pytest.raises(ChatError, match="/tool"):
        converse(dialogue)


@pytest.mark.parametrize(
    ("content", "flags"), [(None, "tools_file"), ("[{", "tools_file"), ("[1]", "tools_file"), (None, "system_file")]
)
def test_a_file_that_cannot_be_read_is_named_before_anything_is_loaded(tmp_path, content, flags):
    path = tmp_path / "given"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ConfigError, ChatError), match=r"given|tools"):
        chat(tmp_path / "no checkpoint", **{flags: path})


def test_flags_say_how_the_format_renders_tools_and_dates(tmp_path, monkeypatch):
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    starts: list[Conversation] = []
    monkeypatch.setattr(terminal, "converse", lambda dialogue: starts.append(dialogue.conversation))
    monkeypatch.setattr(LocalSampler, "open", lambda *_, **__: ScriptedSampler())
    monkeypatch.setattr(Checkpoint, "open", lambda _: SimpleNamespace(stop_ids=()))
    flags = ["--tools-file", str(tmp_path / "tools.json"), "--call-format", "tag", "--today", "05 March 2025"]
    flags += ["--builtin-tool", "brave_search", "--builtin-tool", "wolfram_alpha"]
    run_command("chat", *flags, "checkpoint")
    run_command("chat", "checkpoint", "--environment", "ipython")
    settings = {"builtin_tools": ("brave_search", "wolfram_alpha"), "call_format": "tag", "today": "05 March 2025"}
    assert starts == [
        Conversation((), (TOOL,), "ipython", **settings),
        Conversation((), environment="ipython"),
    ]
    prompt = TOKENIZER.decode(FORMAT.prompt(starts[0]))
    assert "Tools: brave_search, wolfram_alpha" in prompt and "<function=" in prompt and "05 March 2025" in prompt


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--builtin-tool", "python"], "only brave_search, wolfram_alpha"),
        (["--call-format", "xml"], "json"),
        (["--today", "2025-03-05"], "05 March 2025"),
        (["--min-p", "3"], "min_p = 3.0; expected 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path, flags, told):
    assert told in str(run_command("chat", str(tmp_path / "no checkpoint"), *flags))


def test_flags_win_over_the_checkpoints_own_sampling_and_that_over_metas(tmp_path, monkeypatch):
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.2, "top_k": 7}))
    asked: list[SamplingParams] = []
    monkeypatch.setattr(terminal, "converse", lambda dialogue: asked.append(dialogue._params))
    monkeypatch.setattr(LocalSampler, "open", lambda *_, **__: ScriptedSampler())
    monkeypatch.setattr(Checkpoint, "open", lambda _: SimpleNamespace(stop_ids=()))
    run_command("chat", str(tmp_path), "--top-k", "3", "--presence-penalty", "1.5", "--seed", "4")
    run_command("chat", str(tmp_path))
    run_command("chat", str(tmp_path / "other"))
    flags = {"top_k": 3, "presence_penalty": 1.5, "seed": 4}
    metas = SamplingParams(max_tokens=512, temperature=0.6, top_p=0.9, stop_ids=FORMAT.stop_ids)
    own = replace(metas, temperature=0.2, top_k=7)
    assert asked == [replace(own, **flags), own, metas]


def test_a_builtin_tool_is_called_without_a_schema(monkeypatch):
    call = '<|python_tag|>brave_search.call(query="Menlo Park weather")'
    sampler = ScriptedSampler(call, "It is mild.")
    start = Conversation((), environment="ipython", builtin_tools=("brave_search",))
    dialogue, screen = new_dialogue(sampler, start)
    pipe(monkeypatch, "How is the weather?", "/tool 17 degrees")
    converse(dialogue)
    assert screen.getvalue() == 'calls brave_search {"query": "Menlo Park weather"}\nIt is mild.\n'


def run_command(*arguments: str) -> str | int | None:
    """Return what the command ends with: 0, or what it says is wrong."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["puna", *arguments])
        cli.main()
    return ended.value.code


def test_the_command_answers_as_the_sampler_does(tmp_path):
    config = LlamaConfig(
        dim=32,
        hidden_dim=64,
        head_dim=8,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=520,
        max_context=256,
    )
    model = Llama(config)
    model.initialize(0)
    save_checkpoint(tmp_path, model, TOKENIZER)
    (tmp_path / "generation_config.json").write_text('{"temperature": 5.0, "top_k": 1}')
    (tmp_path / "system.txt").write_text("You are kind.\n")
    (tmp_path / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    flags = ["--system-file", str(tmp_path / "system.txt"), "--max-tokens", "12"]
    done = subprocess.run(
        [sys.executable, "-c", "from puna.cli import main; main()", "chat", str(tmp_path), *flags],
        input=b"Hello\nAgain\n",
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode() == "Built with Llama\n"

    sampler = LocalSampler.open(tmp_path)
    conversation = Conversation((Message("system", "You are kind."),))
    expected = ""
    for line in ("Hello", "Again"):
        conversation = conversation.with_message(Message("user", line))
        params = SamplingParams(max_tokens=12, stop_ids=FORMAT.stop_ids)
        answer = sampler.complete([FORMAT.prompt(conversation)], params)[0]
        conversation = conversation.with_message(FORMAT.parse(answer.ids))
        expected += printable(answer.text) + "\n"
    assert done.stdout.decode() == expected
