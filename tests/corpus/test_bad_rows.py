"""Ninety kinds of bad rows and files: each is rejected with the right reason, or read as stated; none raises."""

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ingest import write

from puna.data.shards import read_rows
from puna.pipeline.errors import PunaError

Row = dict[str, Any]
ASK, SAY = {"role": "user", "content": "Is it cold?"}, {"role": "assistant", "content": "A little."}
CHAT = [ASK, SAY]
TOOL = {"name": "look", "parameters": {"type": "object"}}
PAIR = {"prompt": "Is it cold?", "chosen": "A little.", "rejected": "No."}
DEEP = '{"a":' * 3000 + "1" + "}" * 3000
HALF_DEEP = '{"a":' * 400 + "1" + "}" * 400


def said(*changes: Row, **columns: Any) -> Row:
    """Return a row with a question and an answer, each changed, and more columns."""
    return {"messages": [{**each, **change} for each, change in zip(CHAT, changes, strict=False)], **columns}


def called(call: Any, **columns: Any) -> Row:
    return {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": call}, SAY], **columns}


def called_with(arguments: Any) -> Row:
    return called([{"function": {"name": "look", "arguments": arguments}}])


# What a row is, and the reason of its rejection: "" where the row is read.
RECORDS: list[tuple[Row | str | bytes, str]] = [
    # Lines
    ("{broken", "not JSON"),
    ("[1]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ("null", "not a JSON object"),
    ("{}", "it has nothing"),
    (b'{"text": "\xff"}', "not JSON"),
    (b'{"text": "a\x00b"}', "not JSON"),
    (b"\x00" * 40, "not JSON"),
    (b'{"text": "cut', "not JSON"),
    ('{"text": "a"} {"text": "b"}', "not JSON: Extra data"),
    ('{"text": "a", "text": "b"}', "the key 'text' stands twice"),
    ('{"text": "a", "metadata": {"n": 1, "n": 2}}', "the key 'n' stands twice"),
    ('{"text": "a", "n": NaN}', "JSON cannot hold"),
    ('{"text": "a", "n": 1e999}', "JSON cannot hold"),
    ('{"text": "a", "n": -Infinity}', "JSON cannot hold"),
    ('{"text": "a", "n": ' + "9" * 5000 + "}", "not JSON"),
    (DEEP, "not JSON"),
    (f'{{"text": "a", "deep": {DEEP}}}', "not JSON"),
    (f'{{"messages": {json.dumps(CHAT)}, "deep": {HALF_DEEP}}}', ""),
    (f'{{"messages": {HALF_DEEP}}}', "messages is dict"),
    ('{"text": "half a \\ud83d pair"}', ""),
    ("\ufeff" + json.dumps({"text": "behind a byte order mark"}), ""),
    ('{"half \\ud83d \\u001b[31mred": 1}', "neither 'text' nor 'messages'"),
    # Texts
    ({"text": ""}, "neither 'text' nor 'messages'"),
    ({"text": "\u200a \n"}, "neither 'text' nor 'messages'"),
    ({"text": "\ufeff\u200b"}, "neither 'text' nor 'messages'"),
    ({"text": 5}, "neither 'text' nor 'messages'"),
    ({"text": None, "title": "a"}, "neither 'text' nor 'messages'; it has text, title"),
    ({"input_ids": [1, 2]}, "it has input_ids"),
    ({"text": "a page", "images": ["a.png"]}, "the column 'images'"),
    # Messages
    ({"messages": None}, "neither 'text' nor 'messages'"),
    ({"messages": {}}, "messages is dict"),
    ({"messages": "Is it cold?"}, "messages is a string that is not JSON"),
    ({"messages": []}, "without an assistant message"),
    ({"messages": [ASK]}, "without an assistant message"),
    ({"messages": ["Is it cold?", "A little."]}, r"messages[0] is str"),
    ({"messages": [None, SAY]}, "messages[0] is NoneType"),
    ({"messages": [{"content": "a"}, SAY]}, "messages[0] has no role"),
    ({"messages": [{"role": 3, "content": "a"}, SAY]}, "messages[0] has no role"),
    (said({"role": "robot"}, {}), "role 'robot'"),
    (said({"content": 5}, {}), "messages[0].content is int"),
    (
        said({"content": [{"type": "image_url", "image_url": {"url": "a"}}]}, {}),
        "unknown field messages[0].content[0].image_url",
    ),
    (said({"content": [{"type": "image"}]}, {}), "messages[0].content[0] is of type 'image'"),
    (said({"content": ["a"]}, {}), "messages[0].content[0] is str"),
    (said({"content": " \n"}, {}), "messages[0] is a user message without words"),
    (said({"content": None}, {}), "messages[0] is a user message without words"),
    (said({"content": "\u2060\u3164"}, {}), "messages[0] is a user message without words"),
    (said({}, {"content": "\u200b\ufeff\x00"}), "an answer is empty"),
    (said({}, {"content": "?"}), ""),
    (said({}, {"content": ""}), "an answer is empty"),
    (said({}, {"content": None}), "an answer is empty"),
    (said({}, {"content": "\t", "tool_calls": []}), "an answer is empty"),
    (said({}, {"content": [{"type": "text", "text": " "}]}), "an answer is empty"),
    ({"messages": [ASK, {**SAY, "content": ""}, *CHAT]}, "an answer is empty"),
    ({"messages": [ASK, {**SAY, "content": "", "weight": 0}, *CHAT]}, ""),
    ({"messages": [*CHAT, {**ASK, "content": "Thanks."}]}, ""),
    (said({}, {"reasoning_content": "Hm."}), "unknown field messages[1].reasoning_content"),
    (said({}, {"train_detail": [{"begin_offset": 0}]}), "unknown field messages[1].train_detail"),
    (said({"value": "b"}, {}), "messages[0] has content and value"),
    ({"conversations": [{"from": "alien", "value": "a"}, {"from": "gpt", "value": "b"}]}, "role 'alien'"),
    # Loss flags
    (said({}, {"weight": 0}), "every answer has weight 0"),
    (said({}, {"weight": 0.5}), "messages[1].weight is 0.5"),
    (said({}, {"train": "no"}), "messages[1].train is 'no'"),
    (said({}, {"train": False, "weight": 1}), "train differ"),
    (said({"train": True}, {}), "messages[0].train asks to learn from a user message"),
    # Calls and tools
    (called({}), "an answer is empty"),
    (called("find"), "messages[1].tool_calls is a string that is not JSON"),
    (called([{"function": {"arguments": {}}}]), "messages[1].tool_calls[0].function.name is missing"),
    (called([{"function": {"name": ""}}]), "a tool call without a name"),
    (called(["find"]), "messages[1].tool_calls[0] is a string that is not JSON"),
    (called([3]), "messages[1].tool_calls[0] is int"),
    (called_with("{a"), "messages[1].tool_calls[0].function.arguments is not JSON"),
    (called_with("[1]"), "messages[1].tool_calls[0].function.arguments is list"),
    (called_with('{"a": 1e999}'), "JSON cannot hold"),
    (called_with("null"), ""),
    (called_with(None), ""),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "look()"}]},
        "conversations[1] is a string",
    ),
    ({"messages": [ASK, {"role": "tool_call", "content": "[]"}, SAY]}, "messages[1] holds no tool call"),
    (said({"tool_calls": [{"function": {"name": "look"}}]}, {}), "tool_calls in a user message"),
    (said({}, {}, tools="look"), "tools is a string that is not JSON"),
    (said({}, {}, tools=[{"type": "code_interpreter"}]), "tools[0]"),
    (said({}, {}, tools=[TOOL], functions=[{**TOOL, "name": "find"}]), "tools and functions hold different tools"),
    (said({}, {}, my_tools=[TOOL]), "the column 'my_tools' holds tools"),
    (said({}, {}, info={"oai_tools": [TOOL]}), "the column 'info' holds tools"),
    (said({}, {}, info=json.dumps({"oai_tools": [TOOL]})), "the column 'info' holds tools"),
    # Columns that belong to the prompt
    (said({}, {}, system=["Be brief."]), "the column 'system' is list"),
    (said({}, {}, system="Be brief.", system_prompt="Be long."), "hold different system messages"),
    (
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, *CHAT]},
        "hold different system messages",
    ),
    *(
        (said({}, {}, **{name: value}), f"the column '{name}' belongs to the prompt")
        for name, value in {
            "documents": [{"text": "a"}],
            "chat_template_kwargs": {"enable_thinking": False},
            "chat_template": "{{ a }}",
            "images": ["a.png"],
            "image": {"bytes": "a"},
            "videos": ["a.mp4"],
            "audios": ["a.wav"],
            "context": "It snows.",
        }.items()
    ),
    (said({}, {}, documents=[], images=None, chat_template_kwargs={}), ""),
    (said({}, {}, documents=3, context=True), ""),
    (said({}, {}, history=[["a", "b"]], chat_history=[["a", "b"]]), "the column 'chat_history' belongs"),
    (said({}, {}, history=[["a"]]), "history[0] is no pair"),
    (said({}, {}, history="a"), "history is a string that is not JSON"),
    (said({}, {}, prompt="Is it hot?"), "the column 'prompt' has text that is missing from the messages"),
    (said({}, {}, conversations=[{"from": "human", "value": "b"}]), "the column 'conversations' holds other messages"),
    (said({}, {}, mask="Assistant"), "the column 'mask' is 'Assistant'"),
    (said({}, {}, text="Another page."), "the column 'text' has text that is missing from the messages"),
    # Other spellings
    ({"prompt": "Is it cold?", "completion": "No.", "label": True}, "the column 'label' judges one answer alone (KTO)"),
    ({"messages": CHAT, "kto_tag": False}, "the column 'kto_tag' judges one answer alone (KTO)"),
    ({"messages": [], "conversations": CHAT}, ""),
    ({"conversation": "[]", "dialog": CHAT, "conversations": []}, ""),
    ({"messages": CHAT, "chosen": "", "rejected": "", "rejected_response": ""}, ""),
    ({"messages": CHAT, "chosen": [], "rejected": []}, ""),
    (PAIR, "a pair of answers (chosen, rejected); expected one answer, or format 'preferences'"),
    ({"messages": CHAT, "rejected_response": "No."}, "a pair of answers (messages, rejected_response)"),
    ({"instruction": "", "input": " ", "output": "b"}, "messages[0] is a user message without words"),
    ({"instruction": "a", "output": ""}, "an answer is empty"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input is int"),
    ({"prompt": CHAT, "completion": [SAY]}, "prompt ends with the assistant"),
    ({"prompt": "a", "completion": [ASK]}, "completion begins with the user"),
    ({"prompt": "a", "completion": 3}, "completion is int"),
    ({"question": "a", "answer": "B", "choices": ["b", "c"]}, "the column 'choices' belongs to the prompt"),
    ({"question": "a", "answer": 1, "choices": ["b", "c"]}, "answer is int; expected a text or messages"),
    ({"question": "a", "answer": "b", "passage": "c"}, "the column 'passage' belongs to the prompt"),
    ({"question": "a", "answers": ["b"]}, "it has question, answers"),
    # Fields of Puna
    (said({}, {}, environment="jupyter"), "environment 'jupyter'"),
    (said({}, {}, today="2025-03-05"), "today '2025-03-05'"),
    (said({}, {}, builtin_tools=["bing"]), "builtin_tools has 'bing'"),
    ({**said({}, {}), "id": "same"}, ""),
    ({**said({"content": "Is it warm?"}, {}), "id": "same"}, "an id of an earlier row: 'same', raw.jsonl row"),
]

PREFERENCES: list[tuple[Row | str | bytes, str]] = [
    (PAIR, ""),
    ({**PAIR, "prompt": "", "question": "Is it warm?"}, ""),
    ({**PAIR, "prompt": [], "messages": [ASK]}, ""),
    ({**PAIR, "prompt": ""}, "a prompt without words"),
    ({**PAIR, "prompt": []}, "a prompt without a message to answer"),
    ({**PAIR, "prompt": [{**ASK, "content": " "}]}, "a prompt without words"),
    ({**PAIR, "prompt": CHAT}, "a prompt without a message to answer"),
    ({**PAIR, "prompt": 3}, "prompt is int"),
    ({**PAIR, "prompt": None, "instruction": "Is it cold?", "input": ["in Oslo"]}, "input is list; expected a string"),
    ({**PAIR, "prompt": None, "instruction": [ASK], "input": "in Oslo"}, "instruction is a list beside input"),
    ({**PAIR, "prompt": None, "instruction": "Is it cold?", "input": []}, ""),
    ({**PAIR, "chosen": None}, "a row has no 'chosen'"),
    ({**PAIR, "chosen": "\u200b"}, "an answer without words: chosen"),
    ({**PAIR, "prompt": "\u2800"}, "a prompt without words"),
    ({**PAIR, "chosen": ""}, "an answer without words: chosen"),
    ({**PAIR, "rejected": [{**SAY, "content": None, "tool_calls": []}]}, "an answer without words: rejected"),
    ({**PAIR, "rejected": " A little.\n"}, "chosen and rejected are the same"),
    ({**PAIR, "chosen": ["A little."]}, "chosen[0] is str"),
    ({**PAIR, "chosen": 3}, "chosen is int"),
    ({**PAIR, "chosen": [{**SAY, "weight": 0}]}, "chosen[0] has weight 0"),
    ({**PAIR, "chosen": [SAY, ASK, SAY]}, "chosen[1] is a user message"),
    ({**PAIR, "chosen": [SAY, ASK]}, "chosen of 2 messages"),
    ({**PAIR, "strength": "huge"}, "strength 'huge'"),
    ({**PAIR, "images": ["a.png"]}, "the column 'images' belongs to the prompt"),
    ({**PAIR, "system": 3}, "the column 'system' is int"),
    ({**PAIR, "question": "Is it hot?"}, "the column 'question' has text that is missing from the messages"),
    (
        {"chosen": CHAT, "rejected": [ASK, {**SAY, "content": "No."}], "history": [["a", "b"]]},
        "the column 'history' belongs",
    ),
    ({**PAIR, "label": True}, "the column 'label' judges one answer alone (KTO)"),
    ({"prompt": "a", "completion": "b", "label": True}, "a row has no 'chosen'; it has prompt, completion, label"),
    ({"instruction": "a", "completions": [{"response": "b"}]}, "a row has no 'chosen'"),
    ({"chosen": "a", "rejected": "b"}, "an answer in one text without a prompt"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        "chosen of 2 messages",
    ),
    (
        {"chosen": [{"role": "system", "content": "a"}, *CHAT], "rejected": [ASK, {**SAY, "content": "No."}]},
        "chosen and rejected begin with different messages",
    ),
    ({"chosen": [], "rejected": []}, "chosen and rejected begin with different messages"),
    ({"chosen": CHAT, "rejected": []}, "chosen and rejected begin with different messages"),
    ({"input": {}, "preferred_output": [SAY], "non_preferred_output": [SAY]}, "input has no messages"),
    (
        {"input": {"messages": [ASK]}, "preferred_output": [SAY], "non_preferred_output": [SAY]},
        "chosen and rejected are the same",
    ),
    ({"messages": [ASK], "rejected_response": "No."}, "chosen of 0 messages"),
    (
        {
            **PAIR,
            "chosen": [*called_with({"a": 1})["messages"][1:]],
            "rejected": [*called_with({"a": True})["messages"][1:]],
        },
        "",
    ),
]


@pytest.mark.parametrize(("format", "kinds"), [("records", RECORDS), ("preferences", PREFERENCES)])
def test_every_kind_of_bad_row_has_its_reason(
    perform_stage: Callable[..., bool], tmp_path: Path, format: str, kinds: list[tuple[Row | str | bytes, str]]
):
    assert len(RECORDS) + len(PREFERENCES) >= 90
    lines = [json.dumps(row) if isinstance(row, dict) else row for row, _ in kinds]
    data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    (tmp_path / "raw.jsonl").write_bytes(data)
    perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw.jsonl"), format=format)
    rejected = {}
    for row in read_rows(tmp_path / "out" / "rejected.jsonl"):
        rejected[row.get("place", row["id"]).replace(" row ", ":")] = row["reason"]
    for number, (row, reason) in enumerate(kinds, start=1):
        given = rejected.pop(f"raw.jsonl:{number}", "")
        assert given == reason if not reason else reason in given, (number, row if len(str(row)) < 300 else "", given)
    assert not rejected


# Files


@pytest.fixture
def ingest(tmp_path: Path, perform_stage: Callable[..., bool]) -> Callable[..., tuple[list[Row], dict[str, str]]]:
    """Return a function that ingests tmp_path/raw: the rows, and the reason of each rejection by name."""

    def ingest_raw(**settings: Any) -> tuple[list[Row], dict[str, str]]:
        perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw"), **settings)
        paths = [tmp_path / "out" / f"{name}.jsonl" for name in ("documents", "conversations")]
        rejected = {row["id"]: row["reason"] for row in read_rows(tmp_path / "out" / "rejected.jsonl")}
        return [row for path in paths if path.exists() for row in read_rows(path)], rejected

    return ingest_raw


def test_nothing_but_regular_files_inside_the_source_is_read(ingest: Any, tmp_path: Path):
    raw, outside = tmp_path / "raw", tmp_path / "secret.md"
    write(raw / "good.md", "A page.")
    write(raw / ".hidden" / "key.md", "A key.")
    write(outside, "A secret.")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "more.md", "More.")
    os.mkfifo(raw / "pipe.md")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(raw / "socket.md"))
        (raw / "out.md").symlink_to(outside)
        (raw / "relative.md").symlink_to("../secret.md")
        (raw / "device.md").symlink_to("/dev/zero")
        (raw / "system.md").symlink_to("/etc/hostname")
        (raw / "loop.md").symlink_to(raw / "loop.md")
        (raw / "gone.md").symlink_to(raw / "nothing.md")
        (raw / "key.md").symlink_to(raw / ".hidden" / "key.md")
        (raw / "inside.md").symlink_to(raw / "good.md")
        (raw / "elsewhere").symlink_to(tmp_path / "folder")
        (raw / "around").symlink_to(raw)
        rows, rejected = ingest()
    assert [row["id"] for row in rows] == ["good.md", "inside.md"]
    outward = dict.fromkeys(("out.md", "relative.md", "device.md", "system.md", "elsewhere"), "a link that leads out")
    assert {
        name: reason[: len("a link that leads out")] for name, reason in rejected.items() if name in outward
    } == outward
    assert rejected.keys() - outward.keys() == {"pipe.md", "socket.md", "loop.md", "gone.md", "key.md", "around"}
    assert rejected["pipe.md"] == "not a regular file: a named pipe"
    assert rejected["socket.md"] == "not a regular file: a socket"
    assert rejected["key.md"] == "a link to a hidden file" and rejected["around"] == "not a regular file: a folder"
    assert "No such file" in rejected["gone.md"] and rejected["loop.md"].startswith("unreadable")


@pytest.mark.parametrize("kind", ["pipe", "missing", "loop", "device"])
def test_a_source_that_is_no_file_and_no_folder_is_refused(tmp_path: Path, perform_stage: Any, kind: str):
    source = tmp_path / "source.md"
    if kind == "pipe":
        os.mkfifo(source)
    if kind == "loop":
        source.symlink_to(source)
    source = Path("/dev/null") if kind == "device" else source
    with pytest.raises(PunaError, match="does not exist" if kind == "missing" else "neither a file nor a folder"):
        perform_stage("ingest", tmp_path / "out", source=str(source))


def test_a_source_that_is_a_link_itself_is_followed(tmp_path: Path, perform_stage: Any):
    write(tmp_path / "kept" / "page.md", "A page.")
    (tmp_path / "raw").symlink_to(tmp_path / "kept")
    perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "raw"))
    assert next(read_rows(tmp_path / "out" / "documents.jsonl"))["id"] == "page.md"


def test_files_of_another_form_than_their_name_have_one_reason(ingest: Any, tmp_path: Path, monkeypatch: Any):
    raw, line = tmp_path / "raw", json.dumps({"text": "A line."}).encode() + b"\n"
    write(raw / "good.jsonl", line)
    write(raw / "list.json", json.dumps([{"text": "One."}, 3, {"text": "Two."}], indent=1))
    write(raw / "lines.json", line * 2)
    write(raw / "marked.jsonl", b"\xef\xbb\xbf" + line)
    write(raw / "object.json", json.dumps({"rows": [{"text": "One."}]}, indent=1))
    write(raw / "cut.json", '[{"text": "One."},')
    write(raw / "packed.jsonl", gzip.compress(line))
    write(raw / "plain.jsonl.gz", line)
    write(raw / "cut.jsonl.gz", gzip.compress(line)[:-12])
    write(raw / "table.jsonl", b"PAR1" + b"\0" * 20)
    write(raw / "text.parquet", line)
    write(raw / "empty.parquet", b"")
    write(raw / "wide.jsonl", line.decode().encode("utf-16"))
    write(raw / "archive.jsonl", b"PK\x03\x04rest")
    write(raw / "huge.jsonl", b'{"text": "' + b"a" * 3000 + b'"}\n' + line)
    monkeypatch.setattr("puna.corpus.ingest.row_files.MAX_LINE_BYTES", 2000)
    rows, rejected = ingest(format="records")
    assert [row["id"] for row in rows] == [
        *(
            "good.jsonl:1",
            "huge.jsonl:2",
            "lines.json:1",
            "lines.json:2",
            "list.json:1",
            "list.json:3",
            "marked.jsonl:1",
        ),
    ]
    reasons = {
        "list.json:2": "an item is not a JSON object",
        "object.json": "neither a list of rows nor one JSON object a line",
        "cut.json": "the file is not JSON",
        "packed.jsonl": "gzip data without .gz",
        "plain.jsonl.gz": "Not a gzipped file",
        "cut.jsonl.gz": "unreadable after record",
        "table.jsonl": "Parquet data",
        "text.parquet": "is not a Parquet file",
        "empty.parquet": "is not a Parquet file",
        "wide.jsonl": "UTF-16 text",
        "archive.jsonl": "a ZIP archive",
        "huge.jsonl:1": "a line of more than",
    }
    assert rejected.keys() == reasons.keys()
    assert all(reason in rejected[name] for name, reason in reasons.items()), rejected


def test_parquet_files_that_are_damaged_have_a_reason_and_no_traceback(ingest: Any, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = tmp_path / "raw"
    raw.mkdir()
    pq.write_table(pa.table({"text": [f"Page {n}." for n in range(50)]}), raw / "good.parquet")
    data = (raw / "good.parquet").read_bytes()
    for size in range(0, len(data), 60):
        write(raw / f"cut-{size:04}.parquet", data[:size])
        write(raw / f"flip-{size:04}.parquet", data[:size] + bytes([data[size] ^ 0xFF]) + data[size + 1 :])
    strings = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": strings}), raw / "latin.parquet")
    day = pa.array([1 << 60], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["A page."], "day": day}), raw / "day.parquet")
    rows, rejected = ingest(format="records", drop_duplicates="none")
    assert {row["id"] for row in rows} >= {f"good.parquet:{number}" for number in range(1, 51)}
    assert all(f"cut-{size:04}.parquet" in rejected for size in range(0, len(data), 60))
    assert {"latin.parquet:1", "day.parquet:1"} <= rejected.keys()


def test_texts_that_are_no_text_have_a_reason(ingest: Any, tmp_path: Path):
    raw = tmp_path / "raw"
    write(raw / "good.md", "A page.")
    write(raw / "wide.md", "A page.".encode("utf-16"))
    write(raw / "wide-without-mark.md", "A page.".encode("utf-16-le"))
    write(raw / "binary.txt", b"\x7fELF\0\0\1")
    write(raw / "latin.md", b"caf\xe9")
    rows, rejected = ingest()
    assert [row["id"] for row in rows] == ["good.md"]
    assert rejected["wide.md"] == "not UTF-8: UTF-16" and rejected["latin.md"].startswith("not UTF-8")
    assert all("null character" in rejected[name] for name in ("wide-without-mark.md", "binary.txt"))


def test_a_file_whose_name_is_no_text_is_read(ingest: Any, tmp_path: Path):
    (tmp_path / "raw").mkdir()
    with open(os.fsencode(tmp_path / "raw") + b"/caf\xe9.md", "wb") as file:
        file.write(b"A page.")
    (row,), rejected = ingest()
    assert row["text"] == "A page." and not rejected


TASKMASTER: list[tuple[Any, str]] = [
    ({"utterances": 3}, "not laid out as a dialogue"),
    ({"utterances": []}, "without an assistant message"),
    ({"utterances": [3]}, "not laid out as a dialogue"),
    ({"utterances": [{"speaker": "user", "text": 3, "annotations": []}]}, "not laid out as a dialogue"),
    ({"utterances": [{"speaker": "assistant", "text": "Hi", "annotations": [3]}]}, "not laid out as a dialogue"),
    ({"utterances": [{"speaker": "assistant", "text": "Hi", "annotations": None}]}, "not laid out as a dialogue"),
    ({"utterances": [{"speaker": ["user"], "text": "Hi", "annotations": []}]}, "role ['user']"),
    ({"scenario": float("nan")}, "JSON cannot hold"),
    ({"conversation_id": 3}, "a conversation_id of type int"),
    ({"conversation_id": "tea"}, "an id of an earlier row"),
]


def test_every_kind_of_bad_taskmaster_dialogue_has_its_reason(ingest: Any, tmp_path: Path):
    said = [
        {"speaker": "user", "text": "Tea?", "annotations": []},
        {"speaker": "assistant", "text": "Yes.", "annotations": []},
    ]
    good = {"conversation_id": "tea", "scenario": "tea", "utterances": said}
    bad = [{**good, "conversation_id": f"bad-{index}", **change} for index, (change, _) in enumerate(TASKMASTER)]
    write(tmp_path / "raw" / "a.json", json.dumps([good, *bad]))
    write(tmp_path / "raw" / "b.json", json.dumps(good))
    write(tmp_path / "raw" / "c.json", DEEP)
    write(tmp_path / "raw" / "d.json", b"\xff\xfe[")
    write(tmp_path / "raw" / "f.json", '[{"conversation_id": "a", "conversation_id": "b"}]')
    os.mkfifo(tmp_path / "raw" / "e.json")
    rows, rejected = ingest(format="taskmaster")
    assert [row["id"] for row in rows] == ["tea"]
    reasons = [rejected.get(str(each["conversation_id"]), "") for each in bad]
    for given, (change, reason) in zip(reasons, TASKMASTER, strict=True):
        assert reason in given, (change, given)
    assert rejected.keys() >= {"b.json", "c.json", "d.json", "e.json"} and "stands twice" in rejected["f.json"]
