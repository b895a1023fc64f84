"""Rows of other trainers, in any spelling, become the same rows; what Puna has no place for is refused by name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from puna.corpus.ingest.records import read_pairs, read_records
from puna.corpus.ingest.results import Accepted, Rejected
from puna.data.shards import read_rows
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer

Row = dict[str, Any]
QUESTION, ANSWER = "Is the ferry late?", "By ten minutes."
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
BRIEF = {"role": "system", "content": "Be brief."}
SCHEMA = {"type": "object", "properties": {"line": {"type": "string"}}, "required": ["line"]}
TOOL = {"type": "function", "function": {"name": "find_ferry", "description": "Find a ferry", "parameters": SCHEMA}}
CALL = {"name": "find_ferry", "arguments": {"line": "A"}}
TOOL_CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "late"},
    {"role": "assistant", "content": ANSWER},
]


class Ingested(NamedTuple):
    """The rows of a dataset, the reasons of rejected rows by line, run_findings.json, and the log."""

    rows: list[Row]
    reasons: dict[int, str]
    told: Row
    log: str


@pytest.fixture
def ingest(tmp_path: Path, perform_stage: Callable[..., bool]) -> Callable[..., Ingested]:
    """Return a function that ingests rows, given as objects or as lines, from one file."""

    def ingest_rows(rows: list[Row | bytes], format: str = "records", **settings: Any) -> Ingested:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "raw.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        out = tmp_path / "out"
        perform_stage("ingest", out, source=str(tmp_path / "raw.jsonl"), format=format, **settings)
        names = ("preferences", "conversations", "documents")
        kept = [row for name in names if (out / f"{name}.jsonl").exists() for row in read_rows(out / f"{name}.jsonl")]
        rejected = {row["id"]: row["reason"] for row in read_rows(out / "rejected.jsonl")}
        reasons = {int(name.rpartition(":")[2]): reason for name, reason in rejected.items()}
        log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
        return Ingested(kept, reasons, json.loads((out / "run_findings.json").read_text()), log)

    return ingest_rows


def share_gpt(messages: list[Row]) -> list[Row]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[each["role"]], "value": each["content"]} for each in messages]


DIALOGUES: list[tuple[str, Row]] = [
    ("messages", {"messages": CHAT}),
    ("messages", {"messages": json.dumps(CHAT)}),
    ("messages", {"messages": [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in CHAT]}),
    ("messages", {"messages": [{**each, "role": each["role"].title(), "weight": None} for each in CHAT]}),
    (
        "messages",
        {
            "messages": [
                {
                    **each,
                    "type": "message",
                    "content": [{"type": "output_text", "text": each["content"], "annotations": []}],
                }
                for each in CHAT
            ]
        },
    ),
    ("messages", {"messages": CHAT, "images": [None], "image": [{"bytes": None, "path": None}], "tools": "null"}),
    ("messages", {"conversations": CHAT}),
    ("messages", {"conversation": CHAT, "system": "", "tools": "[]", "history": []}),
    ("ShareGPT", {"conversations": share_gpt(CHAT)}),
    ("ShareGPT", {"messages": share_gpt(CHAT)}),
    (
        "ShareGPT",
        {
            "mask": "User",
            "conversations": [
                {"from": "User", "value": QUESTION},
                {"from": "Assistant", "value": ANSWER, "label": None},
            ],
        },
    ),
    ("turns", {"conversation": [{"human": QUESTION, "assistant": ANSWER}]}),
    ("turns", {"conversation": [{"input": QUESTION, "output": ANSWER}], "options": ["a"]}),
    (
        "ShareGPT",
        {
            "conversations": [
                {"from": "human", "value": QUESTION, "weight": 0.0},
                {"from": "gpt", "value": ANSWER, "weight": 1.0},
            ]
        },
    ),
    ("Alpaca", {"instruction": QUESTION, "input": "", "output": ANSWER}),
    ("Alpaca", {"instruction": QUESTION, "output": ANSWER, "text": f"### {QUESTION} ### {ANSWER}"}),
    ("Alpaca", {"instruction": "", "input": QUESTION, "output": ANSWER}),
    ("Dolly", {"instruction": QUESTION, "context": "", "response": ANSWER}),
    ("prompt and completion", {"prompt": QUESTION, "completion": ANSWER}),
    ("prompt and completion", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
    ("prompt and completion", {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "completion": f" {ANSWER}"}),
    ("prompt and response", {"prompt": QUESTION, "response": ANSWER}),
    ("query and response", {"query": QUESTION, "response": ANSWER}),
    ("prompt and output", {"prompt": QUESTION, "output": ANSWER}),
    ("question and response", {"question": QUESTION, "response": ANSWER, "system_prompt": " "}),
    ("question and answer", {"question": QUESTION, "answer": ANSWER}),
    ("input and output", {"input": QUESTION, "output": ANSWER}),
    ("messages", {"messages": CHAT, "prompt": QUESTION, "conversations": share_gpt(CHAT)}),
]


def test_a_dialogue_in_any_spelling_becomes_the_same_conversation(ingest: Callable[..., Ingested]):
    found = ingest([row for _, row in DIALOGUES])
    assert not found.reasons
    said = [[(each["role"], each["content"].strip()) for each in row["messages"]] for row in found.rows]
    assert said == [[("user", QUESTION), ("assistant", ANSWER)]] * len(DIALOGUES)
    for name, count in found.told["spellings"].items():
        assert count == sum(spelling == name for spelling, _ in DIALOGUES), name
    assert "Alpaca (3 rows)" in found.log


TAKEN_IN: list[tuple[Row, list[Row]]] = [
    *[
        ({name: "Be brief.", "messages": CHAT}, [BRIEF, *CHAT])
        for name in ("system", "system_prompt", "system_message")
    ],
    ({"system": "Be brief.", "messages": [BRIEF, *CHAT]}, [BRIEF, *CHAT]),
    ({"system": "Be brief.", "messages": [{**BRIEF, "content": ""}, *CHAT]}, [BRIEF, *CHAT]),
    ({"instructions": "Be brief.", "messages": CHAT}, [BRIEF, *CHAT]),
    ({"chat_history": [["Hello", "Good day."]], "messages": CHAT}, [*EARLIER, *CHAT]),
    ({"system": "Be brief.", "conversations": share_gpt(CHAT)}, [BRIEF, *CHAT]),
    ({"system": "Be brief.", "instruction": QUESTION, "output": ANSWER}, [BRIEF, *CHAT]),
    ({"system_prompt": "Be brief.", "question": QUESTION, "response": ANSWER}, [BRIEF, *CHAT]),
    ({"history": [["Hello", "Good day."]], "instruction": QUESTION, "output": ANSWER}, [*EARLIER, *CHAT]),
    (
        {"history": [["Hello", "Good day."]], "query": QUESTION, "response": ANSWER, "system": "Be brief."},
        [BRIEF, *EARLIER, *CHAT],
    ),
    ({"history": EARLIER, "messages": [BRIEF, *CHAT]}, [BRIEF, *EARLIER, *CHAT]),
    ({"history": EARLIER, "messages": [*EARLIER, *CHAT]}, [*EARLIER, *CHAT]),
    (
        {"instruction": "Is it late?", "input": "Ferry A", "output": ANSWER},
        [{"role": "user", "content": "Is it late?\nFerry A"}, CHAT[1]],
    ),
    ({"prompt": [*EARLIER, CHAT[0]], "completion": [CHAT[1]]}, [EARLIER[0], {**EARLIER[1], "weight": 0}, *CHAT]),
]


def test_system_columns_and_histories_are_taken_into_the_dialogue(ingest: Callable[..., Ingested]):
    found = ingest([row for row, _ in TAKEN_IN])
    assert not found.reasons and [row["messages"] for row in found.rows] == [messages for _, messages in TAKEN_IN]
    assert not any("metadata" in row for row in found.rows)


def tool_rows() -> list[Row]:
    text = json.dumps(CALL["arguments"])
    old = [TOOL_CHAT[0], {"role": "assistant", "content": None, "function_call": {**CALL, "arguments": text}},
           {"role": "function", "name": "find_ferry", "content": "late"}, TOOL_CHAT[3]]  # fmt: skip
    spoken = [*share_gpt([TOOL_CHAT[0]]), {"from": "function_call", "value": json.dumps(CALL)},
              {"from": "observation", "value": "late"}, {"from": "gpt", "value": ANSWER}]  # fmt: skip
    swift = [TOOL_CHAT[0], {"role": "tool_call", "content": json.dumps(CALL)},
             {"role": "tool_response", "content": "late"}, TOOL_CHAT[3]]  # fmt: skip
    flat = [TOOL_CHAT[0], {"role": "assistant", "tool_calls": [CALL]}, *TOOL_CHAT[2:]]
    in_text = [TOOL_CHAT[0], {"role": "assistant", "tool_calls": json.dumps([CALL])}, *TOOL_CHAT[2:]]
    in_texts = [TOOL_CHAT[0], {"role": "assistant", "tool_calls": [json.dumps(CALL)]}, *TOOL_CHAT[2:]]
    names = ("tools", "functions", "tool_defs", "tool_definitions", "oai_tools", "available_tools")
    return [
        *({"messages": TOOL_CHAT, name: [TOOL]} for name in names),
        {"messages": TOOL_CHAT, "tools": json.dumps([TOOL])},
        {"messages": TOOL_CHAT, "tools": [json.dumps(TOOL)]},
        {"messages": TOOL_CHAT, "tools": json.dumps(TOOL["function"])},
        {"messages": TOOL_CHAT, "tools": [TOOL], "functions": [TOOL]},
        {"messages": old, "functions": [TOOL["function"]]},
        {"conversations": spoken, "tools": json.dumps([TOOL["function"]])},
        {"messages": swift, "tools": [TOOL]},
        {"messages": flat, "tools": [TOOL]},
        {"messages": in_text, "tools": [TOOL]},
        {"messages": in_texts, "tools": None, "tool_defs": json.dumps([TOOL["function"]])},
    ]


def test_tools_and_calls_in_any_spelling_become_the_same(ingest: Callable[..., Ingested]):
    found = ingest(tool_rows())
    assert not found.reasons and len(found.rows) == len(tool_rows())
    for row, given in zip(found.rows, tool_rows(), strict=True):
        assert (row["messages"], row["tools"]) == (TOOL_CHAT, [TOOL]), given


def test_calls_in_a_row_are_one_message_and_results_that_are_data_become_json(ingest: Callable[..., Ingested]):
    calls = [
        {"role": "tool_call", "content": json.dumps({"name": "find_ferry", "arguments": {"line": name}})}
        for name in "AB"
    ]
    results = [{"role": "tool", "content": {"state": "late"}}, {"role": "tool", "content": [1, 2]}]
    (row,) = ingest([{"messages": [CHAT[0], *calls, *results, CHAT[1]], "tools": [TOOL]}]).rows
    assert [call["function"]["arguments"] for call in row["messages"][1]["tool_calls"]] == [
        {"line": "A"},
        {"line": "B"},
    ]
    assert [each["content"] for each in row["messages"][2:4]] == ['{"state": "late"}', "[1, 2]"]


def test_a_null_in_the_text_of_a_call_is_meant(ingest: Callable[..., Ingested]):
    call = {"from": "function_call", "value": json.dumps({"name": "find_ferry", "arguments": {"line": None}})}
    told = [share_gpt(CHAT)[0], call, {"from": "observation", "value": "late"}, share_gpt(CHAT)[1]]
    (row,) = ingest([{"conversations": told, "tools": [TOOL]}]).rows
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"line": None}


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"masked": True}]
)
def test_loss_flags_of_messages_mask_the_answer_in_training(
    ingest: Callable[..., Ingested], flag: Row, tokenizer_path: Path
):
    chat_format = ChatFormat(Tokenizer.load(tokenizer_path))
    told = [EARLIER[0], {**EARLIER[1], **flag}, CHAT[0], {**CHAT[1], "weight": 1}]
    (row,) = ingest([{"messages": told}]).rows
    assert row["messages"] == [EARLIER[0], {**EARLIER[1], "weight": 0}, *CHAT]
    encoded = chat_format.encode(Conversation.from_json(row))
    learned = [token for token, is_learned in zip(*encoded, strict=True) if is_learned]
    assert chat_format.tokenizer.decode(learned[:-1]) == ANSWER
    assert encoded.ids == chat_format.encode(Conversation.from_json({"messages": [*EARLIER, *CHAT]})).ids


def test_columns_that_describe_a_row_are_told(ingest: Callable[..., Ingested]):
    rows = [{"messages": CHAT, "source": "port", "score": 0}, {"messages": CHAT, "source": "", "name": "x"}]
    found = ingest(rows)
    assert found.told["metadata_columns"] == {"name": 1, "score": 1, "source": 1}
    assert found.rows[0]["metadata"] == {"source": "port", "score": 0}
    assert found.rows[1]["metadata"] == {"source": "", "name": "x"}
    assert "  kept as metadata: name (1 rows), score (1 rows), source (1 rows)" in found.log


def test_what_ingest_wrote_is_read_as_it_stands(ingest: Callable[..., Ingested]):
    rows = ingest([row for row, _ in TAKEN_IN] + tool_rows()).rows
    assert ingest(rows).rows == rows


def test_names_of_speakers_are_left_out_and_told(ingest: Callable[..., Ingested]):
    found = ingest(
        [{"messages": [{**CHAT[0], "name": "Kim"}, CHAT[1]]}, {"messages": [{**CHAT[0], "name": ""}, CHAT[1]]}]
    )
    assert [row["messages"] for row in found.rows] == [CHAT, CHAT]
    assert found.told["left_out"] == {"messages[].name": 1} and "left out: messages[].name (1 rows)" in found.log
    found = ingest([{"prompt": [{**CHAT[0], "name": "Kim"}], **TEXTS}], "preferences")
    assert found.rows[0]["prompt"] == CHAT[:1] and found.told["left_out"] == {"prompt[].name": 1}


# Preferences

BETTER, WORSE = [{"role": "assistant", "content": "By ten minutes."}], [{"role": "assistant", "content": "No idea."}]
TEXTS = {"chosen": "By ten minutes.", "rejected": "No idea."}
HUMAN = f"\n\nHuman: {QUESTION}\n\nAssistant: "
PAIRS: list[tuple[str, Row]] = [
    ("chosen and rejected", {"prompt": QUESTION, **TEXTS}),
    ("chosen and rejected", {"prompt": CHAT[:1], "chosen": BETTER, "rejected": WORSE}),
    ("chosen and rejected", {"prompt": CHAT[:1], "chosen": BETTER[0], "rejected": WORSE[0]}),
    ("chosen and rejected", {"prompt": CHAT[:1], **TEXTS}),
    ("chosen and rejected", {"chosen": [CHAT[0], *BETTER], "rejected": [CHAT[0], *WORSE]}),
    ("chosen and rejected", {"prompt": CHAT[:1], "chosen": [CHAT[0], *BETTER], "rejected": [CHAT[0], *WORSE]}),
    ("chosen and rejected", {"prompt": QUESTION, "messages": CHAT, "chosen": CHAT, "rejected": [CHAT[0], *WORSE]}),
    ("chosen and rejected", {"messages": CHAT, "chosen": CHAT, "rejected": [CHAT[0], *WORSE]}),
    ("chosen and rejected", {"messages": CHAT[:1], "chosen": BETTER, "rejected": WORSE}),
    (
        "chosen and rejected",
        {"conversations": share_gpt(CHAT[:1]), "chosen": share_gpt(BETTER)[0], "rejected": share_gpt(WORSE)[0]},
    ),
    ("chosen and rejected", {"question": QUESTION, **TEXTS}),
    ("chosen and rejected", {"instruction": QUESTION, "input": "", **TEXTS}),
    ("chosen and rejected", {"chosen": HUMAN + TEXTS["chosen"], "rejected": HUMAN + TEXTS["rejected"]}),
    ("chosen and rejected", {name: (HUMAN + text).replace("\n", "\r\n") for name, text in TEXTS.items()}),
    ("chosen and rejected", {"prompt": HUMAN, **TEXTS}),
    ("chosen and rejected", {"prompt": QUESTION, **{name: HUMAN + text for name, text in TEXTS.items()}}),
    (
        "OpenAI preferences",
        {"input": {"messages": CHAT[:1], "tools": []}, "preferred_output": BETTER, "non_preferred_output": WORSE},
    ),
    ("ms-swift", {"messages": CHAT, "rejected_response": TEXTS["rejected"]}),
    ("ms-swift", {"messages": CHAT, "rejected_messages": [CHAT[0], *WORSE]}),
]


def test_a_pair_in_any_spelling_becomes_the_same_preference(ingest: Callable[..., Ingested]):
    found = ingest([row for _, row in PAIRS], "preferences")
    assert not found.reasons
    for row, (_, given) in zip(found.rows, PAIRS, strict=True):
        assert [row[name] for name in ("prompt", "chosen", "rejected")] == [CHAT[:1], BETTER, WORSE], given
    for name, count in found.told["spellings"].items():
        assert count == sum(spelling == name for spelling, _ in PAIRS), name


def test_system_tools_and_history_of_a_pair_are_taken_in(ingest: Callable[..., Ingested]):
    rows = [
        {"system": "Be brief.", "question": QUESTION, **TEXTS},
        {"system": "Be brief.", "prompt": CHAT[:1], "chosen": BETTER, "rejected": WORSE},
        {"system": "Be brief.", **{name: HUMAN + text for name, text in TEXTS.items()}},
        {"system": "Be brief.", "chosen": [BRIEF, CHAT[0], *BETTER], "rejected": [BRIEF, CHAT[0], *WORSE]},
        {"prompt": [BRIEF, CHAT[0]], "chosen": [CHAT[0], *BETTER], "rejected": [CHAT[0], *WORSE]},
    ]
    found = ingest(rows, "preferences")
    assert not found.reasons and {json.dumps(row["prompt"]) for row in found.rows} == {json.dumps([BRIEF, CHAT[0]])}
    tools = {"input": {"messages": CHAT[:1], "tools": [TOOL], "parallel_tool_calls": True},
             "preferred_output": BETTER, "non_preferred_output": WORSE}  # fmt: skip
    history = {"history": [["Hello", "Good day."]], "instruction": QUESTION, **TEXTS}
    found = ingest([tools, history], "preferences")
    assert found.rows[0]["tools"] == [TOOL] and found.rows[1]["prompt"] == [*EARLIER, CHAT[0]]
    assert found.told["left_out"] == {"input.parallel_tool_calls": 1}


def test_an_answer_with_a_call_and_its_result_keeps_a_prompt_of_text(ingest: Callable[..., Ingested]):
    (row,) = ingest(
        [{"prompt": QUESTION, "chosen": TOOL_CHAT[1:], "rejected": WORSE, "tools": [TOOL]}], "preferences"
    ).rows
    assert (row["prompt"], row["chosen"]) == (CHAT[:1], TOOL_CHAT[1:])


def test_pairs_of_one_prompt_may_share_its_id(ingest: Callable[..., Ingested]):
    rows = [{"prompt_id": "p", "prompt": QUESTION, **TEXTS, "rejected": f"No {number}."} for number in range(3)]
    found = ingest(rows, "preferences")
    assert [row["id"] for row in found.rows] == ["p", "raw.jsonl:2", "raw.jsonl:3"]
    found = ingest([{"id": "raw.jsonl:3", "prompt": QUESTION, **TEXTS, "rejected": "Late."}, *rows], "preferences")
    assert [row["id"] for row in found.rows] == ["raw.jsonl:3", "p", "raw.jsonl:4"]
    assert "an id of an earlier row: 'raw.jsonl:3', raw.jsonl row 1" in found.reasons[3]


# One result from every file


def test_rows_from_parquet_json_and_jsonl_become_the_same(tmp_path: Path, perform_stage: Callable[..., bool]):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    other = {
        "name": "book",
        "parameters": {"type": "object", "properties": {"seat": {"type": "string", "default": None}}},
    }
    booked = [
        TOOL_CHAT[0],
        {"role": "assistant", "tool_calls": [{"function": {"name": "book", "arguments": {"seat": "4"}}}]},
        *TOOL_CHAT[2:],
    ]
    rows = [
        {"messages": TOOL_CHAT, "tools": [TOOL], "info": {"page": 1}},
        {"messages": booked, "tools": [{"type": "function", "function": other}], "info": {"line": "A"}},
        {"messages": CHAT, "system": "Be brief."},
        {"instruction": QUESTION, "input": "", "output": ANSWER},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
    ]  # fmt: skip
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in {key for row in rows for key in row}} for row in rows]
    )
    found: dict[str, bytes] = {}
    for name, padded in (("rows.jsonl", rows), ("padded.jsonl", table.to_pylist()), ("list.json", table.to_pylist())):
        text = json.dumps(padded) if name.endswith(".json") else "\n".join(map(json.dumps, padded))
        (tmp_path / name).write_text(text)
    pq.write_table(table, tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "padded.jsonl", "list.json", "rows.parquet"):
        perform_stage("ingest", tmp_path / "out" / name, source=str(tmp_path / name), format="records")
        assert not (tmp_path / "out" / name / "rejected.jsonl").read_bytes(), name
        found[name] = (tmp_path / "out" / name / "conversations.jsonl").read_bytes().replace(name.encode(), b"NAME")
    assert all(data == found["rows.jsonl"] for data in found.values()), found


STRANGE = (
    None,
    True,
    0,
    -1.5,
    float("nan"),
    "",
    " ",
    "[",
    "{}",
    "user",
    "a\ud83d",
    [],
    {},
    [None],
    [[]],
    ["a"],
    {"a": None},
)


def changed(value: Any, source: random.Random) -> Any:
    """Return a value with one part replaced, removed or wrapped."""
    if isinstance(value, dict) and value and source.random() < 0.85:
        name = source.choice(list(value))
        rest = {each: item for each, item in value.items() if each != name}
        return rest if source.random() < 0.2 else {**rest, name: changed(value[name], source)}
    if isinstance(value, list) and value and source.random() < 0.85:
        place = source.randrange(len(value))
        return [changed(item, source) if index == place else item for index, item in enumerate(value)]
    return source.choice((*STRANGE, [value], {"text": value}, json.dumps(value)))


def test_no_change_of_a_good_row_raises(tmp_path: Path):
    source, good = (
        random.Random(7),
        [row for _, row in (*DIALOGUES, *PAIRS)] + [row for row, _ in TAKEN_IN] + tool_rows(),
    )
    rows = [changed(source.choice(good), source) for _ in range(4000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for read in (read_records, read_pairs):
        found = list(read(tmp_path / "rows.jsonl", "rows.jsonl"))
        assert len(found) == len(rows)
        accepted = [each.row for each in found if isinstance(each, Accepted)]
        assert accepted and all(json.dumps(row.to_json()) for row in accepted)
        assert all(each.reason for each in found if isinstance(each, Rejected))
