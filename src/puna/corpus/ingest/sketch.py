"""Raw files before ingest -> some rows, the estimated number of rows, and the estimated time to read all rows."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.corpus.ingest.files import SourceFile
from puna.corpus.ingest.formats import FORMATS
from puna.corpus.ingest.reading_report import SHARDS
from puna.corpus.ingest.results import Accepted, Row
from puna.data.shards import encode_row
from puna.pipeline.errors import DataError
from puna.pipeline.estimate import Estimate, Sketch
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS

MAX_ROWS = 1000
# Bytes of encoded rows per byte of a compressed file.
COMPRESSION = 4.0


def estimate_reading(files: Sequence[SourceFile], format_name: str) -> Estimate:
    """Read about 1,000 rows and scale by bytes.

    Raises:
        DataError: The files hold no readable row of the format.
    """
    start, taken, num_bytes = time.perf_counter(), list[Row](), 0
    for row in itertools.islice(_rows(files, format_name), MAX_ROWS + 1):
        taken.append(row)
        num_bytes += len(encode_row(row.to_json()))
    seconds = time.perf_counter() - start
    if not taken:
        raise DataError(f"no row of format '{format_name}' in {files[0].path.parent}", expected="rows to train on")
    whole = (
        sum(_num_bytes(file.path) for file in files if not file.refusal) / num_bytes if len(taken) > MAX_ROWS else 1.0
    )
    samples = {kind: [row for row in taken[:MAX_ROWS] if type(row) is row_type] for row_type, kind in SHARDS.items()}
    counts = {kind: round(len(rows) * max(1.0, whole)) for kind, rows in samples.items()}
    note = ", ".join(f"{'about ' if whole > 1 else ''}{count:,} {kind}" for kind, count in counts.items() if count)
    sketch = Sketch(samples=samples, num_rows=counts)
    return Estimate(STAGE_SECONDS + 2 * seconds * max(1.0, whole), PROCESS_BYTES, sketch, note=note)


def _rows(files: Sequence[SourceFile], format_name: str) -> Iterator[Row]:
    """Yield the rows that a reader accepts; the ingest step reports rejected rows."""
    reader = FORMATS[format_name]
    for file in files:
        if not file.refusal and file.path.name.lower().endswith(reader.suffixes):
            yield from (read.row for read in reader.read(file.path, file.name) if isinstance(read, Accepted))


def _num_bytes(file: Path) -> float:
    return file.stat().st_size * (COMPRESSION if file.suffix in {".gz", ".parquet"} else 1.0)
