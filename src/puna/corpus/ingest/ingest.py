"""A folder of raw files -> documents, conversations and preferences; rejected.jsonl gives reasons for rejected records.

Example:
    [ingest]
    source = "exports"
    format = "records"
    apart_from = ["data/held_out"]
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from pydantic import Field

from puna.corpus.ingest.checks.findings import DataFinding, find, frequent_answer
from puna.corpus.ingest.checks.held_out import HeldOut
from puna.corpus.ingest.checks.selection import Duplicates, Selection, leave_out
from puna.corpus.ingest.checks.table import MAX_NEAR_ROWS, Table
from puna.corpus.ingest.files import SourceFile, find_files
from puna.corpus.ingest.formats import FORMATS
from puna.corpus.ingest.reading_report import SHARDS, ReadingReport, kind_of
from puna.corpus.ingest.results import Accepted, Read, Rejected, Row
from puna.corpus.ingest.sketch import estimate_reading
from puna.data.document import Document
from puna.data.shards import encode_row
from puna.formats.chat.conversation import Conversation
from puna.pipeline.artifacts import artifact, licence
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError, DataError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.progress import printable
from puna.pipeline.run import Run

MAX_REASONS = 20  # in the log
MAX_REASON_CHARACTERS = 2000  # A reason quotes names of fields, which may be of any length.
# NOTE: a record of the run stays out of the content hash, so later stages do not run again when only findings change.
FINDINGS = artifact.RECORD_PREFIX + "findings.json"


class Config(StageConfig):
    """Source, format, and filters of rows; files are read by name, except hidden files. Example: see the module."""

    source: Path = Field(description="File, or folder with subfolders, to read")
    format: str = Field(default="text", description=f"Format of the files: {', '.join(FORMATS)}")
    include: list[str] = Field(default=["*"], description="File names to read, as shell patterns such as *.jsonl")
    licence: str = Field(
        default="", description="Licence terms of the data, inherited by every artifact made from the data"
    )
    apart_from: list[Path] = Field(
        default=[],
        description="Held-out datasets; rows with a question of a held-out dataset are left out",
    )
    drop_duplicates: Duplicates = Field(
        default="none",
        description="Removal of duplicate rows: none, exact, or near (exact and nearly equal rows)",
    )
    drop_empty: bool = Field(
        default=True, description="Whether to leave out rows with an empty answer: neither words nor a tool call"
    )
    max_equal_answers: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of rows with the same answer, counted from the first row; default: all",
    )

    def stated_licence(self) -> str:
        """Return `licence`."""
        return self.licence

    def made_of(self) -> dict[str, Path]:
        """Return the inputs with inherited licences, without `apart_from`: a filter copies no text."""
        return {role: path for role, path in self.inputs().items() if not role.startswith("apart_from")}

    def estimate(self, known: Known) -> Estimate:
        """Sample the first rows, for the estimates of later stages in a dry run."""
        return estimate_reading(_files(self), self.format)


def run(config: Config, run: Run) -> None:
    """Write the dataset and run_findings.json.

    Raises:
        DataError: No readable record, or no row left after the filters.
    """
    reading = _read_all(config, run)
    shards = {name: run.output / f"{name}.jsonl" for name in SHARDS.values()}
    with run.progress(len(shards), "comparing rows", unit="shards") as bar:
        tables: list[Table] = []
        for name, path in shards.items():
            if path.stat().st_size:
                tables.append(Table.read(name, path, reading.places[name]))
            bar.advance()
        settings = (config.apart_from, config.drop_duplicates, config.drop_empty, config.max_equal_answers)
        held_out = leave_out(Selection(*settings), tables)
    findings = find(tables, reading.rejected, reading.reasons.total())
    for table in tables:
        _drop_rows(table, shards[table.kind], run.output / "rejected.jsonl", reading)
    counts = dict.fromkeys(SHARDS.values(), 0) | {table.kind: table.num_kept for table in tables}
    if not any(counts.values()):
        raise DataError(
            f"none of {sum(len(table.rows) for table in tables):,} rows is left",
            expected="at least one row that passes the filters in the settings",
            hint=f"The most frequent reason: {reading.reasons.most_common(1)[0][0]}",
        )
    for name in SHARDS.values():
        if not counts[name]:
            shards[name].unlink()
    _report(run, counts | {"rejected": reading.reasons.total()}, reading, tables, held_out, findings)


def _read_all(config: Config, run: Run) -> ReadingReport:
    """Write the rows of all files, before any filter; DataError without a readable record."""
    files, reading = _files(config), ReadingReport()
    num_rows = 0
    with contextlib.ExitStack() as stack, run.progress(len(files), "reading", unit="files") as bar:
        shards: dict[str, IO[bytes]] = {}
        for name in (*SHARDS.values(), "rejected"):
            shards[name] = stack.enter_context((run.output / f"{name}.jsonl").open("wb"))
        first_reason = ""
        for file in files:
            for number, read in enumerate(_read(config, file), start=1):
                read, line = _finished(read, reading, config.licence)
                if isinstance(read, Rejected):
                    shards["rejected"].write(line)
                    reading.reject(read)
                    first_reason = first_reason or read.reason
                    continue
                shards[SHARDS[type(read.row)]].write(line)
                reading.accept(read, file.name, number)
                num_rows += 1
                # Artifacts made from the rows inherit the licences of the rows.
                if isinstance(read.row, Document) and read.row.licence:
                    run.licences.add(licence.identify(read.row.licence))
            bar.advance()
    if not num_rows:
        others = [reason for reason, _ in reading.reasons.most_common(5) if not first_reason.startswith(reason)]
        more = f". Others: {'; '.join(others)}" if others else ""
        raise DataError(
            f"nothing in {config.source} could be read",
            expected=f"records of format '{config.format}'",
            hint=f"The first of {reading.reasons.total()} reasons: {first_reason}{more}",
        )
    return reading


def _drop_rows(table: Table, shard: Path, rejected: Path, reading: ReadingReport) -> None:
    """Move rejected rows from a shard to rejected.jsonl, with place and reason."""
    if not table.left_out:
        return
    remaining = shard.with_suffix(".kept")
    with remaining.open("wb") as staying, rejected.open("ab") as leaving:
        for index, row in enumerate(table.rows):
            if index not in table.left_out:
                staying.write(encode_row(row))
                continue
            place, reason = table.places[index], table.left_out[index]
            reading.reasons[kind_of(reason)] += 1
            leaving.write(encode_row({"id": row.get("id") or place, "reason": reason, "place": place, "row": row}))
    remaining.replace(shard)


def _report(
    run: Run,
    counts: Mapping[str, int],
    reading: ReadingReport,
    tables: Sequence[Table],
    held_out: HeldOut | None,
    findings: Sequence[DataFinding],
) -> None:
    """Log the numbers of rows, the reasons for rejections and the findings; write run_findings.json."""
    # Most datasets have no preferences: a zero would only distract.
    run.log(", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name != "preferences"))
    for reason, count in reading.reasons.most_common(MAX_REASONS):
        run.log(f"  rejected {count}: {reason}")
    if len(reading.reasons) > MAX_REASONS:
        run.log(f"  and {len(reading.reasons) - MAX_REASONS:,} other reasons, which rejected.jsonl lists")
    for line in reading.lines():
        run.log(line)
    if held_out is not None:
        run.log(f"  {held_out.summary}")
    frequent = {table.kind: answer for table in tables if (answer := frequent_answer(table))}
    for answer in frequent.values():
        run.log(f"  {answer.summary}")
    for table in tables:
        if len(table.rows) > MAX_NEAR_ROWS:
            run.log(
                f"  near duplicates: searched among the first {MAX_NEAR_ROWS:,} of {len(table.rows):,} {table.kind}"
            )
    for row in findings:
        run.log(f"{row.finding.code}: {row.finding.seen} {row.finding.remedy}")
    report = {
        "rows": counts,
        "reasons": dict(reading.reasons.most_common()),
        **reading.notes(),
        "held_out": held_out.summary if held_out else "",
        "most_frequent_answers": {
            kind: {"text": answer.text, "count": answer.count, "total": answer.total, "share": answer.share}
            for kind, answer in frequent.items()
        },
        "findings": [row.to_json() for row in findings],
    }
    artifact.write_text(run.output / FINDINGS, printable(json.dumps(report, indent=1, ensure_ascii=False)) + "\n")


def _files(config: Config) -> list[SourceFile]:
    """List the files of the source, also files of other formats: `_read` rejects them by name."""
    if config.format not in FORMATS:
        raise ConfigError(f"format = '{config.format}'", expected=", ".join(FORMATS))
    return find_files(config.source, config.include)


def _read(config: Config, file: SourceFile) -> Iterator[Read]:
    suffixes = FORMATS[config.format].suffixes
    if file.refusal:
        yield Rejected(file.name, file.refusal)
    elif not file.path.name.lower().endswith(suffixes):
        expected = f"not a file of format '{config.format}' ({', '.join(suffixes)})"
        yield Rejected(file.name, f"{expected}: {file.path.suffix}")
    else:
        yield from FORMATS[config.format].read(file.path, file.name)


def _finished(read: Read, reading: ReadingReport, default_licence: str) -> tuple[Read, bytes]:
    """Return a row with licence and unique id, or a rejection, together with the encoded line."""
    if isinstance(read, Accepted):
        if isinstance(read.row, Document) and not read.row.licence:
            read = read._replace(row=replace(read.row, licence=default_licence))
        problem = _problem(read.row)
        read = Rejected(read.row.id, problem) if problem else reading.with_own_id(read)
    if isinstance(read, Accepted):
        try:
            return read, encode_row(read.row.to_json())
        except DataError as error:
            read = Rejected(read.row.id, str(error))
    read = read._replace(reason=read.reason[:MAX_REASON_CHARACTERS])
    return read, encode_row({"id": read.name, "reason": read.reason})


def _problem(row: Row) -> str:
    """Return the reason why a row has no trained token; "" for other rows."""
    if not isinstance(row, Conversation) or any(message.is_learned for message in row.messages):
        return ""
    is_silent = all(message.role != "assistant" for message in row.messages)
    if is_silent:
        return "a conversation without an assistant message"
    return "a conversation without a trained message; every answer has weight 0"
