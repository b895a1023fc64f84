"""Documents or conversations and a teacher -> labels: the teacher's top-k next-token probabilities, stored for distill.

The artifact holds the rows beside the labels, so every other stage reads the artifact as a dataset.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.data.labels import LabelHeader
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.http import EndpointClient
from puna.model.kernels.device import DeviceName, choose_device
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts import licence
from puna.pipeline.config import Precision, StageConfig
from puna.pipeline.errors import ChatError, ConfigError, DataError
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.pipeline.progress import Progress
from puna.pipeline.run import Run
from puna.planning.plan.arithmetic import FLOAT_BYTES
from puna.planning.plan.steps.facts import MAX_SAMPLE, dataset_of, network_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import weight_seconds
from puna.training.loop.defaults import MAX_CONTEXT, RowLengths, choose_context, context_reason
from puna.training.objectives.next_token import NextToken
from puna.training.teacher.answering import AnsweringTeacher
from puna.training.teacher.local import LocalTeacher
from puna.training.teacher.rate import LOGITS_BYTES, reading_rate
from puna.training.teacher.scoring import ScoringTeacher
from puna.training.teacher.settings import TeacherEndpoint
from puna.training.teacher.shards import Note, ShardDirectory
from puna.training.teacher.teacher import Item, Labelled, Teacher


class Config(StageConfig):
    """Store a teacher's next-token probabilities for every trained token.

    Example: a recipe's table.

        [label]
        data = ["build/synthesize"]
        teacher = "build/teacher"
        top_k = 64
    """

    data: list[Path] = Field(min_length=1, description="Datasets to label, concatenated in this order")
    teacher: Path | None = Field(
        default=None, description="Checkpoint of the teacher, quantized or not, which runs in this process"
    )
    endpoint: TeacherEndpoint | None = Field(
        default=None, description="OpenAI-compatible endpoint of the teacher, in place of a checkpoint"
    )
    top_k: int = Field(
        default=64,
        ge=1,
        le=1_048_576,
        description="Number of most likely tokens stored per label; more take disk space, fewer lose probability mass",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=20,
        description="Temperature of the teacher's logits; above 1 softens the labels, and distill uses the same value",
    )
    every_token: bool = Field(
        default=False, description="Whether to label all tokens in place of the assistant's tokens alone"
    )
    copies: int = Field(
        default=1, ge=1, le=1000, description="Number of copies of every row, with different identifiers in every copy"
    )
    fresh_identifiers: bool = Field(
        default=False, description="Whether to replace the digits of identifiers at random in every copy"
    )
    max_length: int | None = Field(
        default=None,
        ge=16,
        le=131_072,
        serialization_alias="context",
        description="Maximum row length in tokens, 16 to 131,072; default: chosen from the lengths of the data",
    )
    batch_tokens: int = Field(
        default=8192, ge=16, description="Number of tokens per batch; larger batches are faster and use more memory"
    )
    shard_tokens: int = Field(
        default=65_536,
        ge=16,
        description="Number of tokens per label file; a resumed run continues after the last complete file",
    )
    precision: Precision = Field(default="bfloat16", description="Floating-point format in which the teacher computes")
    device: DeviceName = Field(
        default="auto", description="Device on which the teacher computes; auto takes a GPU if there is one"
    )
    seed: int = Field(default=0, ge=0, description="Seed of random identifiers, and of sampled answers of an endpoint")
    licence: str = Field(default="", description="Licence of the endpoint's model and of raw data, such as Apache-2.0")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.teacher is None) == (self.endpoint is None):
            raise ValueError("exactly one of 'teacher' (a checkpoint) and 'endpoint' (a table with url and model)")
        if self.copies > 1 and not self.fresh_identifiers:
            raise ValueError("copies = 1 without fresh_identifiers: further copies would be identical")
        if self.endpoint and self.temperature != 1:
            raise ValueError("temperature = 1 with an endpoint, which returns unscaled probabilities")
        if self.endpoint and self.endpoint.answers and (self.every_token or self.fresh_identifiers):
            raise ValueError("neither every_token nor fresh_identifiers with endpoint.answers, which are new text")
        return self

    def stated_licence(self) -> str:
        """Return `licence`."""
        return self.licence

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of a local teacher, which reads every row once; an endpoint's speed is unknown."""
        if self.teacher is None:
            return Estimate()
        widths, where = network_of(known, self.teacher), tokenizer_path(known, self.teacher)
        plain = NextToken(ChatFormat(Tokenizer.load(where)), self.every_token, False)
        dataset = dataset_of(known, self.data, plain.kinds)
        found = RowLengths.read(dataset, plain, seed=self.seed)
        tokens = round(self.copies * sum(map(sum, found.rows)) * found.num_rows / max(1, len(found.rows)))
        rate = reading_rate(widths, self.precision, min(self.top_k, widths.vocab_size))
        memory = PROCESS_BYTES + FLOAT_BYTES[self.precision] * widths.num_parameters
        memory += LOGITS_BYTES + self.batch_tokens * widths.dim * 40
        rows = [dataset[index] for index in range(min(len(dataset), MAX_SAMPLE))]
        kinds = {"documents": Document, "conversations": Conversation}
        samples = {kind: [row for row in rows if isinstance(row, each)] for kind, each in kinds.items()}
        counts = {kind: self.copies * len(dataset) * len(some) // len(rows) for kind, some in samples.items()}
        sketch = Sketch(None, where, samples, counts)
        seconds = STAGE_SECONDS + tokens / rate + weight_seconds(widths)
        return Estimate(seconds, memory, sketch, note=f"{tokens:,} tokens read by the teacher")

    @property
    def max_row_tokens(self) -> int:
        """The maximum row length in tokens, after `_with_max_length`."""
        assert self.max_length is not None, "max_length is chosen before the first row"
        return self.max_length


def run(config: Config, run: Run) -> None:
    """Write labels with header, the labelled rows and the tokenizer."""
    config, tokenizer, teacher = _open_teacher(config, run)
    vocab_size = tokenizer.vocab_size
    rows = _Rows(config, tokenizer)
    shards = ShardDirectory(run, vocab_size=vocab_size)
    if shards.end:
        run.log(f"resuming after {shards.end:,} rows")
    with run.progress(len(rows), "labelling", unit="rows", done=shards.end) as bar:
        while shards.end < len(rows):
            _label_shard(teacher, rows, shards, bar)
    total = shards.total()
    _tell(run, total)
    top_k = min(config.top_k, vocab_size - len(tokenizer.unused_ids))
    shards.publish(run.output)
    tokenizer.save(run.output)
    # A content hash in place of the path: moving the teacher leaves the labels byte-equal. The manifest has the path.
    local = f"checkpoint {run.hashes.get('teacher', '')[:12]}"
    name = local if config.endpoint is None else f"{config.endpoint.model} at {config.endpoint.url}"
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


def _open_teacher(config: Config, run: Run) -> tuple[Config, Tokenizer, Teacher]:
    """Return the config with a chosen max_length, the tokenizer and the teacher."""
    if endpoint := config.endpoint:
        tokenizer = Tokenizer.load(endpoint.tokenizer)
        run.licences.add(licence.identify(config.licence) if config.licence else licence.UNKNOWN)
        client = EndpointClient.open(endpoint, run.secret, run.log)
        config = _with_max_length(config, run, tokenizer, MAX_CONTEXT)
        if endpoint.answers:
            completer = EndpointCompleter(client)
            return config, tokenizer, AnsweringTeacher(completer, endpoint, tokenizer, config.top_k, config.seed)
        return config, tokenizer, ScoringTeacher(client, endpoint, tokenizer, config.top_k, config.max_row_tokens)
    assert config.teacher
    checkpoint = Checkpoint.open(config.teacher)
    tokenizer = checkpoint.tokenizer()
    config = _with_max_length(config, run, tokenizer, checkpoint.config.max_context)
    if config.max_row_tokens > checkpoint.config.max_context:
        expected = f"at most the teacher's {checkpoint.config.max_context}"
        raise ConfigError(f"max_length = {config.max_length}", expected=expected)
    dtype = torch_dtype(config.precision)
    device = choose_device(config.device)
    teacher = LocalTeacher(
        checkpoint.load(dtype).to(device),
        tokenizer,
        dtype=dtype,
        top_k=config.top_k,
        temperature=config.temperature,
        context=config.max_row_tokens,
        batch_tokens=config.batch_tokens,
    )
    return config, tokenizer, teacher


def _with_max_length(config: Config, run: Run, tokenizer: Tokenizer, bound: int) -> Config:
    """Choose an unset max_length from the lengths of the data, as the training stages do."""
    if config.max_length is not None:
        return config
    plain = NextToken(ChatFormat(tokenizer), config.every_token, False)
    found = RowLengths.read(Dataset(config.data, plain.kinds), plain, seed=config.seed)
    max_length = choose_context(found, found.context, bound)
    reason = context_reason(found, found.context, max_length)
    run.log(f"chosen for this data: max_length = {max_length:,} ({reason})")
    chosen = config.model_copy(update={"max_length": max_length})
    chosen.write_record(run.directory)
    return chosen


class _Rows:
    """All copies of all rows in order, encoded as in training."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self._config = config
        self._plain = NextToken(ChatFormat(tokenizer), config.every_token, False)
        self._dataset = Dataset(config.data, self._plain.kinds)

    def __len__(self) -> int:
        return self._config.copies * len(self._dataset)

    def take(self, start: int) -> tuple[list[Item], list[Labelled], int]:
        """Return the items of the shard from row `start`, conversations beyond the maximum length, and the end row."""
        items, too_long, num_tokens, end = list[Item](), list[Labelled](), 0, start
        while end < len(self) and num_tokens < self._config.shard_tokens:
            item = self._item(end)
            if items and type(item.row) is not type(items[0].row):
                break
            end += 1
            if isinstance(item.row, Conversation) and len(item.ids) - 1 > self._config.max_row_tokens:
                too_long.append(Labelled(item.row, None, f"longer than {self._config.max_row_tokens} tokens"))
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
            given = f"{self._dataset.location(index)}: {error.given}"
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
    """Stop after three shards without a single label."""
    kept = sum(note.num_rows for note in notes)
    if len(notes) == 3 and not kept:
        raise DataError(
            f"no labels for the first {notes[-1].end:,} rows", expected="labels for some rows", hint=_reasons(notes)
        )


def _tell(run: Run, total: Note) -> None:
    for reason, count in sorted(total.left_out.items()):
        run.log(f"left out {count:,} rows: {reason}")
    if not total.num_labels:
        raise DataError("no labels for any row", expected="labels for some rows", hint=_reasons([total]))
    means = {name: value / total.num_labels for name, value in total.sums.items()}
    run.log(
        f"{total.num_labels:,} labels of {total.num_rows:,} rows: {means['tail']:.2%} of the probability mass outside "
        f"the top k; the teacher's loss {means['loss']:.3f}; the teacher's most likely token in {means['first']:.1%} "
        f"of the text, a stored token in {means['covered']:.1%}"
    )


def _reasons(notes: Sequence[Note]) -> str:
    return "Left out: " + "; ".join(sorted({reason for note in notes for reason in note.left_out}))
