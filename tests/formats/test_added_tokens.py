"""Added tokens that are not special: text with an id of its own, in every format and at every way in and out."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from grown_checkpoint import added_tokens, entry, grow
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from puna.conversion.exchange.vocabulary import tokenizer_receipt
from puna.formats.chat import ChatFormat, Conversation, Message
from puna.formats.chat.stream import MessageStream
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.gguf.reader import open_gguf
from puna.formats.checkpoint.gguf.vocabulary import render_tokenizer
from puna.formats.checkpoint.meta.writer import write_meta
from puna.formats.tokenizer.added import AddedToken
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.detokenizer import TextStream
from puna.model.config import LlamaConfig
from puna.pipeline.artifacts.artifact import read_receipts
from puna.pipeline.errors import CheckpointError, TokenizerError
from puna.planning.doctor.examine import examine
from puna.planning.doctor.report import Report
from puna.testing.tiny_checkpoint import edit_json, tokenizer

META_MODEL = Path(str(files("llama_models") / "llama3" / "tokenizer.model"))
TEXT = "the <order>fox</order> dog"
ORDER, ORDER_END = 530, 531


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two text tokens and a special one, as transformers' add_tokens makes them."""
    tokens = entry("<order>"), entry("</order>"), entry("<|mark|>", special=True, normalized=False)
    return grow(tmp_path_factory.mktemp("grown") / "model", *tokens)


def library_ids(path: Path, text: str) -> list[int]:
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def look_at(path: Path) -> Report:
    return examine(path, console=Console(quiet=True))


def codes_of(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def with_tokens(*tokens: AddedToken) -> Tokenizer:
    return Tokenizer(tokenizer()._encoder, (*tokenizer().added, *tokens))


def test_a_text_token_is_one_id_in_text_and_is_printed(grown: Path):
    ours, chat = Tokenizer.load(grown), ChatFormat(Tokenizer.load(grown))
    ids = ours.encode(TEXT)
    assert ids == library_ids(grown, TEXT) and {ORDER, ORDER_END} <= set(ids)
    assert ours.decode(ids) == TEXT
    assert chat.parse(ids).content == TEXT
    stream = MessageStream(chat, [])
    assert "".join(map(str, stream.feed(ids) + stream.finish())) == TEXT
    text = TextStream(ours)
    assert "".join(map(text.feed, ids)) + text.finish() == TEXT
    assert not {ORDER, ORDER_END} & {*ours.stop_ids, *chat.stop_ids, *ours.special_ids.values()}


def test_a_users_text_holds_text_tokens_and_never_a_special_one(grown: Path):
    chat = ChatFormat(Tokenizer.load(grown))
    said = Conversation((Message("user", "<order>1</order><|mark|><|eot_id|>"), Message("assistant", "<order>")))
    ids = chat.encode(said).ids
    assert ids.count(ORDER) == 2 and ids.count(ORDER_END) == 1
    assert 532 not in ids
    assert ids.count(chat.tokenizer.special("eot_id")) == 2


words = st.sampled_from(["<a>", "</a>", "wo", "é", " b ", "\n\n", "日本", "the", "<a", "q"])
flags = st.fixed_dictionaries({name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "normalized")})
texts = st.text(st.sampled_from("<a>/ woébthe\n日本q"), max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(words, flags, min_size=1, max_size=4), st.lists(words | texts, max_size=12))
def test_ids_equal_the_library_whatever_the_flags_are(added: dict[str, dict[str, bool]], parts: list[str]):
    text = "".join(parts)
    library = tokenizers.Tokenizer.from_str(tokenizer()._encoder.to_str())
    library.add_tokens([tokenizers.AddedToken(each, special=False, **flags) for each, flags in added.items()])
    ids = {each: library.token_to_id(each) or 0 for each in added}
    tokens = [AddedToken(each, ids[each], is_special=False, **flags) for each, flags in added.items()]
    assert with_tokens(*tokens).encode(text) == library.encode(text, add_special_tokens=False).ids


def test_a_token_that_a_long_text_would_be_cut_in_is_still_one_id():
    token = AddedToken("<order>", ORDER, is_special=False)
    text = "x" * 24_997 + "<order>" + "y" * 400_000
    ids = with_tokens(token).encode(text)
    assert ids.count(ORDER) == 1
    assert with_tokens(token).encode("\ud800<order>") == with_tokens(token).encode("\ufffd<order>")


def test_ids_without_text_tokens_and_fingerprints_stay_as_they_were():
    assert with_tokens().fingerprint == tokenizer().fingerprint
    assert with_tokens(AddedToken("<order>", ORDER, False)).fingerprint != tokenizer().fingerprint
    assert with_tokens(AddedToken("<order>", ORDER, True)).text_tokens == ()


def test_flags_survive_saving_and_transformers_reads_the_same(tmp_path: Path):
    import transformers

    tokens = [
        AddedToken("<order>", 530, False, normalized=True),
        AddedToken("wo", 531, False, single_word=True),
        AddedToken("<x>", 532, False, lstrip=True, rstrip=True),
        AddedToken("<s>", 533, True, rstrip=True),
        AddedToken("  \n", 534, False),
    ]
    with_tokens(*tokens).save(tmp_path)
    assert Tokenizer.load(tmp_path).added[-5:] == tuple(tokens)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a <x> b", "two wo", "<order><order>", "a  \n b"):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ids == Tokenizer.load(tmp_path).encode(text)
        assert theirs.decode(ids, skip_special_tokens=True) == Tokenizer.load(tmp_path).decode(ids)


def test_the_fingerprint_is_that_of_the_ids_and_a_listed_token_is_no_regular_one(tmp_path: Path):
    plain, normalized = (with_tokens(AddedToken("<order>", ORDER, False, normalized=flag)) for flag in (False, True))
    assert plain.fingerprint == normalized.fingerprint
    path = grow(tmp_path / "model", entry("<order>"))
    edit_json(path / "tokenizer.json", lambda raw: raw["model"]["vocab"].update({"<order>": ORDER}))
    listed = Tokenizer.load(path)
    assert listed.num_regular == plain.num_regular == tokenizer().num_regular
    assert listed.encode("a<order>b") == plain.encode("a<order>b")


def test_many_text_tokens_are_found_like_few():
    tokens = [AddedToken(f"<item {number}>", 530 + number, False) for number in range(500)]
    ids = with_tokens(*tokens).encode("<item 7> and <item 499>")
    assert (ids[0], ids[-1]) == (537, 1029)


def test_a_token_that_the_vocabulary_has_already_keeps_its_id(tmp_path: Path):
    grow(tmp_path / "model")
    known = tokenizer().encode("the")[0]
    text = tokenizer().decode([known])
    edit_json(
        tmp_path / "model" / "tokenizer.json", lambda raw: raw["added_tokens"].append({"id": known, **entry(text)})
    )
    ours = Tokenizer.load(tmp_path / "model")
    assert ours.encode(f"q{text}q") == library_ids(tmp_path / "model", f"q{text}q")
    assert ours.num_regular == tokenizer().num_regular


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"id": 300, **entry("<order>")}, "has this id"),
        ({"id": 530, **entry("a")}, "the vocabulary says"),
        ({"id": 529, **entry("<order>")}, "has this id"),
    ],
)
def test_an_id_of_two_tokens_is_refused(tmp_path: Path, added: dict, message: str):
    grow(tmp_path / "model")
    edit_json(tmp_path / "model" / "tokenizer.json", lambda raw: raw["added_tokens"].append(added))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path / "model")


def decoder_of(text: str, index: int = 530, **flags: bool) -> dict:
    return {"added_tokens_decoder": {str(index): entry(text, **flags)}}


BESIDE = [
    ("tokenizer_config.json", {}, False, False),
    ("tokenizer_config.json", decoder_of("<order>", special=True), False, True),
    ("tokenizer_config.json", decoder_of("<order>", special=False), True, True),
    ("tokenizer_config.json", {"eos_token": "<order>"}, False, True),
    ("tokenizer_config.json", {"sep_token": "<order>"}, False, True),
    ("tokenizer_config.json", {"additional_special_tokens": ["<order>"]}, False, False),
    ("tokenizer_config.json", {"extra_special_tokens": ["<order>"]}, False, False),
    ("tokenizer_config.json", decoder_of("<order>"), None, False),
    ("added_tokens.json", {"<order>": 530}, None, False),
    ("added_tokens.json", {"<order>": 530}, True, True),
    ("special_tokens_map.json", {"additional_special_tokens": ["<order>"]}, False, False),
]


@pytest.mark.parametrize(("name", "content", "is_special", "expected"), BESIDE)
def test_files_beside_tokenizer_json_say_what_they_say_to_transformers(
    tmp_path: Path, name: str, content: dict, is_special: bool | None, expected: bool
):
    import transformers

    path = grow(tmp_path / "model", *([] if is_special is None else [entry("<order>", special=is_special)]))
    (path / name).write_text(json.dumps(content))
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert theirs.convert_tokens_to_ids("<order>") == ORDER
    assert theirs.decode([ORDER], skip_special_tokens=True) == ("" if expected else "<order>")
    ours = {token.id: token for token in Tokenizer.load(path).added}[ORDER]
    assert (ours.text, ours.is_special) == ("<order>", expected)


def test_a_token_that_opens_a_turn_is_special_whatever_the_file_says(tmp_path: Path):
    path = grow(tmp_path / "model")

    def unmark(raw: dict) -> None:
        for each in raw["added_tokens"]:
            each["special"] = False

    edit_json(path / "tokenizer.json", unmark)
    ours = Tokenizer.load(path)
    assert not any(map(ours.is_special, ours.encode("<|start_header_id|>system<|end_header_id|><|eot_id|>")))
    assert len(ours.encode("<|reserved_special_token_7|>")) == 1, "a token without a role is what the file says"
    assert codes_of(look_at(path)) == {"special-as-text"}


@pytest.mark.parametrize(
    ("name", "content", "codes"),
    [
        ("tokenizer_config.json", decoder_of("<order>"), set()),
        ("tokenizer_config.json", decoder_of("<order>", special=True), {"added-disagrees"}),
        ("tokenizer_config.json", decoder_of("<order>", 531), {"added-disagrees"}),
        ("added_tokens.json", {"<order>": 531}, {"added-disagrees"}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<order>"]}, {"added-disagrees"}),
    ],
)
def test_the_doctor_says_where_files_disagree(tmp_path: Path, name: str, content: dict, codes: set[str]):
    path = grow(tmp_path / "model", entry("<order>"))
    raw = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).write_text(json.dumps(raw | content))
    report = look_at(path)
    assert codes_of(report) == codes
    if not codes:
        assert report.facts["tokenizer"] == "531 ids, 256 special, 1 added as text"


def test_the_doctor_says_that_a_special_token_takes_in_space(tmp_path: Path):
    assert codes_of(look_at(grow(tmp_path / "model", entry("<x>", special=True, rstrip=True)))) == {"special-strips"}


def test_the_kind_survives_import_gguf_and_the_way_back(
    tmp_path: Path, grown: Path, perform_stage: Callable[..., bool]
):
    expected = {"<order>": (530, False), "</order>": (531, False), "<|mark|>": (532, True)}
    perform_stage("import", tmp_path / "ours", source=str(grown), licence="MIT")
    assert added_tokens(tmp_path / "ours") == expected
    perform_stage("export", tmp_path / "gguf", checkpoint=str(tmp_path / "ours"), format="gguf", kind="F32")
    file = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    kinds = file.fields["tokenizer.ggml.token_type"].contents()[530:]
    assert kinds == [gguf.TokenType.USER_DEFINED, gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL]
    perform_stage("import", tmp_path / "back", source=str(tmp_path / "gguf" / "model.gguf"), licence="MIT")
    assert added_tokens(tmp_path / "back") == expected
    perform_stage("export", tmp_path / "hf", checkpoint=str(tmp_path / "back"), format="huggingface")
    assert added_tokens(tmp_path / "hf") == expected
    for name in ("ours", "back"):
        receipt = next(each for each in read_receipts(tmp_path / name) if each.claim == "tokenizer_kept")
        assert receipt.held and receipt.value == 0


def test_the_receipt_finds_a_flag_that_was_lost(tmp_path: Path, grown: Path):
    written = Path(shutil.copytree(grown, tmp_path / "written"))
    assert tokenizer_receipt(grown, written).held

    def mark(raw: dict) -> None:
        raw["added_tokens"] = [{**each, "special": True} for each in raw["added_tokens"]]

    edit_json(written / "tokenizer.json", mark)
    receipt = tokenizer_receipt(grown, written)
    assert not receipt.held and "'<order>' (special)" in receipt.details["reasons"][0]
    edit_json(written / "tokenizer.json", lambda raw: raw["added_tokens"].pop(-2))
    assert not tokenizer_receipt(grown, written).held


def test_the_receipt_finds_a_gguf_kind_that_was_lost(tmp_path: Path, grown: Path, perform_stage: Callable[..., bool]):
    perform_stage("export", tmp_path / "gguf", checkpoint=str(grown), format="gguf", kind="F32")
    path = tmp_path / "gguf" / "model.gguf"
    assert tokenizer_receipt(path, grown).held
    edit = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.token_type"]
    edit.parts[edit.data[ORDER]][0] = gguf.TokenType.CONTROL
    assert not tokenizer_receipt(path, grown).held


def test_llama_cpp_takes_a_text_token_for_one_id_and_keeps_its_kind_when_it_quantizes(
    tmp_path: Path, grown: Path, perform_stage: Callable[..., bool]
):
    llama_cpp = pytest.importorskip("llama_cpp")
    perform_stage("export", tmp_path / "gguf", checkpoint=str(grown), format="gguf", kind="F32")
    path, rewritten = tmp_path / "gguf" / "model.gguf", tmp_path / "rewritten.gguf"
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = Tokenizer.load(grown)
    assert ORDER in ours.encode(TEXT)
    assert theirs.tokenize(TEXT.encode(), add_bos=False, special=False) == ours.encode(TEXT)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(rewritten).encode(), settings) == 0
    read = open_gguf(rewritten).tokenizer
    assert read is not None and read.encode(TEXT) == ours.encode(TEXT)
    assert [read.decode([token]) for token in (ORDER, ORDER_END)] == ["<order>", "</order>"]


def test_what_gguf_cannot_say_of_a_token_is_refused():
    for flag in ("single_word", "lstrip", "rstrip"):
        token = AddedToken("<order>", ORDER, False, **{flag: True})
        with pytest.raises(CheckpointError, match=f"{flag} for the added token '<order>'"):
            render_tokenizer(with_tokens(token), 531)


def test_metas_format_has_no_place_for_added_tokens(tmp_path: Path, grown: Path):
    plain = Tokenizer.load(META_MODEL)
    grown_one = Tokenizer(plain._encoder, (*plain.added, AddedToken("<order>", 128256, False)))
    source = replace(Checkpoint.open(grown).source(), tokenizer=grown_one)
    source = replace(source, config=LlamaConfig(64, 96, 16, 2, 4, 2, 128257, 4096))
    with pytest.raises(CheckpointError, match=r"with added tokens of its own.*'<order>'.*another format"):
        write_meta(tmp_path, source)


@pytest.mark.parametrize("kind", [gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE])
def test_kinds_of_other_tokenizers_are_refused_by_number(
    tmp_path: Path, grown: Path, perform_stage: Callable[..., bool], kind: gguf.TokenType
):
    perform_stage("export", tmp_path / "gguf", checkpoint=str(grown), format="gguf", kind="F32")
    path = tmp_path / "gguf" / "model.gguf"
    field = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.token_type"]
    field.parts[field.data[ORDER]][0] = kind
    with pytest.raises(CheckpointError, match=rf"token 530, '<order>', is of type {int(kind)}"):
        open_gguf(path)


def test_renamed_reserved_tokens_keep_their_ids(tmp_path: Path):
    path = grow(tmp_path / "model")
    place = random.Random(0).randrange(200)

    def rename(raw: dict) -> None:
        each = next(each for each in raw["added_tokens"] if each["content"] == f"<|reserved_special_token_{place}|>")
        each |= {"content": "<order>", "special": False}

    index = tokenizer().special(f"reserved_special_token_{place}")
    edit_json(path / "tokenizer.json", rename)
    ours = Tokenizer.load(path)
    assert ours.encode("a<order>b")[1] == index and ours.decode([index]) == "<order>"
    ours.save(path)
    assert Tokenizer.load(path).added == ours.added
    assert Checkpoint.open(path).tokenizer().vocab_size == 530


def test_training_keeps_every_flag(tmp_path: Path, perform_stage: Callable[..., bool], no_picture: None):
    tokens = entry("<order>", rstrip=True), entry("<|mark|>", special=True, normalized=False)
    path = grow(tmp_path / "model", *tokens)
    said = [{"role": "user", "content": "an <order>"}, {"role": "assistant", "content": "the <order> fox"}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "conversations.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 4)
    settings = {"epochs": 1, "context": 128, "batch_tokens": 256, "precision": "float32"}
    perform_stage("sft", tmp_path / "tuned", start=str(path), data=[str(tmp_path / "data")], **settings)
    tuned = Tokenizer.load(tmp_path / "tuned")
    assert tuned.added == Tokenizer.load(path).added and tuned.fingerprint == Tokenizer.load(path).fingerprint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"special": "false"}, "'<order>' with special = 'false'"),
        ({"special": None}, "'<order>' with special = None"),
        ({"rstrip": 1}, "'<order>' with rstrip = 1"),
        ({"id": 10**12}, "'<order>' with the id 1000000000000"),
        ({"content": 5}, "added token 5"),
        (None, "added_tokens is dict"),
    ],
)
def test_a_field_that_the_library_refuses_is_refused_by_the_name_of_the_token(
    change: dict[str, object] | None, told: str, grown: Path, tmp_path: Path
):
    path = tmp_path / "tokenizer.json"
    shutil.copy(grown / "tokenizer.json", path)

    def edit(data: dict[str, Any]) -> None:
        entries = [each | (change or {}) if each["id"] == ORDER else each for each in data["added_tokens"]]
        data["added_tokens"] = entries if change else {}

    edit_json(path, edit)
    with pytest.raises(Exception, match="at line 1 column"):
        tokenizers.Tokenizer.from_file(str(path))
    with pytest.raises(TokenizerError, match=re.escape(told)):
        Tokenizer.load(path)
