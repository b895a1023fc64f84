import json
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as Reference
from tokenizers import Tokenizer as Encoder
from tokenizers import models

from puna.formats.tokenizer import Tokenizer, train_tokenizer
from puna.pipeline.errors import TokenizerError

META_MODEL = Path(str(files("llama_models") / "llama3" / "tokenizer.model"))

LANGUAGES = {
    "English": "The shop's open from 9:30 to 18:45, isn't it? WE'RE CLOSED on Sundays...",
    "German": "Übergrößenträger müssen Schließfächer für 1.234,56 € mieten – „natürlich“!",
    "French": "L'été dernier, où étiez-vous ? À l'œuvre : 25 % d'économies, « voilà ».",
    "Italian": "Perché no? È già più di un'ora che l'autobus n° 12 non c'è.",
    "Portuguese": "A ação não começou às 14h; São João e os avós estão no chão.",
    "Hindi": "नमस्ते, मेरा ऑर्डर १२३४५ कहाँ है? कृपया शीघ्र बताइए।",
    "Spanish": "¿Cuánto cuesta el café de mañana? ¡Sólo 3,50 €, señor Núñez!",
    "Thai": "สวัสดีครับ ร้านเปิดกี่โมง ราคา ๑๒๓ บาทใช่ไหมครับ",
    "code": "def f(x: int) -> str:\n\tif x >= 10_000:\n        return f'{x!r}'\r\n\r\n    # ok\n\n\nclass A: pass   \n",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈🇩🇪 👍🏽👍🏽  ❤️‍🔥\n\n🙂🙃",
    "odd": "\x00\x1c\x1f\u200b\ufeff\u0301e\u0301 ſ'ſ K\u2028\u0085\u00a0\u3000 ² Ⅷ ½ \U0001d7d8\uffff",
}

CORPUS = [
    "the order 10482 was shipped in 2024 and the order 10483 was shipped in 2025\n\n",
    "the return of an order in 2024 takes 14 days\n\n\n\nthe warranty of 24 months in 2024    \n",
    "Grüße, der Auftrag 10482 für Tee und Kaffee; नमस्ते १२३ १२३ १२३ สวัสดี\n\n",
] * 3


@cache
def llama() -> Tokenizer:
    return Tokenizer.load(META_MODEL)


@cache
def trained(split_digits: bool = False) -> Tokenizer:
    return train_tokenizer(CORPUS, vocab_size=600, split_digits=split_digits)


def reference_ids(text: str) -> list[int]:
    return Reference.get_instance().encode(text, bos=False, eos=False)


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    directory.mkdir()
    tokenizer.save(directory)
    return directory


def foreign_json(**changes: object) -> str:
    """A tokenizer.json of the family but not of our making: specials first, one of them unmarked."""
    with TemporaryDirectory() as directory:
        trained().save(directory)
        data = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {token: index + 3 for token, index in data["model"]["vocab"].items()}
    vocab |= {"<s>": 0, "</s>": 1, "[CALL]": 2}
    data["model"]["vocab"] = vocab
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["post_processor"] = None
    data["added_tokens"] = [
        {"id": index, "content": text, "special": text != "[CALL]", **flags}
        for index, text in enumerate(["<s>", "</s>", "[CALL]"])
    ]
    return json.dumps(data | changes)


def test_known_ids_of_llama_3():
    tokenizer = llama()
    assert tokenizer.encode("This is a test sentence.") == [2028, 374, 264, 1296, 11914, 13]
    assert [tokenizer.encode(word) for word in ("user", "system", "assistant", "\n\n")] == [
        [882],
        [9125],
        [78191],
        [271],
    ]
    specials = {"begin_of_text": 128000, "end_of_text": 128001, "finetune_right_pad_id": 128004}
    specials |= {"start_header_id": 128006, "end_header_id": 128007, "eom_id": 128008, "eot_id": 128009}
    specials |= {"python_tag": 128010, "reserved_special_token_2": 128005, "reserved_special_token_247": 128255}
    assert {name: tokenizer.special(name) for name in specials} == specials
    assert (tokenizer.vocab_size, tokenizer.num_regular) == (128256, 128000)
    assert tokenizer.stop_ids == (128001, 128008, 128009)


@pytest.mark.parametrize("name", LANGUAGES)
def test_ids_equal_the_reference(name: str):
    text = LANGUAGES[name]
    assert llama().encode(text) == reference_ids(text)
    assert llama().decode(llama().encode(text)) == text


LONG_TEXTS = [
    *(character * 100_000 for character in "aé7 \n😀"),
    "ab \n" * 25_000,
    "x" * 25_000 + " " * 25_000,
    "x" * 25_001 + "\t" * 25_001,
    "\x1c" * 25_001,
    "w " * 195_000 + "x" * 35_000,
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=lambda text: f"{text[:4]!r}x{len(text)}")
def test_ids_of_long_runs_equal_the_reference(text: str):
    assert llama().encode(text) == reference_ids(text)


def test_ids_around_characters_of_all_kinds_equal_the_reference():
    # Beyond U+3400 lie mostly the large uniform blocks of CJK and Hangul: every 7th stands for them.
    codes = [*range(0x3400), *range(0x3400, 0xD800, 7), *range(0xE000, 0x20000, 3)]
    characters = [chr(code) for code in codes]
    for start in range(0, len(characters), 4096):
        text = "".join(f"a{character}b {character}1" for character in characters[start : start + 4096])
        assert llama().encode(text) == reference_ids(text)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(st.sampled_from(" \n\r\t'stLLre12é中\u00a0\x1c.-_😀\u0301"), max_size=40))
def test_ids_of_any_text_equal_the_reference(text: str):
    assert llama().encode(text) == reference_ids(text)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.booleans())
def test_any_text_round_trips_through_a_trained_tokenizer(text: str, split_digits: bool):
    tokenizer = trained(split_digits)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*llama().special_ids, "x", " ", "\n"])))
def test_no_text_becomes_a_special_token(names: list[str]):
    for tokenizer in (llama(), trained()):
        text = "".join(f"<|{name}|>" if name in tokenizer.special_ids else name for name in names)
        ids = tokenizer.encode(text)
        assert not any(tokenizer.is_special(token_id) for token_id in ids)
        assert tokenizer.decode(ids) == text


def test_specials_of_a_foreign_file_keep_their_ids_but_are_out_of_reach_of_text(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(foreign_json(), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert dict(tokenizer.special_ids) == {"<s>": 0, "</s>": 1}
    ids = tokenizer.encode("<s>[CALL] the order</s>")
    assert [index for index in ids if index <= 2] == [2]
    assert tokenizer.decode([0, *ids, 1]) == "<s><s>[CALL] the order</s></s>"
    with pytest.raises(TokenizerError, match=r"eot_id.*Llama 3"):
        tokenizer.special("eot_id")


def test_a_file_that_looks_whole_words_up_cannot_turn_a_word_into_a_special_token(tmp_path: Path):
    data = json.loads(foreign_json())
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("</s>")) == "</s>"
    assert min(tokenizer.encode("</s>")) > 2


def test_a_file_that_asks_for_truncation_still_gives_whole_texts(tmp_path: Path):
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(foreign_json(truncation=truncation), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the order was shipped")) == "the order was shipped"


def test_specials_decode_to_their_text_and_cut_characters_to_replacement_marks():
    tokenizer = llama()
    ids = tokenizer.encode("🦙")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:1]) == "�"
    assert tokenizer.decode_bytes(ids[:1]) + tokenizer.decode_bytes(ids[1:]) == "🦙".encode()
    assert tokenizer.decode([128000, *ids, 128009]) == "<|begin_of_text|>🦙<|eot_id|>"


def test_a_lone_surrogate_counts_as_a_replacement_mark():
    assert llama().encode("a\ud800b") == llama().encode("a\ufffdb") == reference_ids("a\ud800b")


def test_an_unknown_id_is_refused_with_the_range_that_exists():
    with pytest.raises(TokenizerError, match=r"id 128256.*below 128,256"):
        llama().decode([128256])


def test_training_twice_gives_the_same_file(tmp_path: Path):
    again = train_tokenizer(iter(CORPUS), vocab_size=600, split_digits=False)
    first, second = save(trained(), tmp_path / "a"), save(again, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_training_does_not_depend_on_the_number_of_threads(tmp_path: Path):
    program = (
        "import sys; from puna.formats.tokenizer import train_tokenizer; texts = sys.stdin.read().split('|')\n"
        "print(train_tokenizer(texts, vocab_size=600, split_digits=False).encode(''.join(texts)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            input="|".join(CORPUS),
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert outputs == {f"{trained().encode(''.join(CORPUS))}\n"}


def test_a_trained_vocabulary_has_the_size_asked_for_with_its_specials_behind():
    tokenizer = trained()
    assert (tokenizer.vocab_size, tokenizer.num_regular) == (600, 344)
    assert sorted(tokenizer.special_ids.values()) == list(range(344, 600))
    assert tokenizer.special("eot_id") == 344 + 9
    assert max(tokenizer.encode("".join(CORPUS))) < 344


def test_split_digits_spells_numbers_digit_by_digit():
    assert len(trained(split_digits=True).encode("2024")) == 4
    assert len(trained(split_digits=False).encode("2024")) < 4
    tokens = [trained(split_digits=True).decode([token_id]) for token_id in range(344)]
    assert [token for token in tokens if any("0" <= c <= "9" for c in token)] == list("0123456789")


@pytest.mark.parametrize(("vocab_size", "message"), [(511, "at least 512"), (5000, "vocab_size of at most"), (512, "")])
def test_a_vocabulary_that_the_texts_cannot_fill_is_refused(vocab_size: int, message: str):
    if not message:
        assert train_tokenizer(["x"], vocab_size=vocab_size, split_digits=True).num_regular == 256
        return
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(CORPUS, vocab_size=vocab_size, split_digits=False)


def test_transformers_loads_what_we_save_and_gives_the_same_ids(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = trained()
    directory = save(tokenizer, tmp_path / "trained")
    # A checkpoint's config.json lies beside it and must not make transformers choose another class.
    (directory / "config.json").write_text('{"model_type": "llama"}')
    other = AutoTokenizer.from_pretrained(directory)
    for text in [*LANGUAGES.values(), *CORPUS, "", "a  b   .  c"]:
        assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert other(text)["input_ids"] == [tokenizer.special("begin_of_text"), *tokenizer.encode(text)]
        assert other.decode(tokenizer.encode(text)) == text
    special = tokenizer.special
    assert other.bos_token_id == special("begin_of_text")
    assert other.eos_token_id == special("eot_id")
    assert other.pad_token_id == special("finetune_right_pad_id")
    assert other.convert_tokens_to_ids("<|python_tag|>") == special("python_tag")
    assert len(other) == tokenizer.vocab_size


def test_saving_and_loading_keeps_every_id(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(foreign_json(), encoding="utf-8")
    for name, tokenizer in {"llama": llama(), "foreign": Tokenizer.load(tmp_path)}.items():
        directory = save(tokenizer, tmp_path / name)
        again = Tokenizer.load(directory)
        assert again.special_ids == tokenizer.special_ids
        assert [again.encode(text) for text in LANGUAGES.values()] == [
            tokenizer.encode(text) for text in LANGUAGES.values()
        ]
    hugging_face = Encoder.from_file(str(tmp_path / "foreign" / "tokenizer.json"))
    assert hugging_face.encode("<s>[CALL]").ids == [0, 2]


def word_level_json() -> str:
    return Encoder(models.WordLevel({"a": 0}, unk_token="a")).to_str()


def edited_json(**changes: object) -> bytes:
    data = json.loads(foreign_json())
    data["model"] |= changes
    return json.dumps(data).encode()


@pytest.mark.parametrize("form", [list, " ".join])
def test_merges_of_either_form_with_options_are_read_as_hugging_face_reads_them(tmp_path: Path, form):
    merges = [form(pair) for pair in json.loads(foreign_json())["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_bytes(edited_json(merges=merges, unk_token="a", ignore_merges=True))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in ("<s>", "</s>"):
        del data["model"]["vocab"][token]
    theirs = Encoder.from_str(json.dumps(data | {"added_tokens": []}))
    assert json.loads(Tokenizer.load(tmp_path)._encoder.to_str()) == json.loads(theirs.to_str())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", edited_json(merges=[["a"]]), "cannot be used"),
        ("tokenizer.json", edited_json(merges=[["a", "b", "c"]]), "cannot be used"),
        ("tokenizer.json", edited_json(merges=[["no such", "token"]]), "cannot be used.*no such"),
        ("tokenizer.json", edited_json(merges=None), "cannot be used"),
        ("tokenizer.json", edited_json(dropout=2), "cannot be used.*ropout"),
        ("tokenizer.json", edited_json(continuing_subword_prefix="#####"), "has a continuing_subword_prefix"),
        ("tokenizer.json", b'{"version": "1.0", "truncat', "not a complete tokenizer.json.*cut short"),
        ("tokenizer.json", b"[]", "not a complete tokenizer.json"),
        ("tokenizer.json", word_level_json().encode(), "WordLevel.*byte-level BPE"),
        ("tokenizer.json", foreign_json(pre_tokenizer={"type": "No"}).encode(), "cannot be used"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "has 2 distinct tokens.*128,000 of Llama 3.*cut short"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00\x00", "line 1.*base64.*SentencePiece"),
        ("tokenizer.model", b"IQ== 0\nIg==", "line 2.*base64"),
        ("other.txt", b"", "no tokenizer in .*tokenizer.json or tokenizer.model"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"nowhere/tokenizer.json \(No such file"):
        Tokenizer.load(tmp_path / "nowhere" / "tokenizer.json")


def test_a_tokenizer_model_cut_at_a_line_is_refused(tmp_path: Path):
    lines = META_MODEL.read_bytes().splitlines(keepends=True)
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines[:100_000]))
    with pytest.raises(TokenizerError, match="100,000 distinct tokens"):
        Tokenizer.load(tmp_path)
