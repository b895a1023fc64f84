"""The student's own answers, judged token by token by its teacher, beside the data's.

A student that only ever continues the data's words never meets its own mistakes. Here it answers some of the data's
questions every few steps, with the weights that it has then, and learns at each of these tokens what the teacher would
have said. Source: generalized knowledge distillation (Agarwal et al., 2024, arXiv 2306.13649).

Shapes: C trained tokens, V vocabulary.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from pydantic import Field

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.dataset import Dataset
from puna.data.packing import Example
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.llama import Llama
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.run import JOURNALS, Run
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.losses import Rows
from puna.training.settings import TrainConfig

# Column: whether the student wrote the row itself.
IS_OWN = "is_own"
# Rows that are looked at for each answer: those whose question leaves no room for one are passed over.
DRAWS = 20
MAX_BATCH = 64


class OnPolicy(StageConfig):
    """How much the student learns from its own answers."""

    share: float = Field(default=0.5, gt=0, le=1, description="of the rows that give way to the student's answers")
    interval: int = Field(default=50, ge=1, description="steps until it answers anew, with the weights of then")
    answers: int = Field(default=64, ge=1, le=65_536, description="that it writes at a time")
    max_tokens: int = Field(default=128, ge=1, description="longest answer")
    temperature: float = Field(default=1.0, gt=0, le=5, description="at which it samples")


@dataclass
class Pool:
    """The answers that are drawn from until the next ones are written."""

    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class OnPolicyTeacher(LiveTeacher):
    """As LiveTeacher; at the student's own tokens the divergence alone, since they are no truth to be learned."""

    share: float
    pool: Pool

    @property
    def is_cut(self) -> bool:
        return False  # Between two pieces of a row the answers may be other ones.

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        return [_marked(example.ids, example.mask, is_own=False) for example in super().encode(row, source)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        # Who only looks at the data, before the first step, finds no answers yet.
        if self.pool.examples and source.random() < self.share:
            return [source.choice(self.pool.examples)]
        return self.encode(row, source)

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        found, is_own_C = super().terms(logits_CV, rows), rows[IS_OWN]
        own_loss = F.cross_entropy(logits_CV[is_own_C], rows["targets"][is_own_C], reduction="sum")
        return {
            **found,
            "loss": found["loss"] - (1 - self.teacher_weight) * own_loss,
            "token_loss": found["token_loss"] - own_loss,
            "own_share": is_own_C.float().sum(),
        }


class Answering:
    """Fills the pool before a step whose turn it is; what was answered is kept, so that a killed run goes on alike."""

    def __init__(self, settings: OnPolicy, config: TrainConfig, run: Run, model: Llama, chat: ChatFormat, pool: Pool):
        self._settings, self._config, self._run, self._model, self._chat = settings, config, run, model, chat
        self._pool, self._dataset = pool, Dataset(config.data, ("conversations",))
        if settings.max_tokens >= config.max_length:
            given = f"on_policy.max_tokens = {settings.max_tokens}"
            raise ConfigError(given, expected=f"less than context = {config.max_length}, with room for a question")

    def __call__(self, step: int) -> None:
        """Make the pool that of this step."""
        if step % self._settings.interval and self._pool.examples:
            return
        first = step - step % self._settings.interval
        answers = self._run.remember(f"on-policy-{first:08d}", lambda: self._answer(first, step))
        self._pool.examples = [
            _marked(ids, [at >= start for at in range(len(ids))], is_own=True) for ids, start in answers
        ]

    def _answer(self, step: int, now: int) -> list[tuple[list[int], int]]:
        """Let the student answer at `step`; return ids of question and answer, and where the answer begins.

        Raises:
            ArtifactError: The run resumes at the later step `now`, where the weights of `step` are gone.
        """
        if now != step:
            raise ArtifactError(
                f"{self._run.directory / JOURNALS} has lost the student's answers of step {step}",
                expected=f"the answers that the interrupted run wrote before step {now}",
                hint=f"Delete {self._run.directory / 'states'}, and the training begins anew",
            )
        begin, settings = time.monotonic(), self._settings
        source = random.Random(f"{self._config.seed} on policy {step}")
        prompts = list(self._prompts(source))
        params = [
            SamplingParams(
                settings.max_tokens,
                settings.temperature,
                stop_ids=self._chat.stop_ids,
                seed=source.getrandbits(62),
            )
            for _ in prompts
        ]
        self._model.eval()
        num_together, context = min(MAX_BATCH, settings.answers), self._config.max_length
        options = EngineOptions(max_batch=num_together, max_context=context, dtype=self._config.dtype)
        completions = LocalSampler(self._model, self._chat.tokenizer, options=options).complete(prompts, params)
        self._model.train()
        num_tokens = sum(len(completion.ids) for completion in completions)
        seconds = time.monotonic() - begin
        self._run.log(
            f"step {step}: the student wrote {len(prompts)} answers, {num_tokens:,} tokens in {seconds:.1f} s"
        )
        return [
            (prompt + completion.ids, len(prompt))
            for prompt, completion in zip(prompts, completions, strict=True)
            if completion.ids
        ]

    def _prompts(self, source: random.Random) -> Iterator[list[int]]:
        num_found = 0
        for _ in range(DRAWS * self._settings.answers):
            row = self._dataset[source.randrange(len(self._dataset))]
            assert isinstance(row, Conversation)
            row = fresh_identifiers(row, source) if self._config.fresh_identifiers else row
            turns = [at for at, message in enumerate(row.messages) if message.is_learned]
            if not turns:
                continue
            prompt = self._chat.prompt(replace(row, messages=row.messages[: source.choice(turns)]))
            if len(prompt) + self._settings.max_tokens <= self._config.max_length:
                num_found += 1
                yield prompt
            if num_found == self._settings.answers:
                return
        if not num_found:
            given = f"questions that leave no room for on_policy.max_tokens = {self._settings.max_tokens}"
            raise ConfigError(given, expected=f"both within context = {self._config.max_length}")


def _marked(ids: Sequence[int], mask: Sequence[bool], *, is_own: bool) -> Example:
    return Example(ids, mask, {IS_OWN: torch.full((len(ids),), is_own)})
