"""Rows on disk come back as they were; every token is read exactly once an epoch, wherever one goes on."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.data.packing import Batch, Example, Packer, Position
from puna.data.shards import open_shard, read_rows, write_jsonl, write_parquet
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.errors import ChatError, DataError
from puna.training.objectives.next_token import NextToken

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(codec="utf-8"))
CALLS = st.builds(
    ToolCall, st.text(min_size=1, max_size=5), st.dictionaries(TEXT, JSON, max_size=3), id=st.just("call 1")
)
MESSAGES = st.builds(Message, st.sampled_from(["user", "tool"]), TEXT) | st.builds(
    Message, st.just("assistant"), TEXT, st.lists(CALLS, max_size=2).map(tuple)
)
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"properties": {"order": {"type": "string"}}}}}
CONVERSATIONS = st.builds(
    Conversation,
    st.lists(MESSAGES, min_size=1, max_size=4).map(tuple),
    tools=st.sampled_from([(), (TOOL,), (TOOL, {**TOOL, "strict": False})]),
    metadata=st.dictionaries(TEXT, JSON, max_size=2),
)


class Lengths(Dataset):
    """A dataset of rows that are only lengths."""

    def __init__(self, lengths: Sequence[int]):
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return index

    def location(self, index: int) -> str:
        return f"row {index}"


def packer_over(lengths: Sequence[int], *, batch_tokens: int, context: int, is_cut: bool, seed: int = 0) -> Packer:
    """Pack examples of which each token says where it comes from: example * 1000 + place."""

    def encode(row: Any, source: random.Random) -> Sequence[Example]:
        ids = [row * 1000 + place for place in range(lengths[row] + 1)]
        return [Example(ids, [place % 3 > 0 for place in range(len(ids))])]

    dataset = Lengths(lengths)
    return Packer(dataset, encode, seed=seed, batch_tokens=batch_tokens, context=context, is_cut=is_cut)


def read_epochs(packer: Packer, num_epochs: int) -> list[tuple[Batch, Position]]:
    """Read whole epochs; each batch with the position after it."""
    batches, position = [], Position()
    while position.epoch < num_epochs:
        batch, position = packer.next(position)
        batches.append((batch, position))
    return batches


def contents(batch: Batch) -> tuple[list[int], list[int], list[bool], tuple[int, ...], list[int]]:
    tensors = batch.tokens_T, batch.targets_T, batch.trained_T, batch.positions_T
    tokens, targets, trained, positions = (tensor.tolist() for tensor in tensors)
    return tokens, targets, trained, batch.lengths, positions


SHAPES = {
    "lengths": st.lists(st.integers(1, 30), min_size=1, max_size=8),
    "context": st.integers(1, 32),
    "more": st.integers(0, 40),
    "is_cut": st.booleans(),
    "seed": st.integers(0, 5),
}


@settings(max_examples=150, deadline=None)
@given(**SHAPES)
def test_every_token_is_read_exactly_once_an_epoch(
    lengths: list[int], context: int, more: int, is_cut: bool, seed: int
):
    if not is_cut and all(length > context for length in lengths):
        lengths = [*lengths, context]
    packer = packer_over(lengths, batch_tokens=context + more, context=context, is_cut=is_cut, seed=seed)
    batches = read_epochs(packer, 2)
    kept = [row for row, length in enumerate(lengths) if is_cut or length <= context]
    expected = Counter(row * 1000 + place for row in kept for place in range(1, lengths[row] + 1))
    for epoch in range(2):
        starts = [Position(), *(position for _, position in batches)]
        targets = Counter[int]()
        for start, (batch, _) in zip(starts, batches, strict=False):
            targets.update(batch.targets_T.tolist() if start.epoch == epoch else [])
        assert targets == expected
    assert packer.num_too_long == 2 * (len(lengths) - len(kept))


@settings(max_examples=100, deadline=None)
@given(**SHAPES)
def test_batches_keep_examples_whole_and_within_their_bounds(
    lengths: list[int], context: int, more: int, is_cut: bool, seed: int
):
    lengths = [*lengths, context]
    packer = packer_over(lengths, batch_tokens=context + more, context=context, is_cut=is_cut, seed=seed)
    for batch, _ in read_epochs(packer, 1):
        tokens, targets, trained, piece_lengths, positions = contents(batch)
        assert sum(piece_lengths) == len(tokens) <= context + more and max(piece_lengths) <= context
        assert targets == [token + 1 for token in tokens]
        assert trained == [target % 1000 % 3 > 0 for target in targets]
        assert positions == [place for length in piece_lengths for place in range(length)]
        if not is_cut:
            assert positions == [token % 1000 for token in tokens]
            assert [token // 1000 for token in tokens if token % 1000 == 0] == list(
                dict.fromkeys(t // 1000 for t in tokens)
            )


@settings(max_examples=100, deadline=None)
@given(**SHAPES, stops=st.sets(st.integers(0, 20)))
def test_going_on_from_any_positions_gives_the_same_batches(
    lengths: list[int], context: int, more: int, is_cut: bool, seed: int, stops: set[int]
):
    lengths = [*lengths, context]
    shape: dict[str, Any] = {"batch_tokens": context + more, "context": context, "is_cut": is_cut, "seed": seed}
    through = [contents(batch) for batch, _ in read_epochs(packer_over(lengths, **shape), 3)]
    resumed, position, packer = [], Position(), packer_over(lengths, **shape)
    while position.epoch < 3:
        batch, position = packer.next(position)
        resumed.append(contents(batch))
        if len(resumed) in stops:
            packer, position = packer_over(lengths, **shape), Position(**json.loads(json.dumps(vars_of(position))))
    assert resumed == through


def vars_of(position: Position) -> dict[str, int]:
    return {name: getattr(position, name) for name in Position.__slots__}


def test_a_batch_ends_with_its_epoch():
    packer = packer_over([3, 4], batch_tokens=100, context=10, is_cut=False)
    batch, position = packer.next(Position())
    assert sorted(batch.lengths) == [3, 4] and position == Position(1)
    assert packer.progress(position) == 1.0


def test_a_long_document_is_encoded_once_not_once_a_piece():
    count = Counter[int]()

    def encode(row: Any, source: random.Random) -> Sequence[Example]:
        count[row] += 1
        return [Example(range(1001), [True] * 1001)]

    packer = Packer(Lengths([1000]), encode, seed=0, batch_tokens=10, context=10, is_cut=True)
    assert len(read_epochs(packer, 1)) == 100 and count == {0: 1}


def test_where_every_conversation_is_too_long_the_packer_says_so():
    packer = packer_over([11, 12, 13], batch_tokens=10, context=10, is_cut=False)
    with pytest.raises(
        DataError, match="every conversation is longer than the context; expected conversations of at most 10"
    ):
        packer.next(Position(0, 1))


def test_one_short_conversation_among_long_ones_is_found_from_anywhere():
    for seed in range(5):
        packer = packer_over([11, 12, 5, 13], batch_tokens=10, context=10, is_cut=False, seed=seed)
        assert all(packer.next(Position(0, index))[0].lengths == (5,) for index in range(4))


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    data = Lengths([1] * 50)
    assert (data.order(1, 2) == Lengths([1] * 50).order(1, 2)).all()
    orders = [tuple(data.order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9 and all(sorted(order) == list(range(50)) for order in orders)
    # Golden: another order would make a resumed run differ from the one that was interrupted.
    assert np.random.default_rng((7, 3)).permutation(8).tolist() == Lengths([1] * 8).order(7, 3).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(CONVERSATIONS, min_size=1, max_size=4))
def test_conversations_come_back_from_jsonl_and_parquet(tmp_path_factory: Any, conversations: list[Conversation]):
    folder = tmp_path_factory.mktemp("shards")
    rows = [conversation.to_json() for conversation in conversations]
    write_jsonl(folder / "conversations.jsonl", rows)
    write_parquet(folder / "conversations.parquet", rows)
    for name in ("conversations.jsonl", "conversations.parquet"):
        assert [Conversation.from_json(row) for row in read_rows(folder / name)] == conversations
    assert list(read_rows(folder / "conversations.jsonl")) == list(read_rows(folder / "conversations.parquet"))


def test_arguments_of_one_call_are_not_those_of_all(tmp_path: Path):
    calls = [{"order": "1"}, {"items": [{"size": None}, 2]}, {}]
    rows = [Conversation((Message("assistant", tool_calls=(ToolCall("f", call),)),)).to_json() for call in calls]
    rows.append(Conversation((Message("assistant", "hi"),), tools=(TOOL,), metadata={"source": {"a": 1}}).to_json())
    write_parquet(tmp_path / "conversations.parquet", rows)
    assert list(read_rows(tmp_path / "conversations.parquet")) == rows


def test_parquet_of_others_with_structs_is_read_without_the_nulls_that_structs_need(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages[::-1], "id": "x"}]), tmp_path / "conversations.parquet")
    row = next(read_rows(tmp_path / "conversations.parquet"))
    assert Conversation.from_json(row).messages[0].tool_calls == (ToolCall("f", {"a": 1}, id="1"),)
    assert row["messages"][1] == messages[0]


def test_documents_come_back_from_jsonl_and_parquet(tmp_path: Path):
    documents = [Document("one", "1", metadata={"page": 2}), Document("zwei\n\n", "2", "web", "de", "CC0")]
    rows = [document.to_json() for document in documents]
    assert write_jsonl(tmp_path / "documents.jsonl", rows) == write_parquet(tmp_path / "documents.parquet", rows) == 2
    for name in ("documents.jsonl", "documents.parquet"):
        shard = open_shard(tmp_path / name)
        assert [Document.from_json(row) for row in shard] == documents
        assert Document.from_json(shard[1]) == documents[1] and shard[0:2] == [shard[0], shard[1]]


def test_a_lone_surrogate_survives_and_the_file_stays_utf_8(tmp_path: Path):
    rows = [{"text": "a\ud800b"}, {"text": "ü"}]
    write_jsonl(tmp_path / "documents.jsonl", rows)
    assert "ü" in (tmp_path / "documents.jsonl").read_text(encoding="utf-8")
    assert list(read_rows(tmp_path / "documents.jsonl")) == rows


def test_what_json_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="JSON cannot hold"):
        write_jsonl(tmp_path / "documents.jsonl", [{"score": float("nan")}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("documents.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("documents.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is a list; expected a JSON object"),
        ("documents.jsonl", b'{"text": "a"}\n\xff\xfe\n', "line 2 is not JSON"),
        ("documents.jsonl", b'{"text": "a"}\n{"text": 5}\n', "row 2 has no 'text'"),
        ("documents.jsonl", b'{"text": "a"}\n{"text": "b", "txet": 1}', "row 2 has 'txet'"),
        ("conversations.jsonl", b'{"messages": []}\n{"messages": [{"role": "x"}]}\n', "row 2: messages"),
        ("documents.parquet", b"PAR1 and no more", "not a Parquet file"),
        ("documents.jsonl", b"", "no rows in"),
        ("letters.jsonl", b'{"text": "a"}\n', "no rows in"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, ChatError), match=message) as caught:
        dataset = Dataset([tmp_path])
        _ = [dataset[index] for index in range(len(dataset))]
    assert str(tmp_path) in str(caught.value)


def test_a_dataset_is_all_its_sources_in_order(dataset_path: Path, tmp_path: Path):
    write_jsonl(tmp_path / "documents-1.jsonl", [{"text": "one", "id": "1"}, {"text": "two", "id": "2"}])
    write_parquet(tmp_path / "documents-2.parquet", [{"text": "three", "id": "3"}])
    dataset = Dataset([tmp_path, dataset_path / "conversations.jsonl"])
    assert len(dataset) == 3 + 12
    rows = [dataset[index] for index in range(len(dataset))]
    assert [row.text for row in rows if isinstance(row, Document)] == ["one", "two", "three"]
    assert [row.id for row in rows if isinstance(row, Conversation)] == [f"order {n}" for n in range(12)]
    assert dataset.location(2).endswith("documents-2.parquet row 1")


def test_a_source_without_rows_of_the_kind_is_named(dataset_path: Path, tmp_path: Path):
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "one", "id": "1"}])
    with pytest.raises(DataError, match=rf"no rows in {tmp_path}; expected conversations\*\.jsonl"):
        Dataset([dataset_path, tmp_path], ["conversations"])


def test_a_conversation_that_cannot_be_trained_on_is_named_by_its_row(tmp_path: Path, tokenizer_path: Path):
    write_jsonl(tmp_path / "conversations.jsonl", [Conversation((Message("user", "hello"),)).to_json()])
    chat = ChatFormat(Tokenizer.load(tokenizer_path))
    packer = Packer(
        Dataset([tmp_path]), NextToken(chat, False, False).encode, seed=0, batch_tokens=9, context=9, is_cut=False
    )
    with pytest.raises(ChatError, match=r"conversations\.jsonl row 1: .*no message to train on"):
        packer.next(Position())


ORDER = Conversation(
    (
        Message("system", "Shop 12. Hotline 5550."),
        Message("user", "Where is 48151? I paid 1234.50 on 3 May, code AB4815."),
        Message(
            "assistant", tool_calls=(ToolCall("find", {"order": "48151", "lines": [{"no": 77001}], "big": True}, "c1"),)
        ),
        Message("tool", '{"order": 48151, "parcel": "de-0062342", "price": 1234.50, "year": "12"}', tool_call_id="c1"),
        Message("assistant", "Order no.48151, line 77001, is parcel de-0062342. १२३४५"),
    ),
    metadata={"order": "48151"},
    id="48151",
)


def test_fresh_identifiers_are_renamed_everywhere_alike_and_nothing_else_changes():
    fresh = fresh_identifiers(ORDER, random.Random(0))
    call = fresh.messages[2].tool_calls[0]
    order, line = call.arguments["order"], str(call.arguments["lines"][0]["no"])
    parcel = fresh.messages[4].content.partition("de-")[2].partition(".")[0]
    assert f"no.{order}," in fresh.messages[4].content
    assert [len(new) for new in (order, line, parcel)] == [5, 5, 7] and parcel.startswith("0")
    assert len({order, line, parcel, "48151", "77001", "0062342"}) == 6
    text = json.dumps(fresh.to_json(), ensure_ascii=False)
    for new, old in ((order, "48151"), (line, "77001"), (parcel, "0062342")):
        text = text.replace(new, old)
    assert json.loads(text) == ORDER.to_json()
    assert fresh.id == ORDER.id and fresh.metadata == ORDER.metadata and call.id == "c1"


def test_fresh_identifiers_are_the_same_for_the_same_source_and_others_for_another():
    fresh = [fresh_identifiers(ORDER, random.Random(seed)) for seed in (0, 0, 1)]
    assert fresh[0] == fresh[1] != fresh[2]


def test_two_identifiers_never_become_one():
    names = [str(number) for number in range(1000, 4000)]
    conversation = Conversation((Message("tool", " ".join(names)),))
    fresh = fresh_identifiers(conversation, random.Random(0)).messages[0].content.split()
    assert len(set(fresh)) == len(names) and set(fresh) != set(names)


def test_a_conversation_without_tools_keeps_its_numbers():
    conversation = Conversation((Message("user", "My number is 48151."), Message("assistant", "48151, thanks.")))
    assert fresh_identifiers(conversation, random.Random(0)) == conversation


def test_a_parquet_column_of_broken_json_is_refused_with_its_row(tmp_path: Path):
    path = tmp_path / "conversations.parquet"
    pq.write_table(pa.table({"messages": pa.array(["[]", "[" * 100_000], pa.json_())}), path)
    with pytest.raises(DataError, match="row 2 holds a text that is not JSON"):
        open_shard(path)[1]
