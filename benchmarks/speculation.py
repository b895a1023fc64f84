"""Speculative decoding by a distilled student and by looking up the prompt: tokens/s of one request at a time.

    python benchmarks/speculation.py /tmp/bench build/demo/sft.teacher build/demo/distill build/demo/synthesize.held_out

What is real: both checkpoints, which `make demo` trains, the second distilled from the first; the questions, which
neither has seen; so what is guessed and how often it is right. What is constructed: their sizes. Each is widened
(widen.py) without a change to what it computes: the teacher to the shape of Llama 3.2 1B, the student to a network that
reads about a tenth as many bytes for a token; both have Llama's vocabulary of 128,256. Then the layers are rounded to
4 bits (or as --form says) and the embeddings to 8, which by the way they are widened changes hardly more.

Greedy; the tokens are asserted to be the same with and without guesses. Time is taken from a request's first token to
its last: the student's reading of the prompt is in it, the teacher's is not. Modes take turns, question by question.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from random_models import decoded_bytes
from widen import widen

from puna.evaluation.tasks.task import Task
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.scheduling.request import Request
from puna.inference.engine.speculative.prompt_lookup import PromptLookup
from puna.model.attend import attend_causally
from puna.model.config import SIZES, LlamaConfig
from puna.model.kernels.threads import cpu_limit
from puna.model.llama import Llama
from puna.model.quantization.quantized import round_linears, rounded
from puna.model.quantization.scheme import Scheme

STUDENT_SIZE = replace(SIZES["1b"], dim=512, hidden_dim=2048, num_layers=4, num_heads=16, num_kv_heads=4)
FORMS = {"int4": Scheme("int", 4, 128), "int8": Scheme("int", 8, 128)}
MAX_TOKENS = 64
PLAIN, STUDENT, LOOKUP = "no guesses", "the student guesses", "looked up in the prompt"


@dataclass
class Mode:
    """An engine, and what it did."""

    name: str
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_steps: int = 0
    num_guesses: int = 0

    def __post_init__(self) -> None:
        """Count the guesses that are checked."""
        drafter = self.engine._drafter
        if drafter is None:
            return
        propose = drafter.propose

        def counted(requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
            drafts = propose(requests, limits)
            self.num_guesses += sum(map(len, drafts))
            return drafts

        drafter.propose = counted  # type: ignore[method-assign]

    def answer(self, prompt: list[int], stop_ids: tuple[int, ...]) -> list[int]:
        """Answer one question and note how long the tokens after the first took."""
        self.engine.submit(prompt, SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_ids=stop_ids))
        ids: list[int] = []
        begin = num_begun = 0
        while self.engine.has_work:
            chunks = self.engine.step()
            ids += [token for _, chunk in chunks for token in chunk.ids]
            if begin:
                self.num_steps += 1
            elif ids:
                begin, num_begun = time.perf_counter(), len(ids)
        self.seconds.append(time.perf_counter() - begin)
        self.num_tokens += len(ids) - num_begun
        return ids

    def clear(self) -> None:
        self.seconds.clear()
        self.num_tokens = self.num_steps = self.num_guesses = 0


def prepare(folder: Path, name: str, source: Path, size: LlamaConfig, form: str) -> Path:
    """Return the widened and rounded checkpoint, made if it is not there yet, and checked that it computes the same."""
    path = folder / f"{name}-{form}"
    if path.exists():
        return path
    checkpoint = Checkpoint.open(source)
    model, tokenizer = checkpoint.load(torch.float32), checkpoint.tokenizer()
    wide = widen(model, size, FORMS[form], unused_id=tokenizer.special("reserved_special_token_0"))
    tokens_T = torch.arange(0, model.config.vocab_size, 32)
    logits, same = (_logits(each, tokens_T)[:, : model.config.vocab_size] for each in (model, wide))
    assert (logits - same).abs().max() < 1e-3 * logits.abs().max(), "the wider network computes something else"
    round_linears(wide, FORMS[form])
    wide.embed_tokens = rounded(wide.embed_tokens, Scheme("int", 8))  # type: ignore[assignment]
    error = (logits - _logits(wide, tokens_T)[:, : model.config.vocab_size]).abs().mean() / logits.std()
    print(f"{path.name}: rounding moves a logit by {error:.3f} standard deviations", file=sys.stderr)
    part = path.with_name(f"part-{path.name}")
    part.mkdir(parents=True)
    save_checkpoint(part, wide, tokenizer, like=checkpoint.source())
    part.rename(path)
    return path


@torch.no_grad()
def _logits(model: Llama, tokens_T: torch.Tensor) -> torch.Tensor:
    hidden_TD = model(tokens_T, torch.arange(len(tokens_T)), lambda _, q, k, v: attend_causally(q, k, v))
    return model.logits(hidden_TD)


def compare(modes: Sequence[Mode], prompts: Sequence[list[int]], stop_ids: tuple[int, ...], rounds: int) -> None:
    """Let every mode answer every prompt, by turns; the tokens must be the same."""
    for turn in range(rounds + 1):
        for index, prompt in enumerate(prompts if turn else prompts[:1]):  # The first round only warms up.
            answers = [mode.answer(prompt, stop_ids) for mode in modes]
            assert all(ids == answers[0] for ids in answers), f"question {index}: guesses changed the tokens"
            print(f"round {turn}, question {index}: {len(answers[0])} tokens", file=sys.stderr)
        if turn == 0:
            for mode in modes:
                mode.clear()


def rows(modes: Sequence[Mode]) -> Iterator[str]:
    """Yield the table. Ratios are the medians of the questions' own, since a shared machine is not always as fast."""
    yield "| | tokens/s | times as fast | tokens a step | guesses that were right |"
    yield "|---|---:|---:|---:|---:|"
    for mode in modes:
        speed, per_step = mode.num_tokens / sum(mode.seconds), mode.num_tokens / mode.num_steps
        faster = statistics.median(plain / own for plain, own in zip(modes[0].seconds, mode.seconds, strict=True))
        num_right = mode.num_tokens - mode.num_steps
        share = f"{num_right / mode.num_guesses:.0%} of {mode.num_guesses:,}" if mode.num_guesses else ""
        yield f"| {mode.name} | {speed:.1f} | {faster:.2f} | {per_step:.2f} | {share} |"


def main() -> None:
    """Widen, measure, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the widened models are kept")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("questions", type=Path, help="questions for `puna evaluate`")
    parser.add_argument("--form", default="int4", choices=list(FORMS), help="of the layers")
    parser.add_argument("--num", type=int, default=20, help="questions")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    told = parser.parse_args()
    torch.set_num_threads(cpu_limit())
    paths = (
        prepare(told.folder, "teacher", told.teacher, SIZES["1b"], told.form),
        prepare(told.folder, "student", told.student, STUDENT_SIZE, told.form),
    )
    torch.set_num_threads(1)  # Idle threads of torch's would spin beside the kernels'.
    share = decoded_bytes(paths[1]) / decoded_bytes(paths[0])
    teacher, student = (Checkpoint.open(path) for path in paths)
    tokenizer, options = teacher.tokenizer(), EngineOptions(max_batch=1)
    drafts = {PLAIN: None, STUDENT: student.load(), LOOKUP: PromptLookup()}
    modes = [
        Mode(name, Engine(teacher.load(), tokenizer, options=options, draft=draft)) for name, draft in drafts.items()
    ]
    chat, task = ChatFormat(tokenizer), Task.load(told.questions).sample(told.num, 0)
    prompts = [chat.prompt(question.conversation) for question in task.questions]
    compare(modes, prompts, chat.stop_ids, told.rounds)
    command = (
        f"speculation.py FOLDER TEACHER STUDENT QUESTIONS --form {told.form} --num {told.num} --rounds {told.rounds}"
    )
    head = (
        f"# Speculative decoding: {datetime.date.today()}, {cpu_limit()} threads\n\n`python benchmarks/{command}`: one "
        f"request at a time, greedy, the same tokens in every row. The demo's teacher and distilled student, widened "
        f"without changing what they compute: a token of the student reads {share:.0%} of the teacher's bytes.\n"
    )
    report = "\n".join((head, *rows(modes)))
    print(report)
    if told.write:
        told.write.write_text(report + "\n")


if __name__ == "__main__":
    main()
