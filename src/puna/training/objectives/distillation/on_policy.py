"""On-policy distillation: the student answers questions of the data, and the teacher judges every token.

A student trained on the data's text alone never meets its own mistakes. Every few steps the student answers questions
with its current weights; the loss at these tokens is the divergence from the teacher. Source: generalized knowledge
distillation (Agarwal et al., 2024, arXiv 2306.13649).

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
from puna.data.packing import Batch, Example
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.inference.completer.completer import Sampling
from puna.inference.completer.local import LocalCompleter
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.model.llama import Llama
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.run import JOURNALS, Run
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.losses import Rows
from puna.training.settings import TrainConfig

# Column: whether the row is an answer of the student.
IS_OWN = "is_own"
# Rows drawn per answer at most: a question without room for an answer is skipped.
DRAWS = 20
MAX_BATCH = 64


class OnPolicy(StageConfig):
    """Settings of on-policy distillation.

    Example:
        >>> OnPolicy(share=0.5, interval=50, answers=64)
    """

    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Fraction of training rows that the student's own answers replace, above 0 to 1",
    )
    interval: int = Field(
        default=50,
        ge=1,
        description="Number of steps between two rounds of answers; each round uses the current weights",
    )
    answers: int = Field(
        default=64, ge=1, le=65_536, description="Number of answers per round; more answers take more time"
    )
    max_tokens: int = Field(default=128, ge=1, description="Maximum length of an answer in tokens")
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=5,
        description="Sampling temperature of the answers; 0.5 is cautious, 1 follows the distribution",
    )


@dataclass
class Pool:
    """The student's current answers, encoded as examples.

    Example: see `OnPolicyTeacher`.
    """

    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class OnPolicyTeacher:
    """A live teacher that also judges the student's own answers.

    At the student's own tokens the loss is the divergence alone: the student's own words are no targets to learn.

    Attributes:
        live: Objective on the data's tokens.
        share: Share of the rows that an answer from the pool replaces.
        pool: Answers of the student; empty before the first step.

    Example:
        >>> OnPolicyTeacher(live_teacher, share=0.5, pool=Pool())
    """

    live: LiveTeacher
    share: float
    pool: Pool

    is_cut = False  # the answers may change between two pieces of a row
    needs_whole_examples = LiveTeacher.needs_whole_examples
    bytes_per_logit = LiveTeacher.bytes_per_logit

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.live.kinds

    @property
    def reads_every_token(self) -> bool:
        return self.live.reads_every_token

    def num_counted(self, batch: Batch) -> int:
        return self.live.num_counted(batch)

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        return [_marked(example.ids, example.mask, is_own=False) for example in self.live.encode(row, source)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        # The pool is empty for reports, which read rows before the first step.
        if self.pool.examples and source.random() < self.share:
            return [source.choice(self.pool.examples)]
        return self.encode(row, source)

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return self.live.summed(model, hidden_TD, batch, self._terms)

    def _terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        sums, is_own_C = self.live.terms(logits_CV, rows), rows[IS_OWN]
        own_loss = F.cross_entropy(logits_CV[is_own_C], rows["targets"][is_own_C], reduction="sum")
        return {
            **sums,
            "loss": sums["loss"] - (1 - self.live.teacher_weight) * own_loss,
            "token_loss": sums["token_loss"] - own_loss,
            "own_share": is_own_C.float().sum(),
        }


class Answering:
    """Fills a pool with the student's answers every few steps; a journal keeps the answers for a resumed run.

    Example:
        >>> Answering(on_policy, config, run, model, chat, pool).fill(step=0)
    """

    def __init__(self, settings: OnPolicy, config: TrainConfig, run: Run, model: Llama, chat: ChatFormat, pool: Pool):
        self._settings, self._config, self._run, self._model, self._chat = settings, config, run, model, chat
        self._pool, self._dataset = pool, Dataset(config.data, ("conversations",))
        if settings.max_tokens >= config.max_example_tokens:
            given = f"on_policy.max_tokens = {settings.max_tokens}"
            expected = f"less than max_length = {config.max_length}, with room for a question"
            raise ConfigError(given, expected=expected)

    def fill(self, step: int) -> None:
        """Fill the pool with the answers that belong to `step`."""
        if step % self._settings.interval and self._pool.examples:
            return
        first = step - step % self._settings.interval
        answers = self._run.remember(f"on-policy-{first:08d}", lambda: self._answer(first, step))
        self._pool.examples = [
            _marked(ids, [at >= start for at in range(len(ids))], is_own=True) for ids, start in answers
        ]

    def _answer(self, step: int, now: int) -> list[tuple[list[int], int]]:
        """Sample answers of the student; return for each the ids of question and answer, and the start of the answer.

        Raises:
            ArtifactError: The run resumes at a later step `now` without a journal: the weights of `step` are gone.
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
        seeds = [source.getrandbits(62) for _ in prompts]
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
        self._model.eval()
        num_together, context = min(MAX_BATCH, settings.answers), self._config.max_example_tokens
        options = EngineOptions(max_batch=num_together, max_context=context, dtype=self._config.dtype)
        sampler = LocalSampler(self._model, self._chat.tokenizer, options=options)
        student = LocalCompleter(sampler, self._chat, self._chat.stop_ids)
        completions = student.complete_tokens(prompts, seeds, sampling)
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
            if len(prompt) + self._settings.max_tokens <= self._config.max_example_tokens:
                num_found += 1
                yield prompt
            if num_found == self._settings.answers:
                return
        if not num_found:
            given = f"questions that leave no room for on_policy.max_tokens = {self._settings.max_tokens}"
            raise ConfigError(given, expected=f"both within max_length = {self._config.max_example_tokens}")


def _marked(ids: Sequence[int], mask: Sequence[bool], *, is_own: bool) -> Example:
    return Example(ids, mask, {IS_OWN: torch.full((len(ids),), is_own)})
