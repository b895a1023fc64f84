"""Documents or conversations and a teacher -> labels: what it foresees at each token, kept so that it runs only once.

The result is a dataset too: its rows stand beside the labels, so that every other stage can read it. Trains nothing.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from puna import licence
from puna.chat.conversation import Conversation
from puna.chat.format import ChatFormat
from puna.checkpoint.checkpoint import Checkpoint
from puna.config import StageConfig
from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.data.identifiers import fresh_identifiers
from puna.data.labels import LabelHeader
from puna.errors import ChatError, ConfigError, DataError
from puna.kernels.device import DeviceName, choose_device
from puna.progress import Progress
from puna.run import Run
from puna.tokenizer.tokenizer import Tokenizer
from puna.train.labelling.answering import AnsweringTeacher
from puna.train.labelling.endpoint import Endpoint, EndpointConfig
from puna.train.labelling.local import LocalTeacher
from puna.train.labelling.scoring import ScoringTeacher
from puna.train.labelling.shards import Note, ShardDirectory
from puna.train.labelling.teacher import Item, Labelled, Teacher
from puna.train.objectives.next_token import NextToken


class Config(StageConfig):
    """Which rows, whose labels, how much of them."""

    data: list[Path] = Field(min_length=1, description="datasets, read as one")
    teacher: Path | None = Field(default=None, description="checkpoint whose labels are kept; quantized ones too")
    endpoint: EndpointConfig | None = Field(default=None, description="an OpenAI-compatible server in its place")
    top_k: int = Field(default=64, ge=1, le=1_048_576, description="most likely tokens that a label names")
    temperature: float = Field(default=1.0, gt=0, le=20, description="softens the labels; distill takes the same")
    every_token: bool = Field(default=False, description="label all tokens, not only what the assistant says")
    copies: int = Field(default=1, ge=1, le=1000, description="of each row, each with identifiers of its own")
    fresh_identifiers: bool = Field(default=False, description="new random digits for identifiers in every copy")
    context: int = Field(default=1024, ge=16, le=131_072, description="tokens of a row that are read together, at most")
    batch_tokens: int = Field(default=8192, ge=16, description="tokens that are read at once")
    shard_tokens: int = Field(
        default=65_536, ge=16, description="tokens in a file; a killed run goes on after the last"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="dtype to compute in")
    device: DeviceName = Field(default="auto", description="where to compute; auto: the GPU where there is one")
    seed: int = Field(default=0, ge=0, description="of the identifiers, and of what an endpoint samples")
    licence: str = Field(default="", description="of the endpoint's model, and of raw data")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.teacher is None) == (self.endpoint is None):
            raise ValueError("exactly one of 'teacher' (a checkpoint) and 'endpoint' (a table with url and model)")
        if self.copies > 1 and not self.fresh_identifiers:
            raise ValueError("copies = 1 without fresh_identifiers: the others would say the same")
        if self.endpoint and self.temperature != 1:
            raise ValueError("temperature = 1 with an endpoint, which tells probabilities as they are")
        if self.endpoint and self.endpoint.answers and (self.every_token or self.fresh_identifiers):
            raise ValueError("neither every_token nor fresh_identifiers with endpoint.answers, which are new text")
        return self


def run(config: Config, run: Run) -> None:
    """Write the labels, their header, the rows that they are about and the tokenizer."""
    tokenizer, vocab_size, teacher = _open_teacher(config, run)
    rows = _Rows(config, tokenizer)
    shards = ShardDirectory(run.directory / "shards", vocab_size=vocab_size)
    if shards.end:
        run.log(f"going on after {shards.end:,} rows")
    with run.progress(len(rows), "labelling", unit="rows", done=shards.end) as bar:
        while shards.end < len(rows):
            _label_shard(teacher, rows, shards, bar)
    total = shards.total()
    _tell(run, total)
    top_k = min(config.top_k, vocab_size)
    shards.publish(run.output)
    tokenizer.save(run.output)
    name = str(config.teacher) if config.endpoint is None else f"{config.endpoint.model} at {config.endpoint.url}"
    LabelHeader(
        teacher=name,
        tokenizer=tokenizer.fingerprint,
        vocab_size=vocab_size,
        top_k=top_k,
        temperature=config.temperature,
        every_token=config.every_token,
        num_rows=total.num_rows,
        num_tokens=total.num_tokens,
        num_labels=total.num_labels,
        measured={name: value / total.num_labels for name, value in total.sums.items()},
    ).save(run.output)


def _open_teacher(config: Config, run: Run) -> tuple[Tokenizer, int, Teacher]:
    if config.endpoint:
        tokenizer = Tokenizer.load(config.endpoint.tokenizer)
        run.licences.add(licence.identify(config.licence) if config.licence else licence.UNKNOWN)
        key = run.secret(config.endpoint.key_variable) if config.endpoint.key_variable else ""
        server = Endpoint(config.endpoint, key, run.log)
        if config.endpoint.answers:
            return tokenizer, tokenizer.vocab_size, AnsweringTeacher(server, tokenizer, config.top_k, config.seed)
        return tokenizer, tokenizer.vocab_size, ScoringTeacher(server, tokenizer, config.top_k, config.context)
    assert config.teacher
    checkpoint = Checkpoint.open(config.teacher)
    if config.context > checkpoint.config.max_context:
        expected = f"at most the teacher's {checkpoint.config.max_context}"
        raise ConfigError(f"context = {config.context}", expected=expected)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    device = choose_device(config.device)
    teacher = LocalTeacher(
        checkpoint.load(dtype).to(device),
        dtype=dtype,
        top_k=config.top_k,
        temperature=config.temperature,
        context=config.context,
        batch_tokens=config.batch_tokens,
    )
    return checkpoint.tokenizer(), checkpoint.config.vocab_size, teacher


class _Rows:
    """All copies of all rows, in order, encoded as they are trained on."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self._config = config
        self._plain = NextToken(ChatFormat(tokenizer), config.every_token, False)
        self._dataset = Dataset(config.data, self._plain.kinds)

    def __len__(self) -> int:
        return self._config.copies * len(self._dataset)

    def take(self, start: int) -> tuple[list[Item], list[Labelled], int]:
        """Return the rows of the shard that begins at `start`, those that are too long for it, and where it ends."""
        items, too_long, num_tokens, end = list[Item](), list[Labelled](), 0, start
        while end < len(self) and num_tokens < self._config.shard_tokens:
            item = self._item(end)
            if items and type(item.row) is not type(items[0].row):
                break
            end += 1
            if isinstance(item.row, Conversation) and len(item.ids) - 1 > self._config.context:
                too_long.append(Labelled(item.row, None, f"longer than {self._config.context} tokens"))
                continue
            items.append(item)
            num_tokens += len(item.ids)
        return items, too_long, end

    def _item(self, place: int) -> Item:
        copy, index = divmod(place, len(self._dataset))
        row = self._dataset[index]
        assert isinstance(row, Document | Conversation)
        source = random.Random(f"{self._config.seed} {copy} {index}")
        try:
            if isinstance(row, Conversation) and self._config.fresh_identifiers:
                row = fresh_identifiers(row, source)
            (example,) = self._plain.encode(row, source)
        except ChatError as error:
            given = f"{self._dataset.place(index)}: {error.given}"
            raise ChatError(given, expected=error.expected, hint=error.hint) from None
        return Item(row, example.ids, example.mask)


def _label_shard(teacher: Teacher, rows: _Rows, shards: ShardDirectory, bar: Progress) -> None:
    items, left_out, end = rows.take(shards.end)
    begin, num_tokens = time.monotonic(), sum(len(item.ids) for item in items)
    labelled = teacher.label(items, bar.advance) if items else []
    shards.write(end, [*labelled, *left_out])
    bar.advance(len(left_out), note=f"{num_tokens / (time.monotonic() - begin):,.0f} tokens/s")
    _require_some(shards.notes)


def _require_some(notes: Sequence[Note]) -> None:
    """Stop early where what is left out shows that nothing will come of it."""
    kept = sum(note.num_rows for note in notes)
    if len(notes) == 3 and not kept:
        raise DataError(f"no row of the first {notes[-1].end:,} has labels", expected="some", hint=_reasons(notes))


def _tell(run: Run, total: Note) -> None:
    for reason, count in sorted(total.left_out.items()):
        run.log(f"left out {count:,} rows: {reason}")
    if not total.num_labels:
        raise DataError("no row has labels", expected="some", hint=_reasons([total]))
    means = {name: value / total.num_labels for name, value in total.sums.items()}
    run.log(
        f"{total.num_labels:,} labels of {total.num_rows:,} rows; outside of them lies {means['tail']:.2%} of the "
        f"mass; the teacher's loss {means['loss']:.3f}, {means['first']:.1%} of the tokens are its first choice, "
        f"{means['covered']:.1%} among its entries"
    )


def _reasons(notes: Sequence[Note]) -> str:
    return "Left out: " + "; ".join(sorted({reason for note in notes for reason in note.left_out}))
