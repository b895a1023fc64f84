"""A folder of raw files -> documents, conversations, preferences, and rejected.jsonl with a reason for each record."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from pydantic import Field

from puna import licence
from puna.chat.conversation import Conversation
from puna.config import StageConfig
from puna.data.document import Document
from puna.data.preference import Preference
from puna.data.shards import encode_row
from puna.errors import ConfigError, DataError
from puna.estimate import Estimate, Known
from puna.ingest.readers import FORMATS
from puna.ingest.sketch import estimate_reading
from puna.run import Run

SHARDS: dict[type, str] = {Document: "documents", Conversation: "conversations", Preference: "preferences"}


class Config(StageConfig):
    """Read every file of a folder that the format takes, in the order of their names, but no hidden ones."""

    source: Path = Field(description="a file, or a folder that is read with its sub-folders")
    format: str = Field(default="text", description=f"how to read it: {', '.join(FORMATS)}")
    include: list[str] = Field(default=["*"], description="file names to take, as shell patterns")
    licence: str = Field(default="", description="terms that every artifact made from this inherits")

    def estimate(self, known: Known) -> Estimate:
        """Read the first rows of the files, so that later steps of a dry run know what comes."""
        return estimate_reading(_files(self), self.format)


def run(config: Config, run: Run) -> None:
    """Write the dataset; DataError if nothing could be read."""
    files = _files(config)
    counts, reasons, first_reason = Counter[str](), Counter[str](), ""
    with contextlib.ExitStack() as stack, run.progress(len(files), "reading", unit="files") as bar:
        shards: dict[str, IO[bytes]] = {}
        for name in (*SHARDS.values(), "rejected"):
            shards[name] = stack.enter_context((run.output / f"{name}.jsonl").open("wb"))
        for file in files:
            for name, line, reason in _read(config, file, run.licences):
                shards[name].write(line)
                counts[name] += 1
                if reason:
                    reasons[reason.partition(":")[0]] += 1
                    first_reason = first_reason or reason
            bar.advance()
    if counts["rejected"] == counts.total():
        raise DataError(
            f"nothing in {config.source} could be read",
            expected=f"records of format '{config.format}'",
            hint=f"The first of {counts['rejected']} reasons: {first_reason}",
        )
    for name in SHARDS.values():
        if not counts[name]:
            (run.output / f"{name}.jsonl").unlink()
    # Where there are no preferences, as mostly, nothing is said of them.
    run.log(", ".join(f"{counts[name]:,} {name}" for name in shards if counts[name] or name != "preferences"))
    for reason, count in reasons.most_common():
        run.log(f"  rejected {count}: {reason}")


def _files(config: Config) -> list[Path]:
    """List the files to read; those that the format does not take are among them, to be rejected by name."""
    if config.format not in FORMATS:
        raise ConfigError(f"format = '{config.format}'", expected=", ".join(FORMATS))
    if not config.source.exists():
        raise DataError(f"source {config.source} does not exist", expected="a file or a folder")
    if config.source.is_file():
        return [config.source]
    found = (file for file in sorted(config.source.rglob("*")) if not file.is_dir())
    files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(config.source).parts)]
    files = [file for file in files if any(file.match(pattern) for pattern in config.include)]
    if not files:
        raise DataError(f"no file in {config.source} fits", expected=f"files named {', '.join(config.include)}")
    return files


def _read(config: Config, file: Path, licences: set[str]) -> Iterator[tuple[str, bytes, str]]:
    """Yield (shard, line, reason) for every record of a file; only a rejected one has a reason.

    The licences that records name are added to `licences`: what is made of them inherits those too.
    """
    source = file.relative_to(config.source).as_posix() if file != config.source else file.name
    suffixes = FORMATS[config.format].suffixes
    if not file.name.lower().endswith(suffixes):
        yield _reject(source, f"not a file of format '{config.format}' ({', '.join(suffixes)}): {file.suffix}")
        return
    for row in FORMATS[config.format].read(file, source):
        if isinstance(row, tuple):
            yield _reject(*row)
            continue
        if isinstance(row, Conversation) and all(message.role != "assistant" for message in row.messages):
            yield _reject(row.id or source, "a conversation in which no assistant speaks")
            continue
        if isinstance(row, Document):
            row = replace(row, licence=row.licence or config.licence)
            licences |= {licence.identify(row.licence)} if row.licence else set()
        try:
            yield SHARDS[type(row)], encode_row(row.to_json()), ""
        except DataError as error:
            yield _reject(row.id or source, str(error))


def _reject(name: str, reason: str) -> tuple[str, bytes, str]:
    return "rejected", encode_row({"id": name, "reason": reason}), reason
