"""Every raw record becomes a document, a conversation, or a rejection with a reason: none is lost in silence."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from puna.data.shards import read_rows, write_jsonl, write_parquet
from puna.pipeline.errors import ConfigError, DataError

ASK = {"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]}


@pytest.fixture
def ingest(tmp_path: Path, perform_stage: Any) -> Any:
    """Return a function that ingests tmp_path/raw and gives the three kinds of rows."""

    def ingest_raw(**settings: Any) -> tuple[list[dict], list[dict], dict[str, str]]:
        perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw"), **settings)
        paths = [tmp_path / "out" / f"{name}.jsonl" for name in ("documents", "conversations", "rejected")]
        documents, conversations, rejected = (list(read_rows(path)) if path.exists() else [] for path in paths)
        return documents, conversations, {row["id"]: row["reason"] for row in rejected}

    (tmp_path / "raw").mkdir()
    return ingest_raw


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_a_folder_of_pages_becomes_documents_with_their_languages(ingest: Any, tmp_path: Path):
    write(tmp_path / "raw" / "en" / "opening.md", "# Opening\r\n\r\nAt nine.\n")
    write(tmp_path / "raw" / "de" / "opening.md", "\ufeffUm neun: schön früh.")
    write(tmp_path / "raw" / "notes" / "a.TXT", "Ask Ann.")
    documents, conversations, rejected = ingest(licence="CC0")
    assert not conversations and not rejected
    assert [(row["id"], row["language"], row["text"]) for row in documents] == [
        ("de/opening.md", "de", "Um neun: schön früh."),
        ("en/opening.md", "en", "# Opening\n\nAt nine."),
        ("notes/a.TXT", "", "Ask Ann."),
    ]
    assert {row["licence"] for row in documents} == {"CC0"}
    assert [row["source"] for row in documents] == [row["id"] for row in documents]


def test_files_that_cannot_be_read_are_rejected_with_a_reason(ingest: Any, tmp_path: Path):
    raw = tmp_path / "raw"
    write(raw / "good.md", "text")
    write(raw / "latin.md", "schön".encode("latin-1"))
    write(raw / "empty.md", " \n\t\n")
    write(raw / "price list.pdf", b"%PDF-1.7")
    write(raw / ".git" / "index.md", "hidden")
    (raw / "folder.md").mkdir()
    (raw / "dangling.md").symlink_to(raw / "nothing.md")
    documents, _, rejected = ingest()
    assert [row["id"] for row in documents] == ["good.md"]
    assert set(rejected) == {"latin.md", "empty.md", "price list.pdf", "dangling.md"}
    assert "not UTF-8" in rejected["latin.md"] and rejected["empty.md"] == "empty"
    assert "not a file of format 'text'" in rejected["price list.pdf"] and "No such file" in rejected["dangling.md"]


def test_what_the_user_leaves_out_is_not_rejected(ingest: Any, tmp_path: Path):
    for name in ("one.md", "two.md", "one.pdf"):
        write(tmp_path / "raw" / name, "text")
    documents, _, rejected = ingest(include=["one*"])
    assert [row["id"] for row in documents] == ["one.md"] and set(rejected) == {"one.pdf"}


def test_a_single_file_is_a_source(tmp_path: Path, perform_stage: Any):
    write(tmp_path / "page.md", "text")
    perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "page.md"))
    assert next(read_rows(tmp_path / "out" / "documents.jsonl"))["id"] == "page.md"


RECORDS: dict[str, tuple[str | bytes, str]] = {
    "1": ('{"text": "a page", "id": 7, "lang": "de", "license": "MIT", "rank": 3, "metadata": {"page": 2}}', ""),
    "2": (json.dumps({**ASK, "id": 8, "category": "hours"}), ""),
    "3": ("{broken", "not JSON"),
    "4": ("[1, 2]", "not a JSON object"),
    "5": ('{"title": "x"}', "neither 'text' nor 'messages'; it has title"),
    "6": ('{"text": "  "}', "neither"),
    "7": ('{"text": 5}', "neither"),
    "8": (b'{"text": "\xff"}', "not JSON"),
    "9": ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot'"),
    "10": ('{"messages": []}', "without an assistant message"),
    "11": ('{"messages": [{"role": "user", "content": "x"}]}', "without an assistant message"),
    "12": ('{"text": "a", "metadata": {"score": NaN}}', "JSON cannot hold"),
    "13": ("[" * 100_000, "not JSON"),
    "14": ('{"text": "half a \\ud83d pair", "language": null, "metadata": "note"}', ""),
    "15": ("", ""),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_records_are_kept_or_rejected_each_with_its_line(ingest: Any, tmp_path: Path, suffix: str):
    lines = [line.encode() if isinstance(line, str) else line for line, _ in RECORDS.values()]
    data = b"\n".join(lines)
    write(tmp_path / "raw" / f"rows{suffix}", gzip.compress(data) if suffix.endswith("gz") else data)
    documents, conversations, rejected = ingest(format="records", licence="CC0")
    expected = {f"rows{suffix}:{line}": reason for line, (_, reason) in RECORDS.items() if reason}
    assert set(rejected) == set(expected)
    assert all(reason in rejected[name] for name, reason in expected.items())
    page, half = documents
    assert (page["id"], page["language"], page["licence"], page["metadata"]) == (
        "7",
        "de",
        "MIT",
        {"rank": 3, "page": 2},
    )
    assert (half["id"], half["language"], half["licence"]) == (f"rows{suffix}:14", "", "CC0")
    assert half["metadata"] == {"metadata": "note"} and half["text"] == "half a \ud83d pair"
    assert conversations == [{**ASK, "id": "8", "metadata": {"category": "hours"}}]


def test_a_file_that_was_cut_short_gives_what_it_has_and_says_so(ingest: Any, tmp_path: Path):
    rows = b"".join(json.dumps({"text": os.urandom(40).hex()}).encode() + b"\n" for _ in range(2000))
    packed = gzip.compress(rows)
    write(tmp_path / "raw" / "rows.jsonl.gz", packed[: len(packed) // 2])
    write(tmp_path / "raw" / "table.parquet", b"PAR1")
    documents, _, rejected = ingest(format="records")
    assert 0 < len(documents) < 2000 and set(rejected) == {"rows.jsonl.gz", "table.parquet"}
    assert f"unreadable after record {len(documents)}" in rejected["rows.jsonl.gz"]


def test_parquet_rows_are_records(ingest: Any, tmp_path: Path):
    from datetime import date

    write_parquet(tmp_path / "raw" / "t.parquet", [{"text": "one", "day": date(2024, 5, 1)}, ASK, {"text": None}])
    documents, conversations, rejected = ingest(format="records")
    assert documents[0]["metadata"] == {"day": "2024-05-01"}
    assert conversations[0]["messages"] == ASK["messages"] and set(rejected) == {"t.parquet:3"}


def annotate(*values: str) -> list[dict[str, str]]:
    names = ("api_call", "request", "api_response", "response")
    return [{"name": name, "value": value, "context": "call_0"} for name, value in zip(names, values, strict=True)]


def dialogue(name: str = "dlg-1", **changes: Any) -> dict[str, Any]:
    """Invent a dialogue in the layout of Taskmaster-4."""
    found = annotate("find_tea", '{"kind": "mint"}', "find_tea", '{"tea_id":  "mint-4815"}')
    added = annotate("add_tea", '{"tea_id": "mint-4815", "cups": "2"}', "add_tea", "done")
    utterances = [
        {"speaker": "user", "text": " Two mint teas, please ", "annotations": [*found, *added]},
        {"speaker": "assistant", "text": "Two mint teas. Is that all?", "annotations": []},
        {"speaker": "user", "text": "Yes.", "annotations": annotate("pay", "{}", "pay", "{}")},
    ]
    return {"conversation_id": name, "scenario": "tea", "instructions": None, "utterances": utterances, **changes}


def test_a_taskmaster_dialogue_becomes_calls_and_results_in_their_order(ingest: Any, tmp_path: Path):
    write(tmp_path / "raw" / "data.json", json.dumps([dialogue()]))
    _, (row,), rejected = ingest(format="taskmaster", licence="CC BY 4.0")
    assert not rejected and row["id"] == "dlg-1" and row["environment"] == "ipython"
    system, *messages = row["messages"]
    assert system["role"] == "system"
    calls = [message["tool_calls"][0]["function"] for message in messages if "tool_calls" in message]
    assert calls == [
        {"name": "find_tea", "arguments": {"kind": "mint"}},
        {"name": "add_tea", "arguments": {"tea_id": "mint-4815", "cups": "2"}},
        {"name": "pay", "arguments": {}},
    ]
    told = [(message["role"], message["content"]) for message in messages if "tool_calls" not in message]
    assert told == [
        ("user", "Two mint teas, please"),
        ("tool", '{"tea_id": "mint-4815"}'),
        ("tool", "done"),
        ("assistant", "Two mint teas. Is that all?"),
        ("user", "Yes."),
    ]


BROKEN = {
    "no-utterances": {"utterances": None},
    "no-text": {"utterances": [{"speaker": "user", "annotations": []}]},
    "null-text": {"utterances": [{"speaker": "user", "text": None, "annotations": []}]},
    "odd-speaker": {"utterances": [{"speaker": "robot", "text": "x", "annotations": []}]},
    "broken-request": {"utterances": [{"speaker": "user", "text": "x", "annotations": annotate("f", "{a}", "f", "")}]},
    "list-request": {"utterances": [{"speaker": "user", "text": "x", "annotations": annotate("f", "[]", "f", "")}]},
    "no-call": {"utterances": [{"speaker": "user", "text": "x", "annotations": annotate("f", "{}", "f", "")[3:]}]},
    "no-response": {"utterances": [{"speaker": "user", "text": "x", "annotations": annotate("f", "{}", "f", "")[:2]}]},
    "only-user": {"utterances": [{"speaker": "user", "text": "x", "annotations": []}]},
}


def test_dialogues_that_are_broken_are_rejected_by_name(ingest: Any, tmp_path: Path):
    dialogues = [dialogue(), *(dialogue(name, **changes) for name, changes in BROKEN.items()), "text", {}]
    write(tmp_path / "raw" / "a.json.gz", gzip.compress(json.dumps(dialogues).encode()))
    write(tmp_path / "raw" / "b.json", "{}")
    write(tmp_path / "raw" / "c.json", "[")
    write(tmp_path / "raw" / "d.json.gz", gzip.compress(b"[]" * 50)[:-12])
    _, conversations, rejected = ingest(format="taskmaster")
    assert [row["id"] for row in conversations] == ["dlg-1"]
    assert set(rejected) == {*BROKEN, "a.json.gz:11", "a.json.gz:12", "b.json", "c.json", "d.json.gz"}
    assert rejected["broken-request"].startswith("a request is not JSON")
    assert (
        rejected["no-response"] == "the call of f has no response"
        and rejected["no-call"] == "a response without a call"
    )


def test_the_log_counts_what_was_kept_and_why_the_rest_was_not(ingest: Any, tmp_path: Path):
    for name, text in {"a.md": "x", "b.md": "", "c.md": "", "d.md": b"\xff"}.items():
        write(tmp_path / "raw" / name, text)
    ingest()
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "1 documents, 0 conversations, 3 rejected" in log
    assert "rejected 2: empty" in log and "rejected 1: not UTF-8" in log


def test_where_nothing_can_be_read_the_first_reason_is_told(ingest: Any, tmp_path: Path):
    write(tmp_path / "raw" / "rows.jsonl", "{broken")
    with pytest.raises(DataError, match=r"nothing in .*raw could be read.*format 'records'.*1 reasons: .*not JSON"):
        ingest(format="records")
    assert not (tmp_path / "out").exists()


def test_a_source_or_format_that_is_not_there_is_refused(ingest: Any, tmp_path: Path, perform_stage: Any):
    with pytest.raises(DataError, match="no file in"):
        ingest()
    write(tmp_path / "raw" / "a.md", "x")
    with pytest.raises(DataError, match="no file in"):
        ingest(include=["b*"])
    with pytest.raises(ConfigError, match="format = 'pdf'; expected text, records, preferences, taskmaster"):
        ingest(format="pdf")


def test_the_same_files_give_the_same_bytes(tmp_path: Path, perform_stage: Any):
    for name in ("c", "a", "b"):
        write(tmp_path / "raw" / name / "page.md", f"page {name}")
    for out in ("one", "two"):
        perform_stage("ingest", tmp_path / out, source=str(tmp_path / "raw"))
    one, two = ((tmp_path / out / "documents.jsonl").read_bytes() for out in ("one", "two"))
    assert one == two and write_jsonl(tmp_path / "x.jsonl", []) == 0


# Preferences


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [said("user", "Hi"), said("assistant", "Hello."), said("user", "Open?")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": [said("assistant", "Until six.")], "rejected": [said("assistant", "No.")]},
        {"chosen": [*ASKED, said("assistant", "Until six.")], "rejected": [*ASKED, said("assistant", "No.")]},
        {
            "prompt": "Hi",
            "chosen": [*ASKED, said("assistant", "Until six.")],
            "rejected": [*ASKED, said("assistant", "No.")],
        },
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Open?\n\nAssistant: Until six.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Open?\n\nAssistant: No.",
        },
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Open?",
            "chosen": "Until six.",
            "rejected": "No.",
        },
    ],
)
def test_pairs_in_any_spelling_become_the_same_preference(perform_stage: Any, tmp_path: Path, row: dict[str, Any]):
    (tmp_path / "raw.jsonl").write_text(json.dumps({**row, "score_chosen": 9.5, "strength": "better"}) + "\n")
    perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw.jsonl"), format="preferences")
    (read,) = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    answers = {"chosen": [said("assistant", "Until six.")], "rejected": [said("assistant", "No.")]}
    rest = {"strength": "better", "id": "raw.jsonl:1", "metadata": {"score_chosen": 9.5}}
    assert read == {"prompt": ASKED, **answers, **rest}
    assert not (tmp_path / "out" / "conversations.jsonl").exists()


def test_pairs_that_cannot_be_used_have_a_reason(perform_stage: Any, tmp_path: Path):
    good = {"prompt": "Open?", "chosen": "Until six.", "rejected": "No."}
    rows = [
        good,
        {"chosen": "a"},
        {**good, "chosen": "No."},
        {**good, "rejected": " "},
        {"chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw.jsonl"), format="preferences")
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == [f"raw.jsonl:{number}" for number in (2, 3, 4, 5)]
    for row, reason in zip(
        rejected,
        [
            "a row has no 'rejected'",
            "chosen and rejected are the same",
            "an answer without words",
            "an answer in one text",
        ],
        strict=True,
    ):
        assert row["reason"].startswith(reason)
    assert len((tmp_path / "out" / "preferences.jsonl").read_text().splitlines()) == 1
