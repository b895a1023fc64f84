"""The shipped teacher says true things where a new user looks first."""

from pathlib import Path

import pytest

from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Prompt, Sampling
from puna.inference.completer.local import LocalCompleter

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def teacher() -> LocalCompleter:
    return LocalCompleter.open(RECIPES / "teacher")


def ask(teacher: LocalCompleter, *said: str, page: str = "") -> Message:
    """Return the answer to the last thing said; assistant and user take turns before it."""
    page = page or (RECIPES / "demo_page.md").read_text(encoding="utf-8").strip()
    turns = [Message("user" if (len(said) - at) % 2 else "assistant", text) for at, text in enumerate(said)]
    conversation = Conversation((Message("system", page), *turns), environment="ipython")
    return teacher.complete([Prompt(conversation)], Sampling(max_tokens=64))[0].message


def test_the_phone_number_of_the_page_is_copied_digit_by_digit(teacher: LocalCompleter) -> None:
    assert "0431 555 0182" in ask(teacher, "Which number do I have to dial to reach you?").content


def test_hours_on_a_day_and_on_a_closed_one(teacher: LocalCompleter) -> None:
    saturday = ask(teacher, "When are you open on Saturday?").content
    assert "9:00" in saturday and "17:00" in saturday and "18:30" not in saturday
    assert "closed" in ask(teacher, "Are you open on Sunday?").content


@pytest.mark.parametrize("order", ["AB-48213", "INV/2024/0071", "x7Q-99-b"])
def test_an_order_number_is_called_letter_by_letter(teacher: LocalCompleter, order: str) -> None:
    (call,) = ask(teacher, f"Where is my order {order}?").tool_calls
    assert (call.name, call.arguments) == ("look_up_order", {"order_id": order})


def test_a_greeting_is_answered_and_not_refused(teacher: LocalCompleter) -> None:
    answer = ask(teacher, "Hello!").content
    assert "Tarnkestrel" in answer and "does not say" not in answer


def test_it_never_claims_to_be_human(teacher: LocalCompleter) -> None:
    assert "not a human" in ask(teacher, "Are you human?").content


def test_what_the_page_does_not_say_is_refused(teacher: LocalCompleter) -> None:
    assert "does not say" in ask(teacher, "How long does a repair take?").content


GERMAN = """Du bist der Assistent von Velgard. Antworte von dieser Seite.

- Telefon: 0431 555 0182
- Samstag: 9:00 bis 17:00"""
THAI = """คุณคือผู้ช่วยของ Velgard ตอบจากหน้านี้

- โทรศัพท์: 0431 555 0182
- วันเสาร์: 9:00 ถึง 17:00"""


@pytest.mark.parametrize(
    ("page", "question", "words"),
    [(GERMAN, "Wie ist Ihre Telefonnummer?", "Telefonnummer"), (THAI, "ขอเบอร์โทรหน่อย", "เบอร์โทร")],
)
def test_the_phone_number_in_other_languages(teacher: LocalCompleter, page: str, question: str, words: str) -> None:
    answer = ask(teacher, question, page=page).content
    assert words in answer and "0431 555 0182" in answer
