"""Distillation: a teacher or its stored logits, and conversations -> a student with the teacher's predictions.

Teacher and student share a tokenizer; with two tokenizers, divergence.kind = "spans" compares likelihoods of spans.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from puna.data.dataset import LABELS, Dataset
from puna.data.labels import LabelHeader, read_header
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.kernels.device import choose_device
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run, ranks
from puna.planning.plan.arithmetic import FLOAT_BYTES
from puna.planning.plan.steps.facts import network_of
from puna.planning.plan.steps.speed import Lengths, forward_seconds
from puna.training.fit import fit
from puna.training.loop.defaults import adapt
from puna.training.loop.observer import Observer
from puna.training.loop.start import starting_model
from puna.training.loop.training import Training
from puna.training.objectives.distillation.cross_tokenizer import (
    CrossTokenizer,
    Knows,
    live_knowledge,
    stored_knowledge,
)
from puna.training.objectives.distillation.divergence import Divergence
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.distillation.on_policy import Answering, OnPolicy, OnPolicyTeacher, Pool
from puna.training.objectives.distillation.stored_labels import StoredLabels
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import TrainConfig
from puna.training.teacher.local import LocalTeacher

TOKENIZER_HINT = "Train the student with tokenizer = the teacher's directory, or give divergence.kind = 'spans'"


class Config(TrainConfig):
    """Settings of distillation: loss = teacher_weight * divergence + (1 - teacher_weight) * cross entropy.

    Example:
        [distill]
        init_from = "@prune"
        teacher = "@sft.teacher"
        data = ["@synthesize.train"]
        epochs = 2
    """

    data: list[Path] = Field(
        default=[], description="Datasets to train on, shuffled together; required with teacher, refused with labels"
    )
    teacher: Path | None = Field(
        default=None,
        description="Checkpoint of the teacher, which is loaded beside the student; either teacher or labels",
    )
    labels: Path | None = Field(
        default=None, description="Stored logits of a teacher, an artifact of `puna label`; either labels or teacher"
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=20,
        description="Temperature that softens the distributions of teacher and student, above 0 to 20",
    )
    teacher_weight: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Weight of the divergence in the loss, 0 to 1; cross entropy of the data has the rest",
    )
    divergence: Divergence = Field(
        default=Divergence(), description="Divergence between the distributions of teacher and student"
    )
    every_token: bool = Field(
        default=False, description="Train on every token instead of the assistant's messages only"
    )
    on_policy: OnPolicy | None = Field(
        default=None,
        description="Settings for training on the student's own answers, judged by the teacher; default: data only",
    )

    @model_validator(mode="after")
    def _has_one_teacher(self) -> Self:
        if (self.teacher is None) == (self.labels is None):
            raise ValueError("exactly one of 'teacher' (a checkpoint) and 'labels' (made by `puna label`)")
        if (self.teacher is None) == bool(self.data):
            raise ValueError("'data' beside 'teacher', and only there: labels hold the tokens that they are about")
        if self.labels and self.on_policy:
            raise ValueError("no on_policy with labels: the student's own answers are judged by a teacher in memory")
        if self.divergence.kind == "spans" and (self.on_policy or self.temperature != 1):
            raise ValueError("neither on_policy nor another temperature than 1 with divergence.kind = 'spans'")
        if self.labels and self.fresh_identifiers:
            raise ValueError("no fresh_identifiers with labels: `puna label` draws them, with copies = 4 four times")
        return self

    def estimate(self, known: Known) -> Estimate:
        """Estimate steps, time and memory for `puna raise --dry-run`, with the forward passes of a teacher."""
        tokenizer = starting_tokenizer(self, known)
        objective = NextToken(ChatFormat(tokenizer), self.every_token, False)
        if self.labels is not None:
            return estimate_training(self, known, objective, tokenizer, sources=[self.labels])
        assert self.teacher is not None
        widths = network_of(known, self.teacher)
        extra_bytes = FLOAT_BYTES[self.precision] * widths.num_parameters

        def read_by_teacher(lengths: Lengths) -> float:
            return forward_seconds(widths, lengths, self.precision)

        return estimate_training(
            self, known, objective, tokenizer, extra_seconds=read_by_teacher, extra_bytes=extra_bytes
        )


def run(config: Config, run: Run) -> None:
    """Write a student checkpoint distilled from `config.teacher` or `config.labels`."""
    model, tokenizer = starting_model(config)
    if config.labels:
        labels = read_header(config.labels)
        require_fit(config, labels, tokenizer)
        run.log(_described(labels))
        objective = _spans_of_labels if config.divergence.kind == "spans" else stored_labels
        read = config.model_copy(update={"data": [config.labels]})
        fit(read, run, objective(config, tokenizer), model, tokenizer)
        return
    assert config.teacher
    teacher = Checkpoint.open(config.teacher)
    plain = NextToken(ChatFormat(tokenizer), config.every_token, config.fresh_identifiers)
    if config.divergence.kind == "spans":
        # Lengths follow from the text alone, so the plain objective stands for the teacher.
        config = adapt(config, run, plain, model)
        fit(config, run, _spans_of_teacher(config, tokenizer, teacher), model, tokenizer)
        return
    _require_shared_tokenizer(config.teacher, teacher, tokenizer)
    objective = live_teacher(config, tokenizer, teacher.load(config.dtype))
    on_policy = config.on_policy
    if on_policy is None:
        fit(config, run, objective, model, tokenizer)
        return
    config = adapt(config, run, plain, model, room_for_answer=on_policy.max_tokens)
    pool = Pool()
    mixed = OnPolicyTeacher(objective, on_policy.share, pool)
    answers = _StudentAnswers(Answering(on_policy, config, run, model, objective.chat, pool))
    fit(config, run, mixed, model, tokenizer, observers=[answers])


class _StudentAnswers(Observer):
    """Observer that refreshes the student's answers before a step."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def before_step(self, training: Training) -> None:
        self._answering.fill(training.state.step)


def _spans_of_teacher(config: Config, tokenizer: Tokenizer, teacher: Checkpoint) -> CrossTokenizer:
    context = teacher.config.max_context
    size = {"top_k": 1, "temperature": 1.0, "context": context, "batch_tokens": context}
    loaded = teacher.load(config.dtype)
    if ranks()[1] == 1:
        loaded.to(choose_device(config.parallel.device))
    other = teacher.tokenizer()
    asked = LocalTeacher(loaded, other, dtype=config.dtype, **size)
    return _across(config, tokenizer, other, live_knowledge(asked))


def _spans_of_labels(config: Config, tokenizer: Tokenizer) -> CrossTokenizer:
    assert config.labels
    known = stored_knowledge(Dataset([config.labels], (LABELS,)))
    return _across(config, tokenizer, Tokenizer.load(config.labels), known)


def _across(config: Config, tokenizer: Tokenizer, other: Tokenizer, knows: Knows) -> CrossTokenizer:
    chats = ChatFormat(tokenizer), ChatFormat(other)
    settings = (config.every_token, config.fresh_identifiers)
    return CrossTokenizer(chats[0], *settings, chats[1], knows, config.teacher_weight)


def live_teacher(config: Config, tokenizer: Tokenizer, teacher: Llama) -> LiveTeacher:
    """Return the objective with a teacher in memory."""
    return LiveTeacher(
        ChatFormat(tokenizer),
        config.every_token,
        config.fresh_identifiers,
        config.divergence,
        teacher,
        config.dtype,
        config.temperature,
        config.teacher_weight,
    )


def stored_labels(config: Config, tokenizer: Tokenizer) -> StoredLabels:
    """Return the objective on stored logits."""
    return StoredLabels(
        ChatFormat(tokenizer),
        config.every_token,
        config.fresh_identifiers,
        config.divergence,
        config.temperature,
        config.teacher_weight,
    )


def require_fit(config: Config, labels: LabelHeader, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for stored logits of another tokenizer, temperature or loss mask."""
    if labels.tokenizer != tokenizer.fingerprint and config.divergence.kind != "spans":
        given = f"labels {config.labels} were made with another tokenizer than the student's"
        raise ConfigError(given, expected="the same tokenizer.json", hint=TOKENIZER_HINT)
    if labels.vocab_size > tokenizer.vocab_size and config.divergence.kind != "spans":
        given = f"labels {config.labels} of {labels.vocab_size:,} token ids, rows without a token among them"
        hint = "Label again: padding rows of the embeddings are now left out"
        raise ConfigError(given, expected=f"at most the tokenizer's {tokenizer.vocab_size:,}", hint=hint)
    for name in ("temperature", "every_token"):
        asked, taken = getattr(config, name), getattr(labels, name)
        if asked != taken:
            hint = f"Set {name} = {str(taken).lower()} here, or label again with {name} = {str(asked).lower()}"
            raise ConfigError(f"{name} = {asked}", expected=f"{taken}, as in the labels", hint=hint)


def _require_shared_tokenizer(path: Path, teacher: Checkpoint, tokenizer: Tokenizer) -> None:
    if teacher.tokenizer().fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"teacher {path} has another tokenizer than the student",
            expected="the same tokenizer.json",
            hint=TOKENIZER_HINT,
        )


def _described(labels: LabelHeader) -> str:
    tail = labels.measured.get("tail", 0.0)
    return (
        f"{labels.num_labels:,} labels of {labels.teacher}: the {labels.top_k} most likely tokens, "
        f"{tail:.2%} of the mass lies outside"
    )
