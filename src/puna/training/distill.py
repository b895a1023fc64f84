"""A teacher, or what `puna label` kept of one, and conversations -> a student that foresees what the teacher foresees.

Teacher and student share a tokenizer, unless it is the likelihoods of spans that are compared.
"""

from dataclasses import fields
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
from puna.training.loop.defaults import adapt
from puna.training.loop.loop import train
from puna.training.loop.start import starting_model
from puna.training.objectives.distillation.cross_tokenizer import (
    AcrossTokenizers,
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
    """Train a student on a teacher's distributions, mixed with the data's own tokens."""

    data: list[Path] = Field(default=[], description="datasets, read as one; labels are their own")
    teacher: Path | None = Field(default=None, description="checkpoint to learn from; either this or labels")
    labels: Path | None = Field(default=None, description="what `puna label` kept of a teacher")
    temperature: float = Field(default=1.0, gt=0, le=20, description="softens both distributions")
    teacher_weight: float = Field(default=0.8, ge=0, le=1, description="share of the teacher in the loss")
    divergence: Divergence = Field(default=Divergence(), description="how far from the teacher the student is")
    every_token: bool = Field(default=False, description="learn all tokens, not only what the assistant says")
    on_policy: OnPolicy | None = Field(default=None, description="learn from the student's own answers too")

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
        """Foresee a run of these settings (reports/preview/dry_run.py); a live teacher reads each batch too."""
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
        train(read, run, objective(config, tokenizer), model, tokenizer)
        return
    assert config.teacher
    teacher = Checkpoint.open(config.teacher)
    plain = NextToken(ChatFormat(tokenizer), config.every_token, config.fresh_identifiers)
    if config.divergence.kind == "spans":
        # The lengths are those of the text: the teacher need not be asked for them.
        config = adapt(config, run, plain, model)
        train(config, run, _spans_of_teacher(config, tokenizer, teacher), model, tokenizer)
        return
    _require_shared_tokenizer(config.teacher, teacher, tokenizer)
    objective = live_teacher(config, tokenizer, teacher.load(config.dtype))
    on_policy = config.on_policy
    if on_policy is None:
        train(config, run, objective, model, tokenizer)
        return
    config = adapt(config, run, plain, model, room_for_answer=on_policy.max_tokens)
    pool = Pool()
    answering = Answering(on_policy, config, run, model, objective.chat, pool)
    told = {each.name: getattr(objective, each.name) for each in fields(objective)}
    mixed = OnPolicyTeacher(**told, share=on_policy.share, pool=pool)
    train(config, run, mixed, model, tokenizer, before_step=answering)


def _spans_of_teacher(config: Config, tokenizer: Tokenizer, teacher: Checkpoint) -> AcrossTokenizers:
    context = teacher.config.max_context
    size = {"top_k": 1, "temperature": 1.0, "context": context, "batch_tokens": context}
    loaded = teacher.load(config.dtype)
    if ranks()[1] == 1:
        loaded.to(choose_device(config.parallel.device))
    other = teacher.tokenizer()
    asked = LocalTeacher(loaded, other, dtype=config.dtype, **size)
    return _across(config, tokenizer, other, live_knowledge(asked))


def _spans_of_labels(config: Config, tokenizer: Tokenizer) -> AcrossTokenizers:
    assert config.labels
    known = stored_knowledge(Dataset([config.labels], (LABELS,)))
    return _across(config, tokenizer, Tokenizer.load(config.labels), known)


def _across(config: Config, tokenizer: Tokenizer, other: Tokenizer, knows: Knows) -> AcrossTokenizers:
    chats = ChatFormat(tokenizer), ChatFormat(other)
    settings = (config.every_token, config.fresh_identifiers)
    return AcrossTokenizers(chats[0], *settings, chats[1], knows, config.teacher_weight)


def live_teacher(config: Config, tokenizer: Tokenizer, teacher: Llama) -> LiveTeacher:
    """Return the objective of a teacher in memory."""
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
    """Return the objective of labels."""
    return StoredLabels(
        ChatFormat(tokenizer),
        config.every_token,
        config.fresh_identifiers,
        config.divergence,
        config.temperature,
        config.teacher_weight,
    )


def require_fit(config: Config, labels: LabelHeader, tokenizer: Tokenizer) -> None:
    """Refuse labels that are about other tokens than the student's, or that were taken otherwise than is asked for."""
    if labels.tokenizer != tokenizer.fingerprint and config.divergence.kind != "spans":
        given = f"labels {config.labels} are of another tokenizer than the student's"
        raise ConfigError(given, expected="the same tokenizer.json", hint=TOKENIZER_HINT)
    if labels.vocab_size > tokenizer.vocab_size and config.divergence.kind != "spans":
        given = f"labels {config.labels} of {labels.vocab_size:,} token ids, rows without a token among them"
        hint = "Label again: rows of the embeddings that no token belongs to are left out now"
        raise ConfigError(given, expected=f"at most the tokenizer's {tokenizer.vocab_size:,}", hint=hint)
    for name in ("temperature", "every_token"):
        asked, taken = getattr(config, name), getattr(labels, name)
        if asked != taken:
            hint = f"Give {name} = {str(taken).lower()} here, or label again with the other"
            raise ConfigError(f"{name} = {asked}", expected=f"{taken}, at which the labels were taken", hint=hint)


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
