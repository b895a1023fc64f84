"""What counts as test data among training data, and what does not: templates, greetings, shared pages."""

import random
import re
import unicodedata

import pytest

from puna.data.overlap.ngrams import Probe, find_overlaps, find_rows, row_text, split_words, too_short

PAGE = (
    "The Dortasen bed costs {price} euros and weighs {weight} g. The warranty of the Dortasen bed lasts {years} years."
)
QUESTION = "How long is the warranty?"


def page(source: random.Random) -> str:
    return PAGE.format(price=source.randint(10, 999), weight=source.randint(10, 999), years=source.randint(2, 9))


def probe(text: str, question: str = QUESTION, **changes: object) -> Probe:
    settings = {"name": "q1", "text": f"{text}\n{question}", "question": question, "answers": ("5 years",)}
    return Probe(**{**settings, **changes})


def found(probes: list[Probe], *texts: str) -> list[str]:
    report = find_overlaps(probes, [(f"row {n}", text) for n, text in enumerate(texts)])
    return [each.name for each in report.found]


def test_a_row_that_holds_page_and_question_is_found_whatever_its_case_and_punctuation():
    sold = page(random.Random(0))
    row = f"USER: {sold.upper()} -- \u201c{QUESTION}\u201d (asked by many)"
    report = find_overlaps([probe(sold)], [("row 0", "nothing of it"), ("row 1", row)])
    assert [(each.name, each.place) for each in report.found] == [("q1", "row 1")]
    assert report.found[0].share == 1 and report.num_rows == 2 and not report.too_short


def test_the_nearest_row_is_told():
    sold = page(random.Random(0))
    half = " ".join(sold.split()[:14])
    rows = [("half", f"{half} {QUESTION}"), ("whole", f"{sold} {QUESTION}")]
    assert [each.place for each in find_overlaps([probe(sold)], rows, threshold=0.05).found] == ["whole"]


def test_a_page_that_was_read_without_the_question_is_no_overlap():
    sold = page(random.Random(0))
    assert found([probe(sold)], sold, f"{sold} What does it cost?") == []


def test_parts_of_a_text_in_different_rows_are_no_overlap():
    sold = page(random.Random(0)).split()
    assert found([probe(" ".join(sold))], " ".join(sold[:14]), " ".join(sold[6:]) + " " + QUESTION) == ["q1"]
    assert found([probe(" ".join(sold))], " ".join(sold), QUESTION) == []


def test_rows_of_the_same_templates_with_other_names_and_numbers_are_no_overlap():
    source = random.Random(0)
    tests = [probe(page(source), name=f"q{n}", group=f"world {n}") for n in range(40)]
    assert found(tests, *(f"{page(source)} {QUESTION} {n} years" for n in range(300))) == []


def test_a_prompt_that_all_share_does_not_make_different_questions_equal():
    rules = (
        "You are the assistant of Acme. Answer in one sentence, be polite, and never promise what a page does not say."
    )
    asked = [f"What about article {n} of the catalogue, do you have it in blue or in green?" for n in range(40)]
    tests = [probe(rules, question, name=f"q{n}", group=str(n)) for n, question in enumerate(asked)]
    assert found(tests, f"{rules} What about article 77 of the catalogue, is it heavy?") == []
    assert found(tests, f"{rules} {asked[7]} Yes, in green.") == ["q7"]


def test_a_short_question_counts_only_beside_its_answer():
    asked = "In which year was the bridge over the Elbe built?"
    alone = probe("", asked, answers=("1893",))
    assert found([alone], f"{asked} In 1893.") == ["q1"]
    assert found([alone], f"{asked} I do not know.", "1893", f"{asked} 18931") == []


def test_greetings_and_questions_without_an_answer_in_words_are_too_short_to_tell():
    asked = "I would like to order a large pizza please"
    probes = [probe("", "Hello, can you help me?"), probe("", asked, name="q2", answers=())]
    report = find_overlaps(probes, [("row", f"Hello, can you help me? {asked}")])
    assert report.found == [] and report.too_short == ["q1", "q2"]


def test_a_question_with_a_few_words_changed_is_still_found():
    words = [f"word{n}" for n in range(60)]
    changed = [*words[:40], "other", *words[41:]]
    assert found([Probe("q", " ".join(words), " ".join(words))], " ".join(changed)) == ["q"]
    assert found([Probe("q", " ".join(words), " ".join(words))], " ".join(words[:30])) == []


@pytest.mark.parametrize("text", ["桥是一八九三年建成的，位于易北河上，长二百八十米。" * 2, "สะพานนี้สร้างขึ้นในปี ๒๔๓๖"])
def test_scripts_without_spaces_are_compared_by_character(text: str):
    assert len(split_words(text)) > 20
    assert found([Probe("q", text, text)], f"前{text}后") == ["q"]


def test_what_people_and_models_say_is_the_text_of_a_row():
    call = {"type": "function", "function": {"name": "find_order", "arguments": {"order": 40037}}}
    row = {"id": "x", "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}], "metadata": {"a": "b"}}
    assert split_words(row_text(row)) == ["find", "order", "40037"]


def test_equals_a_simple_count_of_shared_n_grams():
    source = random.Random(1)
    texts = [" ".join(source.choices("abcdefgh", k=source.randint(20, 60))) for _ in range(60)]
    rows = [" ".join(source.choices(texts, k=3)) for _ in range(20)] + texts[:5]

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    report = find_overlaps([Probe(f"{n}", text) for n, text in enumerate(texts)], [(row, row) for row in rows])
    simple = {
        f"{n}": max(len(grams(text) & grams(row)) / len(grams(text)) for row in rows) for n, text in enumerate(texts)
    }
    assert {each.name: each.share for each in report.found} == {k: v for k, v in simple.items() if v >= 0.5}
    assert report.found


def test_no_rows_and_no_probes_give_an_empty_report():
    assert find_overlaps([], [("row", "text")]).found == []
    assert find_overlaps([probe(page(random.Random(0)))], []).num_rows == 0
    assert find_overlaps([Probe("q", "", "")], [("row", "")]).too_short == ["q"]


def test_every_row_that_holds_a_probe_is_named_not_only_the_nearest():
    """Where rows have to go, one that is left for being the second nearest is one too many."""
    sold, other = page(random.Random(0)), page(random.Random(1))
    texts = [f"{sold} {QUESTION}", f"Well. {sold} {QUESTION} 5 years.", sold, other, f"{other} {QUESTION}"]
    rows = [(f"row {n}", text) for n, text in enumerate(texts)]
    held = [probe(sold), probe(other, name="q2")]
    assert {(each.place, each.name) for each in find_rows(held, rows)} == {
        ("row 0", "q1"), ("row 1", "q1"), ("row 4", "q2"),
    }  # fmt: skip
    assert {each.name for each in find_overlaps(held, rows).found} == {"q1", "q2"}
    short = [probe("", "Open today?", name="q3", answers=())]
    assert too_short([*held, *short]) == ["q3"] == find_overlaps([*held, *short], rows).too_short
    assert list(find_rows([], rows)) == []


def test_the_words_of_ascii_are_found_as_those_of_any_other_text():
    source = random.Random(0)
    for _ in range(500):
        text = "".join(map(chr, source.choices(range(128), k=30)))
        assert split_words(text) == re.findall(r"[^\W_]+", text.casefold())
        assert split_words(f"{text} \u00dfe") == [*split_words(text), "sse"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("दुकान सुबह नौ बजे खुलती है।", ["दुकान", "सुबह", "नौ", "बजे", "खुलती", "है"]),
        ("দোকানটি সকাল নয়টায় খোলে", 4),
        ("கடை காலை ஒன்பது மணிக்கு திறக்கும்", 5),
        ("ദുകാൻ രാവിലെ തുറക്കും", 3),
        ("ਦੁਕਾਨ ਸਵੇਰੇ ਖੁੱਲ੍ਹਦੀ ਹੈ", 4),
        ("క్ష\u200cత్రియ క్\u200dష", 2),
        ("می\u200cخواهم بروم", 2),
        ("يَفْتَحُ الْمَتْجَرُ", ["يفتح", "المتجر"]),
        ("שָׁלוֹם עוֹלָם־טוֹב", ["שלום", "עולם", "טוב"]),
        ("замо́к и за́мок", ["замок", "и", "замок"]),
        (unicodedata.normalize("NFD", "Über größe naïve ệ"), ["über", "grösse", "naïve", "ệ"]),
        ("x̌y q̃", 2),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", ["softhyphen", "zerowidth", "mark"]),
        ("ice ❤\ufe0f 1\ufe0f\u20e3 cream", ["ice", "1", "cream"]),
    ],
)
def test_a_word_keeps_its_marks_but_not_those_that_a_writer_may_leave_out(text, words):
    assert (len(split_words(text)) if isinstance(words, int) else split_words(text)) == words


# Consonants, vowel signs and a sentence of each script, the latter with a copy that other hands typed.
SCRIPTS = {
    "Hindi": (
        "कखगतदनपबमरलस",
        "ािीुूेैोौ",
        "पुस्तकालय सोमवार को सुबह नौ बजे खुलता है और शाम को छह बजे बंद हो जाता है, रविवार को नहीं",
    ),
    "Bengali": (
        "কখগতদনপবমরলস",
        "ািীুূেৈ",
        "গ্রন্থাগারটি সোমবার সকাল নয়টায় খোলে এবং সন্ধ্যা ছয়টায় বন্ধ হয়ে যায়, তবে রবিবারে এটি সারা দিন বন্ধ থাকে বলে জানি",
    ),
    "Tamil": (
        "கசடதநபமயரலவ",
        "ாிீுூெேை",
        "நூலகம் திங்கட்கிழமை காலை ஒன்பது மணிக்கு திறந்து மாலை ஆறு மணிக்கு மூடப்படும் "
        "ஆனால் ஞாயிற்றுக்கிழமை முழுவதும் மூடப்பட்டிருக்கும் என்று சொன்னார்கள்",
    ),
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_words_that_differ_in_their_vowels_are_other_words(language):
    consonants, vowels, sentence = SCRIPTS[language]
    source = random.Random(0)

    def word(letters: str) -> str:
        return "".join(letter + source.choice(vowels) for letter in letters)

    letters = ["".join(source.choices(consonants, k=3)) for _ in range(40)]
    probe, other = (" ".join(map(word, letters)) for _ in range(2))
    assert found([Probe("q", probe, probe)], other) == []
    assert found([Probe("q", probe, probe)], f"« {unicodedata.normalize('NFD', probe)} »") == ["q"]
    assert found([Probe("q", sentence, sentence)], f"a {sentence}.", probe) == ["q"]
    assert found([Probe("q", sentence, sentence)], probe, other) == []


@pytest.mark.parametrize(
    ("vowelled", "plain"),
    [
        (
            "تَفْتَحُ الْمَكْتَبَةُ أَبْوَابَهَا يَوْمَ الْإِثْنَيْنِ فِي السَّاعَةِ التَّاسِعَةِ صَبَاحًا وَتُغْلِقُهَا فِي السَّادِسَةِ مَسَاءً كُلَّ يَوْمٍ",
            "تفتح المكتبة أبوابها يوم الإثنين في الساعة التاسعة صباحا وتغلقها في السادسة مساء كل يوم",
        ),
        (
            "הַסִּפְרִיָּה נִפְתַּחַת בְּיוֹם שֵׁנִי בְּשָׁעָה תֵּשַׁע בַּבֹּקֶר וְנִסְגֶּרֶת בְּשָׁעָה שֵׁשׁ בָּעֶרֶב בְּכָל יוֹם וָיוֹם מִימֵי הַשָּׁבוּעַ",
            "הספריה נפתחת ביום שני בשעה תשע בבקר ונסגרת בשעה שש בערב בכל יום ויום מימי השבוע",
        ),
    ],
)
def test_a_copy_is_found_whichever_side_has_vowels(vowelled, plain):
    assert split_words(vowelled) == split_words(plain)
    for probe, row in ((vowelled, plain), (plain, vowelled)):
        assert found([Probe("q", probe, probe)], row) == ["q"]
        assert found([Probe("q", probe, probe)], " ".join(reversed(row.split()))) == []


def test_sentences_of_thai_on_one_subject_are_no_copies():
    one = "ร้านเปิดทุกวันตั้งแต่เก้าโมงเช้าถึงหกโมงเย็น ยกเว้นวันอาทิตย์และวันหยุดราชการ"
    other = "ห้องสมุดเปิดทุกวันตั้งแต่แปดโมงเช้าถึงห้าโมงเย็น ปิดวันจันทร์และวันหยุดนักขัตฤกษ์"
    assert found([Probe("q", one, one)], other) == []
    assert found([Probe("q", one, one)], f"{other} {one}") == ["q"]
