"""Write a stage of your own: replace e-mail addresses in a dataset.

    python examples/write_a_stage.py DATASET build/redacted

A stage is a module with a settings class `Config` and a function `run`. Outside of the package, call it with `perform`:
the artifact gets a manifest, is reused while settings and inputs stay the same, and appears in `puna lineage`. Recipes
and the command line know the stages of the package alone; CONTRIBUTING.md shows how to add one there.
"""

import json
import re
import sys
from pathlib import Path

from pydantic import Field
from rich.console import Console

from puna.pipeline.config import StageConfig
from puna.pipeline.execution.executor import perform
from puna.pipeline.run import Run
from puna.pipeline.stages import Stage

ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


class Config(StageConfig):
    """Settings of the stage. A `Path` is an input: its content counts in the key of the artifact."""

    data: Path = Field(description="Dataset whose documents and conversations are redacted")
    replacement: str = Field(default="[e-mail]", description="Text in place of every e-mail address")


def run(config: Config, run: Run) -> None:
    """Write the dataset without e-mail addresses into `run.output`."""
    shards = sorted(config.data.glob("*.jsonl"))
    num_addresses = 0
    with run.progress(len(shards), "redacting", unit="files") as bar:
        for shard in shards:
            with (run.output / shard.name).open("w", encoding="utf-8") as file:
                for line in shard.read_text(encoding="utf-8").splitlines():
                    row, count = redact(json.loads(line), config.replacement)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    num_addresses += count
            bar.advance(1)
    run.log(f"{num_addresses} e-mail addresses replaced")


def redact(value: object, replacement: str) -> tuple[object, int]:
    """Return a JSON value with addresses replaced in all of its texts, and the number of addresses."""
    if isinstance(value, str):
        return ADDRESS.subn(replacement, value)
    if isinstance(value, list):
        parts = [redact(item, replacement) for item in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        parts = {key: redact(item, replacement) for key, item in value.items()}
        return {key: part for key, (part, _) in parts.items()}, sum(count for _, count in parts.values())
    return value, 0


class OwnStage(Stage):
    """A row of the stage table whose code is this file, not a file of the package."""

    module = __name__


REDACT = OwnStage("redact", "redact", ("dataset",), ("dataset",), "Replace e-mail addresses in a dataset")


def main(data: Path, out: Path) -> bool:
    """Make the artifact; return False if it was there already."""
    return perform(REDACT, Config(data=data), out, Console())


if __name__ == "__main__":
    print("done" if main(Path(sys.argv[1]), Path(sys.argv[2])) else "up to date")
