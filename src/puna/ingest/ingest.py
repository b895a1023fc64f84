"""A folder of raw files -> documents.jsonl, conversations.jsonl, and rejected.jsonl with a reason for each record."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from puna.chat.conversation import Conversation
from puna.config import StageConfig
from puna.data.document import Document
from puna.data.shards import write_jsonl
from puna.errors import ConfigError, DataError
from puna.ingest.readers import FORMATS
from puna.run import Run


class Config(StageConfig):
    """Read every file of a folder that the format takes, in the order of their names."""

    source: Path = Field(description="a file, or a folder that is read with its sub-folders")
    format: str = Field(default="text", description=f"how to read it: {', '.join(FORMATS)}")
    include: list[str] = Field(default=["*"], description="file names to take, as shell patterns")
    licence: str = Field(default="", description="terms that every artifact made from this inherits")


def run(config: Config, run: Run) -> None:
    """Write the dataset; DataError if nothing could be read."""
    files = _files(config)
    rows: dict[type, list] = {Document: [], Conversation: [], tuple: []}
    with run.progress(len(files), "reading", unit="files") as bar:
        for file in files:
            for row in _read(config, file):
                rows[type(row)].append(row)
            bar.advance()
    documents, conversations = rows[Document], rows[Conversation]
    if not documents and not conversations:
        raise DataError(
            f"nothing in {config.source} could be read", expected=f"records of format '{config.format}'"
        )
    for name, kept in (("documents", documents), ("conversations", conversations)):
        if kept:
            write_jsonl(run.output / f"{name}.jsonl", (row.to_json() for row in kept))
    write_jsonl(run.output / "rejected.jsonl", ({"id": name, "reason": reason} for name, reason in rows[tuple]))
    run.log(f"{len(documents):,} documents, {len(conversations):,} conversations, {len(rows[tuple])} rejected")
    for reason, count in Counter(reason.partition(":")[0] for _, reason in rows[tuple]).most_common():
        run.log(f"  rejected {count}: {reason}")


def _files(config: Config) -> list[Path]:
    if config.format not in FORMATS:
        raise ConfigError(f"format = '{config.format}'", expected=", ".join(FORMATS))
    if not config.source.exists():
        raise DataError(f"source {config.source} does not exist", expected="a file or a folder")
    suffixes = FORMATS[config.format].suffixes
    found = [config.source] if config.source.is_file() else sorted(config.source.rglob("*"))
    files = [f for f in found if f.name.endswith(suffixes) and any(f.match(pattern) for pattern in config.include)]
    if not files:
        raise DataError(f"no file in {config.source} fits", expected=f"{', '.join(suffixes)} named {config.include}")
    return files


def _read(config: Config, file: Path) -> Iterator[Document | Conversation | tuple[str, str]]:
    source = file.relative_to(config.source).as_posix() if file != config.source else file.name
    for row in FORMATS[config.format].read(file, source):
        if isinstance(row, Document):
            row = replace(row, licence=row.licence or config.licence)
        yield row
