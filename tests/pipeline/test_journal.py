"""The resume journal: every record back after a crash, a torn tail dropped, any other damage refused by name."""

import random
from pathlib import Path

import pytest

from puna.pipeline.errors import ArtifactError
from puna.pipeline.storage.journal import Journal

RECORDS = [{"text": f"Antwort {n} \u00e9\ud800", "value": n / 7, "rows": [n] * n} for n in range(5)]


def write(path: Path, key: str = "key") -> bytes:
    journal = Journal(path, key, print)
    for record in RECORDS:
        assert journal.append(record) == record
    return path.read_bytes()


def reopened(path: Path, key: str = "key") -> list[object]:
    return Journal(path, key, lambda line: None).records


def test_what_was_appended_comes_back(tmp_path: Path):
    write(tmp_path / "new" / "folder" / "rows.jsonl")
    assert reopened(tmp_path / "new" / "folder" / "rows.jsonl") == RECORDS


def test_a_tuple_is_in_the_first_execution_what_it_is_in_the_next(tmp_path: Path):
    journal = Journal(tmp_path / "rows.jsonl", "key", print)
    assert journal.append({"pair": (1, 2)}) == {"pair": [1, 2]} == reopened(journal.path)[0]


def test_a_journal_cut_anywhere_has_the_records_before_the_cut_and_goes_on(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    whole = write(path)
    for length in range(len(whole)):
        for tail in (b"", b"\0" * (len(whole) - length)):
            path.write_bytes(whole[:length] + tail)
            lines = whole[:length].count(b"\n")
            if tail and whole[length:].count(b"\n") > 1:
                continue  # more than the last line: no power loss does that
            journal = Journal(path, "key", print)
            assert journal.records == RECORDS[: max(0, lines - 1)]
            if length % 20 == 0:
                for record in RECORDS[len(journal.records) :]:
                    journal.append(record)
                assert path.read_bytes() == whole


def test_every_flipped_bit_is_refused_by_name_or_costs_only_the_last_records(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    whole, chance = write(path), random.Random(0)
    num_refused = 0
    for place in chance.sample(range(8 * len(whole)), 400):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = reopened(path)
        except ArtifactError as error:
            num_refused += 1
            assert str(path) in str(error) and f"Delete {path}" in str(error)
        else:
            assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)
    assert num_refused > 200


def test_lines_that_are_missing_or_swapped_are_refused(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = write(path).splitlines(keepends=True)
    for first in range(len(lines) - 2):
        swapped = list(lines)
        swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
        for damaged in (swapped, lines[:first] + lines[first + 1 :]):
            path.write_bytes(b"".join(damaged))
            with pytest.raises(ArtifactError, match=r"rows\.jsonl line \d was altered, or a line before it is missing"):
                reopened(path)


def test_a_journal_of_other_settings_or_another_name_is_begun_anew_and_the_log_says_so(tmp_path: Path):
    told: list[str] = []
    path = tmp_path / "rows.jsonl"
    write(path)
    assert Journal(path, "other key", told.append).records == []
    write(path)
    path.rename(tmp_path / "other.jsonl")
    assert Journal(tmp_path / "other.jsonl", "key", told.append).records == []
    assert len(told) == 2 and all("the work starts from the beginning" in line for line in told)
    assert reopened(tmp_path / "other.jsonl") == []


def test_a_cut_journal_goes_on_after_the_records_that_stay(tmp_path: Path):
    journal = Journal(tmp_path / "rows.jsonl", "key", print)
    whole = write(journal.path)
    journal = Journal(journal.path, "key", print)
    journal.cut(2)
    assert journal.records == RECORDS[:2] == reopened(journal.path)
    for record in RECORDS[2:]:
        journal.append(record)
    assert journal.path.read_bytes() == whole


def test_an_append_after_a_failed_one_leaves_no_part_of_the_failed_line(tmp_path: Path, monkeypatch):
    import os

    journal, sync = Journal(tmp_path / "rows.jsonl", "key", print), os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*rows\.jsonl'"):
        journal.append({"text": "a long record that failed"})
    monkeypatch.setattr(os, "fsync", sync)
    journal.append(RECORDS[0])
    assert reopened(journal.path) == RECORDS[:1]
