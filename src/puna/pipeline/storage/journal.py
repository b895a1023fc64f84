"""Results of an interrupted run <-> an append-only file per piece of work, for resuming.

Every line is a SHA-256 and a JSON record: `SHA256(SHA-256 of the previous line + record) record`. The first record
names the journal, the format and the key of the run. An append is durable before `append` returns, so a power loss can
tear only the last line; a torn last line is dropped. A wrong hash in an earlier line means damage, and is an error.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna.pipeline.errors import ArtifactError
from puna.pipeline.storage.files import fsync, make_directory, naming, write_text

FORMAT = 1
DIGEST_LENGTH = 64


class Journal:
    """Records of a piece of work, durable and chained by hashes.

    Files named by a record must be durable (`files.entry`, fsync of the directory) before the record is appended.

    Attributes:
        path: The file of the journal.
        records: Records of the earlier executions, in the order of the appends. `append` does not extend the list.

    Example:
        >>> journal = Journal(folder / "answers.jsonl", "key", print)
        >>> journal.append({"text": "At nine."})
        {'text': 'At nine.'}
        >>> Journal(folder / "answers.jsonl", "key", print).records
        [{'text': 'At nine.'}]
    """

    def __init__(self, path: Path, key: str, log: Callable[[str], None]):
        """Read the journal at `path`; drop a torn last line.

        A journal with a different key, name or format is emptied, and `log` gets a line with the reason.

        Raises:
            ArtifactError: A line before the last line was altered, removed or swapped.
        """
        self.path, self.records = path, list[Any]()
        self._ends, self._digests = list[int](), list[str]()
        header = {"journal": path.stem, "format": FORMAT, "key": key}
        make_directory(path.parent)
        raw = path.read_bytes() if path.exists() else b""
        records = self._read(raw)
        if records and records[0] == header:
            self.records = records[1:]
            os.truncate(path, self._ends[-1])
            fsync(path)
        else:
            if records:
                log(f"{path} was made with other settings or inputs: the work starts from the beginning")
            self._ends, self._digests = [], []
            digest, line = _line("", header)
            write_text(path, line.decode())
            self._add(digest, len(line))
        fsync(path.parent)

    def append(self, record: Any) -> Any:
        """Append a record durably; return the record as later executions read it (tuples become lists)."""
        digest, line = _line(self._digests[-1], record)
        try:
            with self.path.open("r+b", buffering=0) as file:
                # NOTE: an earlier append that failed on a full disk may have left a part of a line.
                file.truncate(self._ends[-1])
                file.seek(self._ends[-1])
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise naming(error, self.path) from None
        self._add(digest, len(line))
        return json.loads(line[DIGEST_LENGTH + 1 :])

    def cut(self, count: int) -> None:
        """Keep the first `count` records only."""
        del self.records[count:], self._ends[count + 1 :], self._digests[count + 1 :]
        os.truncate(self.path, self._ends[-1])
        fsync(self.path)

    def _read(self, raw: bytes) -> list[Any]:
        *lines, tail = raw.split(b"\n")
        records: list[Any] = []
        for number, line in enumerate(lines, start=1):
            digest = line[:DIGEST_LENGTH].decode("ascii", "replace")
            payload = line[DIGEST_LENGTH + 1 :]
            before = self._digests[-1] if self._digests else ""
            if line[DIGEST_LENGTH : DIGEST_LENGTH + 1] != b" " or digest != _digest(before, payload):
                if number == len(lines) and not tail:
                    break
                raise ArtifactError(
                    f"{self.path} line {number} was altered, or a line before it is missing",
                    expected="the lines that the interrupted run wrote",
                    hint=f"Delete {self.path}, and its work is done again; nothing else is lost",
                )
            records.append(json.loads(payload))
            self._add(digest, len(line) + 1)
        return records

    def _add(self, digest: str, length: int) -> None:
        self._ends.append((self._ends[-1] if self._ends else 0) + length)
        self._digests.append(digest)


def _line(before: str, record: Any) -> tuple[str, bytes]:
    # NaN is written as NaN: log-probabilities of a reference model can be NaN, and Python reads the spelling.
    payload = json.dumps(record, default=str).encode()
    digest = _digest(before, payload)
    return digest, digest.encode() + b" " + payload + b"\n"


def _digest(before: str, payload: bytes) -> str:
    return hashlib.sha256(before.encode() + payload).hexdigest()
