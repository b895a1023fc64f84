"""Required facts: which answers state the facts of a reference, in eight languages, and no other facts."""

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from puna.data.shards import write_jsonl
from puna.evaluation.tasks import GRADES, Grade, Question, Task
from puna.evaluation.tasks.grading.extraction.extract import extract
from puna.evaluation.tasks.grading.extraction.numbers import read_number
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.pipeline.errors import DataError


def judge(reference: str, answer: str, asked: str = "Tell me.", **expected: Any) -> Grade:
    question = Question("1", Conversation((Message("user", asked),)), {"reference": reference, **expected}, "facts")
    return GRADES["facts"](question, Message("assistant", answer))


# Reference, answers that are right, answers that are wrong.
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "en amount": (
        "The lamp costs €1,234.56.",
        ["1.234,56 €", "It is EUR 1234.56.", "1 234,56 euros", "It costs 1,234.56", "€1’234.56"],
        ["€1,234.65", "$1,234.56", "€123,456", "1,234.56 dollars", "It costs 1.", "Sure.", "-1,234.56 €"],
    ),
    "en id with a dash": ("Your order is AB-48213.", ["AB–48213", "ab‑48213"], ["AB–48214", "48213–AB"]),
    "en flight": ("Flight LH 441 leaves.", ["LH441", "lh441 leaves"], ["AF441", "LH442", "LH 442"]),
    "en closed flight": ("Flight LH441 leaves.", ["LH 441"], ["LH 442", "AF 441"]),
    "en capitals before a number": ("The EU 27 agreed. NOW 15 EUR.", ["27, 15 €"], ["27, 15 dollars", "EU 28"]),
    "en closed bank account": (
        "The IBAN is DE89370400440532013000.",
        ["It is DE89 3704 0044 0532 0130 00."],
        ["It is DE89 3704 0044 0532 0130 01.", "DE89 3704 0044 0532 0130"],
    ),
    "en bank account": ("It is DE89 3704 0044 0532 0130 00.", ["DE89370400440532013000"], ["DE89370400440532013"]),
    "en address without a scheme": (
        "See https://www.foo.museum/help.",
        ["foo.museum/help", "www.foo.museum/help/"],
        ["foo.museum/hel", "bar.museum/help"],
    ),
    "en shapes of characters": ("It costs €1,234.", ["€１，２３４", "€1\u200b,234", "€١٬٢٣٤"], ["€１，２３５"]),
    "en wrong beside right": ("It is 24.90.", ["24.90", "24,9"], ["24.90 or 4.90", "4.90", "24.90 and 31.50", "24"]),
    "en thousands stay open": ("We have 1,234 lamps.", ["1.234 lamps", "1234 lamps"], ["1,235", "12.34"]),
    "en sign": ("It is -5 degrees.", ["−5 degrees"], ["5 degrees", "+5 degrees", "-15 degrees"]),
    "en percent": ("You get 20% off.", ["20 percent", "20 %"], ["20 euros", "2%", "20"]),
    "en duration": ("Within 30 days.", ["a 30-day return", "30 days"], ["30 months", "13 days", "30 or 60 days"]),
    "en small numbers": ("You may bring 2 dogs.", ["Two dogs.", "2"], ["three dogs", "twelve", "too many dogs"]),
    "en number words": ("It takes two days.", ["2 days", "Two days."], ["two or three days", "two weeks", "12 days"]),
    "en time": (
        "We open at 9:00.",
        ["At 9 am.", "9 a.m.", "9:00", "At 9.", "nine? No: 09:00", "9 o'clock"],
        ["9 pm", "19:00", "9:30", "at 9:00 or 10:00"],
    ),
    "en range": (
        "Open from 9:00 to 17:00.",
        ["9 am to 5 pm", "9-17", "9–17 Uhr", "from 9 to 5", "9:00–17:00"],
        ["9 am to 6 pm", "from 9:00", "9 pm to 5 pm", "9:00 to 17:00, Saturday 10:00 to 14:00"],
    ),
    "en noon": ("We close at 12:00.", ["At noon.", "12 pm", "12:00"], ["At midnight.", "12 am"]),
    "en date": (
        "It ends on 3 March 2026.",
        ["March 3rd, 2026", "2026-03-03", "3.3.2026", "the 3rd of March", "3/3/2026", "03.03.26"],
        ["3 March 2025", "March 4th, 2026", "in March 2026", "3 May 2026", "2026-03-13"],
    ),
    "en wrong date beside right": (
        "It starts on March 3, 2027.",
        ["On March 3, 2027, so on 2027-03-03.", "On March 3rd."],
        [
            "On March 3, 2027 or March 4, 2027.",
            "On March 3, 2027 or 17 May 2027.",
            "2027-03-03 or 2027-03-04",
            "On March 3, 2027, or on March 3, 2028.",
        ],
    ),
    "de wrong date beside right": ("Ab dem 3. März 2027.", ["3.3.2027"], ["03.03.2027 oder 04.03.2027"]),
    "hi wrong date beside right": ("3 मार्च 2027 को।", ["3 मार्च 2027"], ["3 मार्च 2027 या 4 मार्च 2027"]),
    "en wrong month beside right": ("On 17 May.", ["May 17", "17 May 2027"], ["17 May or 17 June"]),
    "en wrong time beside right": (
        "We open at 9:00.",
        ["At 9:00, that is 9 am."],
        ["9:00 or 9 pm", "9:00 or 21:00", "9:00 am or 9:00 pm"],
    ),
    "de wrong time beside right": ("Um 9:00 Uhr.", ["9 Uhr", "um 9"], ["9 Uhr oder 21 Uhr"]),
    "en amount and a date of the same number": ("It costs €20.", ["20 euros"], ["€20, on 20 May 2027"]),
    "en date and an amount of the same number": ("On 5 May.", ["May 5"], ["5 May, 5 euros"]),
    "en open date": ("It ends on 3 April 2026.", ["3/4/2026", "4/3/2026"], ["3/5/2026", "13/4/2026"]),
    "en days of a range": ("From 3 to 5 May.", ["May 3–5", "3 May to 5 May"], ["3 May", "3 to 6 May"]),
    "en weekdays": (
        "Open Monday to Friday.",
        ["Mondays to Fridays", "Mon–Fri", "Monday, Tuesday, Wednesday, Thursday and Friday"],
        ["Monday to Saturday", "Monday", "Sunday"],
    ),
    "en phone": (
        "Call +49 431 555 0182.",
        ["0431 555 0182", "0431/5550182", "+494315550182", "0049 431 5550182", "+49 (0)431 555-0182"],
        ["0431 555 0431", "+48 431 555 0182", "0431 555 018", "0431 555 0182 or 0431 555 0183", "0431 555 01822"],
    ),
    "en american phone": ("Call (555) 123-4567.", ["555-123-4567", "555.123.4567"], ["555-123-4568", "555-1234567 8"]),
    "en id": (
        "The order is AB-48213.",
        ["AB-48213", "Order ab-48213.", "(AB-48213)"],
        ["BB-48213", "AB-4821", "AB-482133", "48213", "AB48213", "AB-48213 or AB-48214"],
    ),
    "en id of equal digits": ("The code is 77700077.", ["77700077"], ["7770077", "777000777", "777 000 77"]),
    "en order number": ("It is order #48213.", ["48213", "Order #48213"], ["#4821", "84213"]),
    "en business days": ("In 2–3 business days.", ["two to three business days"], ["2–3 days", "2–4 business days"]),
    "en short forms": (
        "On Tuesday, 4 November, at 14:30.",
        ["Tue, Nov 4, 2:30pm", "**Tuesday** Nov. 4th at 2.30 pm"],
        ["Tue, Nov 4, 2:30 am", "Wed, Nov 4, 2:30pm", "Tuesday at 14:30"],
    ),
    "en version": ("Use Python 3.11.2.", ["Python 3.11.2"], ["Python 3.11", "Python 3.11.20"]),
    "en hours of a day": ("Delivery within 24 h.", ["24 hours"], ["48 hours", "24 days"]),
    "en capitals": ("At 3 PM EST.", ["3 pm"], ["3 am"]),
    "en id with a zero": ("Room 007.", ["007"], ["7", "0007", "07"]),
    "en e-mail": (
        "Write to Help@puna.example.",
        ["help@puna.example", "At help@puna.example."],
        ["help@puna.example.com", "info@puna.example", "help at puna"],
    ),
    "en URL": (
        "See https://www.puna.example/Help/.",
        ["http://puna.example/Help", "www.puna.example/Help.", "[here](https://www.puna.example/Help)"],
        ["https://puna.example/Helpdesk", "https://puna.example", "https://puma.example/Help"],
    ),
    "en name": (
        "Ask for Maria Schmidt, please.",
        ["Maria Schmidt", "That is maria schmidt."],
        ["Maria", "Marta Schmidt", "Maria Schmidtke"],
    ),
    "en units": ("A 12 oz cup.", ["12 ounces", "12"], ["12 kg", "16 oz"]),
    "en big numbers": ("About 2.5 million people.", ["2,500,000 people"], ["2.5 people", "2.5 billion people"]),
    "en list marks are no facts": ("It costs 7 euros.", ["1. It costs\n2. 7 euros"], ["1. It costs\n2. 8 euros"]),
    "en fraction": ("Take 1/2 cup.", ["1/2 cup"], ["1 cup", "2 cups", "1/3 cup"]),
    "de amount": ("Das kostet 1.234,56 €.", ["1.234,56 Euro", "1234,56", "€ 1.234,56"], ["1.234,65 €", "123,456 €"]),
    "de time": ("Wir öffnen um 9 Uhr.", ["Um 09.00 Uhr.", "9:00", "ab 9:00 Uhr"], ["19 Uhr.", "Um 9.30 Uhr."]),
    "de evening": ("Wir schließen um 20 Uhr.", ["20:00", "8 Uhr abends"], ["8 Uhr morgens", "8:00", "22 Uhr"]),
    "de date": ("Am 3. März 2026.", ["3.3.2026", "3. März", "am 03.03.2026"], ["3. Mai 2026", "13. März 2026"]),
    "de weekdays": ("Mo–Fr geöffnet.", ["Von Montag bis Freitag", "montags bis freitags"], ["Montag bis Samstag"]),
    "de number words": ("Es dauert 3 Tage.", ["drei Tage", "3 Tage"], ["drei Wochen", "vier Tage", "3 bis 4 Tage"]),
    "de names of two words": ("Fragen Sie Jana Meyer.", ["Jana Meyer"], ["Anna Meyer", "die Leitung"]),
    "de dots for thousands": ("Es sind 12.000 Stück.", ["12 000", "zwölf? Nein, 12000", "12,000"], ["12", "120000"]),
    "fr amount": ("Cela coûte 12,50 €.", ["12.50 euros", "12,5 €"], ["12,05 €", "1250 €", "12,50 $"]),
    "fr time": ("Nous ouvrons à 9h30.", ["9 h 30", "9:30", "09h30"], ["9h", "19h30", "9h30 ou 10h"]),
    "fr hours": ("Ouvert de 9 h à 17 h.", ["de 9 heures à 17 heures", "de 9h00 à 17h00"], ["de 9 h à 18 h"]),
    "fr date": ("Le 1er mai 2026.", ["1 mai 2026", "le 01/05/2026"], ["le 2 mai 2026", "le 11 mai 2026"]),
    "fr number words": ("Il faut trois semaines.", ["3 semaines"], ["3 jours", "deux semaines"]),
    "fr weekday": ("Fermé le lundi.", ["lundi"], ["mardi", "lundi et mardi"]),
    "it amount": ("Costa 1.250 euro.", ["1250 €", "€ 1.250,00"], ["1.520 euro", "12,50 euro"]),
    "it time": ("Apriamo alle 9.30.", ["alle 9:30", "alle ore 9.30"], ["alle 10.30", "alle 9"]),
    "it date": ("Il 3 marzo 2026.", ["3/3/2026", "3 marzo"], ["3 maggio 2026", "13 marzo"]),
    "it number words": ("Ci vogliono cinque giorni.", ["5 giorni"], ["6 giorni", "cinque settimane"]),
    "pt amount": ("Custa R$ 25,00.", ["25 reais", "R$25"], ["R$ 52,00", "25 euros", "R$ 2.500"]),
    "pt time": ("Abrimos às 9h.", ["às 9:00", "às 9 da manhã"], ["às 9 da noite", "às 10h"]),
    "pt weekday": ("Fechamos na terça-feira.", ["terça-feira"], ["quarta-feira", "segunda-feira"]),
    "pt number words": ("Leva sete dias.", ["7 dias"], ["seis dias", "7 semanas"]),
    "hi digits": ("कीमत ₹१,२५० है।", ["₹1,250", "1250 रुपये"], ["₹1,520", "₹12.50", "1250 डॉलर"]),
    "hi lakh": ("कीमत ₹1,00,000 है।", ["₹100000", "1 लाख रुपये", "₹100,000"], ["₹1,000", "₹10,00,000"]),
    "hi time": ("हम सुबह 9 बजे खुलते हैं।", ["सुबह ९ बजे", "9:00 बजे"], ["शाम 9 बजे", "सुबह 10 बजे"]),
    "hi date": ("यह 3 मार्च 2026 को है।", ["३ मार्च २०२६", "3/3/2026"], ["3 मई 2026", "4 मार्च 2026"]),
    "hi weekday": ("सोमवार को बंद है।", ["सोमवार"], ["मंगलवार", "रविवार और सोमवार"]),
    "hi number words": ("इसमें तीन दिन लगते हैं।", ["3 दिन"], ["4 दिन", "तीन महीने"]),
    "hi percent": ("15 प्रतिशत छूट है।", ["१५%", "15 प्रतिशत"], ["50 प्रतिशत", "15 रुपये"]),
    "es amount": ("Cuesta 1.234,56 €.", ["1234,56 euros", "€1,234.56"], ["1.234,65 €", "1234,56 dólares"]),
    "es time": ("Abrimos a las 9 de la mañana.", ["a las 9:00", "a las 9"], ["a las 9 de la noche", "a las 10"]),
    "es date": ("El 3 de marzo de 2026.", ["3/3/2026", "3 de marzo"], ["3 de mayo de 2026", "el 4 de marzo"]),
    "es number words": ("Tarda cuatro días.", ["4 días"], ["cinco días", "4 meses"]),
    "es weekday": ("Cerramos los miércoles.", ["miércoles"], ["martes", "jueves y miércoles"]),
    "th digits": ("ราคา ๒๕๐ บาท", ["250 บาท", "฿250"], ["๒๕ บาท", "520 บาท", "250 ดอลลาร์"]),
    "th time": ("เปิดเวลา ๙.๐๐ น.", ["9:00 น.", "09.00 น."], ["19.00 น.", "9.30 น."]),
    "th Buddhist year": ("วันที่ 3 มีนาคม 2569", ["3 มีนาคม พ.ศ. 2569", "3 มีนาคม 2026"], ["3 มีนาคม 2568", "3 พฤษภาคม 2569"]),
    "th weekday": ("ปิดวันจันทร์ค่ะ", ["วันจันทร์"], ["วันอังคาร", "วันจันทร์และวันอาทิตย์"]),
    "th days": ("ใช้เวลา 3 วันทำการ", ["3 วันทำการ", "๓ วันทำการ", "สามวันทำการ"], ["3 เดือน", "5 วันทำการ"]),
    "th pieces of words": ("ใช้เวลา 3 วัน", ["สามวัน"], ["สามารถทำได้", "ห้ามทำ"]),
    "en megabytes": ("At most 2 MB.", ["2 megabytes"], ["2 GB"]),
    "en file names": ("See page 4.", ["page 4"], ["4SSMS.png"]),
    "th phone": ("โทร 02-123-4567", ["021234567", "+66 2 123 4567"], ["02-123-4568", "02-123-456"]),
    "th names in Latin letters": ("ติดต่อคุณ Somchai ได้เลย", ["คุณ Somchai"], ["คุณ Somsak"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "answer", "is_right"),
    [
        (name, answer, is_right)
        for name, (_, right, wrong) in CASES.items()
        for answers, is_right in ((right, True), (wrong, False))
        for answer in answers
    ],
)
def test_an_answer_is_right_when_it_states_the_facts_and_no_others(name: str, answer: str, is_right: bool) -> None:
    reference = CASES[name][0]
    grade = judge(reference, answer, language=name[:2])
    assert bool(grade.score) == is_right, grade.reason


@pytest.mark.parametrize("name", CASES)
def test_a_reference_is_a_right_answer_to_itself_and_an_empty_one_is_wrong(name: str) -> None:
    reference = CASES[name][0]
    assert judge(reference, reference).score == 1
    assert judge(reference, "").score == 0


def test_the_question_repeated_is_wrong_and_what_it_says_may_be_repeated() -> None:
    asked = "Is the lamp LX-20 still 24.90 on Monday?"
    reference = "No, on Monday it costs 19.90."
    assert judge(reference, asked, asked).score == 0
    assert judge(reference, "The lamp LX-20 was 24.90; on Monday it is 19.90.", asked).score == 1
    assert judge(reference, "19.90", asked).score == 1


def test_a_whole_page_is_wrong() -> None:
    page = "Lamps cost 24.90, chairs 49.90. Open 9:00 to 17:00. Call 0431 555 0182."
    grade = judge("The lamp costs 24.90.", page, "What does a lamp cost?")
    assert grade.score == 0
    assert "has '49.90', which the reference does not have" in grade.reason


@pytest.mark.parametrize("piece", ["1", "1 ", "a-", "a1-", "a.", "A", "_", "abc.com "])
def test_an_answer_of_100_000_characters_is_wrong_and_takes_no_time(piece: str) -> None:
    dump = piece * (100_000 // len(piece))
    start = time.process_time()
    assert judge("It is 24.90.", f"It is 24.90. {dump}").reason.endswith("more than the 10,000 that are read")
    assert judge("It is 24.90.", dump[:10_000]).score == 0.0
    assert time.process_time() - start < 2


NUMBER_WORDS = [
    ("The term is twenty-two days.", "22 days", "2 days"),
    ("The term is thirty days.", "30 days", "13 days"),
    ("The term is twenty two days.", "twenty-two days", "two days"),
    ("You get twenty percent off.", "20%", "20 euros"),
    ("It costs two thousand euros.", "2,000 euros", "2 euros"),
    ("Die Frist ist einundzwanzig Tage.", "21 Tage", "20 Tage"),
    ("Die Frist ist dreißig Tage.", "30 Tage", "13 Tage"),
    ("Le délai est de vingt-deux jours.", "22 jours", "2 jours"),
    ("Le délai est de quatre-vingt-treize jours.", "93 jours", "13 jours"),
    ("La remise est de vingt pour cent.", "20 %", "100 %"),
    ("Il termine è di ventotto giorni.", "28 giorni", "20 giorni"),
    ("O prazo é de trinta e cinco dias.", "35 dias", "5 dias"),
    ("El plazo es de treinta y cinco días.", "35 días", "5 días"),
    ("El plazo es de veintidós días.", "22 días", "2 días"),
    ("अवधि तीस दिन है।", "30 दिन", "3 दिन"),
    ("ระยะเวลาสามสิบวัน", "30 วัน", "10 วัน"),
    ("ระยะเวลายี่สิบเอ็ดวัน", "21 วัน", "1 วัน"),
    ("It is 24.90, between two and three days.", "24.90, 2 to 3 days", "24.90"),
]


@pytest.mark.parametrize(("reference", "right", "wrong"), NUMBER_WORDS)
def test_a_number_of_several_words_is_one_number(reference: str, right: str, wrong: str) -> None:
    assert judge(reference, right).score == 1.0, judge(reference, right)
    assert judge(reference, wrong).score == 0.0, judge(reference, wrong)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "five hundred and five days"),
        ("fr", "cinq cents jours"),
        ("es", "doscientos cinco días"),
        ("th", "ห้าร้อยสิบบาท"),
    ],
)
def test_a_number_with_hundreds_in_words_is_not_read_as_a_piece_of_it(language: str, text: str) -> None:
    assert not extract(text, language)


def test_marks_of_emphasis_are_no_part_of_an_address() -> None:
    for answer in ("help@example.com", "_help@example.com_", "**help@example.com**", "<help@example.com>."):
        assert judge("Write to help@example.com.", answer).score == 1.0
    assert judge("Write to help@example.com.", "my.help@example.com").score == 0.0


def test_a_call_and_the_reason_are_told() -> None:
    question = Question("1", Conversation((Message("user", "?"),)), {"reference": "It is 5."}, "facts")
    called = GRADES["facts"](question, Message("assistant", "5", (ToolCall("look_up", {}),)))
    assert (called.score, "look_up" in called.reason) == (0, True)
    assert judge("It costs 5 euros.", "It costs 6 euros.").reason == (
        "lacks '5 euros', has '6 euros', which the reference does not have"
    )


def test_explicit_facts_are_required_all_and_the_reference_is_allowed() -> None:
    expected: dict[str, Any] = {"facts": ["Olive Garden", "19:30"]}
    reference = "Dinner at the Olive Garden at 19:30; the table is number 12."
    assert judge(reference, "At 7:30 pm in the olive garden.", **expected).score == 1
    assert judge(reference, "At 7:30 pm in the Olive Garden, table 12.", **expected).score == 1
    assert judge(reference, "In the Olive Garden.", **expected).score == 0
    assert judge(reference, "At 19:30 in the Olive Gardens.", **expected).score == 0


def test_words_of_a_text_without_facts_give_none() -> None:
    for text in (
        "Sure, I can help you with that.",
        "Das geht leider nicht.",
        "Une minute, je regarde.",
        "ได้ค่ะ",
        "ठीक है।",
    ):
        assert [fact for fact in extract(text) if fact.is_required] == [], text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234.56", {"1234.56"}),
        ("1.234,56", {"1234.56"}),
        ("1.234", {"1234", "1.234"}),
        ("0.125", {"0.125"}),
        ("12,5", {"12.5"}),
        ("1.234.567", {"1234567"}),
        ("1,00,000", {"100000"}),
        ("1'234.50", {"1234.50"}),
        ("10 000", {"10000"}),
        (".5", {"0.5"}),
        ("-3", {"-3"}),
        ("3.11.2", set()),
        ("1,2,3", set()),
    ],
)
def test_a_number_keeps_every_reading(text: str, values: set[str]) -> None:
    assert read_number(text) == set(map(Decimal, values))


@given(st.integers(0, 10**9), st.integers(0, 99))
def test_an_amount_is_the_same_in_every_spelling(whole: int, cents: int) -> None:
    english, german = f"€{whole:,}.{cents:02}", f"{whole:,}".replace(",", ".") + f",{cents:02} €"
    assert judge(f"It costs {english}.", f"Das kostet {german}.").score == 1
    assert judge(f"It costs {english}.", f"Das kostet {german} oder 0,{(cents + 1) % 100:02}1 €.").score == 0


@given(st.text(alphabet="abcAB019.,:/-+ €%@#\n้วदो", max_size=60))
@example("Ab0दो")
def test_any_text_can_be_read_and_is_right_beside_itself(text: str) -> None:
    facts = extract(text)
    if any(fact.is_required for fact in facts):
        assert judge(text, text).score == 1


def row(**expected: Any) -> dict[str, Any]:
    conversation = {"messages": [{"role": "user", "content": "Is it 24.90?"}]}
    return {"id": "a", "conversation": conversation, "expected": expected, "grade": "facts"}


@pytest.mark.parametrize(
    "expected", [{"reference": "Yes, 24.90."}, {"reference": "Yes."}, {"reference": "Yes", "facts": ["24,90"]}]
)
def test_a_question_that_requires_nothing_new_is_refused(tmp_path: Path, expected: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "questions.jsonl", [row(**expected)])
    with pytest.raises(DataError, match=r"row 1: the reference states no fact that is new.*Give `facts`"):
        Task.load(tmp_path)


def test_turns_of_people_are_judged_by_their_facts_where_these_are_settled(tmp_path: Path) -> None:
    def talk(id: str, *texts: str) -> dict[str, Any]:
        roles = ("user", "assistant") * len(texts)
        return {
            "id": id,
            "messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)],
        }

    shop = "What do you sell?", "We have a Cortado."
    rows = [
        talk("price", "What does it cost?", "It costs 24.90."),
        talk("thanks", "Thank you!", "You are welcome."),
        talk("echo", "At 9:00?", "Yes, at 9:00."),
        talk("pun", "Bye!", "Have a Brew-tiful day!"),
        talk("idiom", "When?", "In a minute or two."),
        talk("said", "I want a Flat White.", "Which size?", "Small.", "One small Flat White, then."),
        {
            "id": "copied",
            "messages": [{"role": "system", "content": "We sell: Cortado."}, *talk("", *shop)["messages"]],
        },
        talk("essay", "Tell me all.", "It is 1, 22, 33, 44, 55, 66 and 77."),
    ]
    write_jsonl(tmp_path / "conversations.jsonl", rows)
    grades = {question.id: question.grade for question in Task.load(tmp_path).questions}
    assert grades == {
        "price/1": "facts",
        "thanks/1": "no_call",
        "echo/1": "no_call",
        "pun/1": "no_call",
        "idiom/1": "no_call",
        "said/1": "no_call",
        "said/3": "no_call",
        "copied/2": "facts",
        "essay/1": "no_call",
    }
