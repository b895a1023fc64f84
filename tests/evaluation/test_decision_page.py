"""The page of a decision: ten conversations side by side, what "right" means, folds, and text that stays text."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from puna.evaluation.release.page.blocks import Block, Details, SideBySide, Table, to_html, to_markdown
from puna.evaluation.release.page.conversations import (
    BEST,
    RANDOM,
    WORST,
    ModelAnswers,
    choose,
    expected_text,
    show_conversations,
)
from puna.evaluation.release.page.exam import NullScore, explain_exam
from puna.evaluation.release.page.meaning import explain_right
from puna.evaluation.release.short_ids import shorten_ids

HOSTILE = (
    "</div></details><script>alert(1)</script><img src=x onerror=alert(2)> `x` | [a](javascript:b)\n\n"
    "# GO\n</details>\n```\n<h1>GO</h1> \x00\x1b[31m \u202egnol \ud83d &lt;b&gt;"
)


def row(n: int, score: float, answer: str = "It costs 5.", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "The page. " * 200}, {"role": "user", "content": f"Question {n}?"}]
    return {
        "task": "shop",
        "id": f"q{n}",
        "group": "",
        "conversation": {"messages": messages},
        "expected": {"contains": ["5"], "distractors": ["6"]},
        "grade": "contains",
        "score": score,
        "parts": {},
        "reason": "has all" if score else "lacks '5'",
        "answer": {"role": "assistant", "content": answer},
        **changes,
    }


def sides(mine: list[float], *others: list[float]) -> list[ModelAnswers]:
    names = ["this model", "the teacher", "the base model"]
    everyone = [mine, *others]
    return [ModelAnswers(name, [row(n, score) for n, score in enumerate(scores)])
            for name, scores in zip(names, everyone, strict=False)]  # fmt: skip


def render(blocks: list[Block]) -> tuple[str, str]:
    return to_html("GO", blocks, is_go=True), to_markdown("GO", blocks)


class Tags(HTMLParser):
    """Reads a page, asserts that every element is closed, and collects the texts by the element that they stand in."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not any(key.startswith("on") or key in ("src", "href") for key, _ in attrs)
        self.open += [] if tag == "meta" else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


# The choice


def test_ten_are_chosen_the_best_the_worst_and_the_rest_at_random():
    mine, theirs = [1.0] * 20 + [0.0] * 20 + [1.0] * 60, [0.0] * 20 + [1.0] * 20 + [1.0] * 60
    picks = choose(sides(mine, theirs))
    assert [pick.why for pick in picks] == [BEST] * 3 + [WORST] * 3 + [RANDOM] * 4
    leads = [pick.rows["this model"]["score"] - pick.rows["the teacher"]["score"] for pick in picks]
    assert leads[:3] == [1, 1, 1] and leads[3:6] == [-1, -1, -1]
    assert len({pick.rows["this model"]["id"] for pick in picks}) == 10


def test_the_choice_depends_on_the_questions_alone_and_not_on_their_order():
    mine, theirs = [float(n % 3 > 0) for n in range(60)], [float(n % 2) for n in range(60)]
    first = choose(sides(mine, theirs))
    turned = choose([ModelAnswers(side.name, list(reversed(side.rows))) for side in sides(mine, theirs)])
    assert first == turned == choose(sides(mine, theirs))
    drawn = [pick.rows["this model"]["id"] for pick in first]
    assert drawn != sorted(drawn) and drawn != [f"q{n}" for n in range(10)]


def test_a_large_lead_comes_before_a_small_one_and_the_worst_is_judged_by_the_best_other():
    picks = choose(sides([0.5, 1.0, 0.4, 0.9], [0.4, 0.2, 0.5, 0.0], [0.4, 0.1, 0.0, 1.0]))
    chosen = [(pick.why, pick.rows["this model"]["id"]) for pick in picks]
    assert chosen[:2] == [(BEST, "q1"), (BEST, "q0")] and set(chosen[2:]) == {
        (WORST, "q2"),
        (WORST, "q3"),
    }


def test_fewer_than_ten_questions_are_all_shown_and_their_number_is_told():
    blocks = show_conversations(sides([1.0, 0.0, 1.0], [1.0, 1.0, 0.0]))
    assert len([block for block in blocks if isinstance(block, Details)]) == 3
    assert "3 of 3 questions: 1 where this model did better than every other, 1 where" in render(blocks)[1]
    assert [pick.why for pick in choose(sides([1.0, 1.0]))] == [RANDOM, RANDOM]


def test_answers_that_nobody_judged_are_neither_best_nor_worst_nor_called_right():
    words = {"grade": "no_call", "expected": {"no_call": True}}
    mine = [row(n, 1.0, judged=False, judged_by="", **words) for n in range(12)]
    older = [row(n, 0.0, **words) for n in range(12)]  # evaluated before there was a field that says it
    both = [ModelAnswers("this model", mine), ModelAnswers("the teacher", older)]
    assert {pick.why for pick in choose(both)} == {RANDOM}
    html, markdown = render(show_conversations(both))
    assert 'class="not-judged"' in html and 'class="right"' not in html and "this model: not judged" in markdown
    assert "others right" not in markdown
    table = next(block for block in explain_right(mine, "the task") if isinstance(block, Table))
    assert table.rows == [
        ["Free words", "12 of 12", "nobody", "any words would pass, so these answers count in no figure"]
    ]


def test_a_question_that_another_model_was_not_asked_is_shown_without_it():
    mine, theirs = sides([1.0, 0.0], [0.0, 1.0])
    picks = choose([mine, ModelAnswers("the teacher", theirs.rows[:1])])
    assert [set(pick.rows) for pick in picks] == [{"this model", "the teacher"}, {"this model"}]


# What is shown


def test_hostile_answers_questions_and_reasons_stay_text():
    hostile = row(0, 0.0, answer=HOSTILE, reason=HOSTILE, evidence=HOSTILE, expected={"reference": HOSTILE}, id=HOSTILE)
    hostile["conversation"] = {
        "messages": [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}],
        "tools": [{"type": "function", "function": {"name": HOSTILE}}],
    }
    hostile["answer"]["tool_calls"] = [
        {"type": "function", "function": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}}
    ]
    blocks = show_conversations([ModelAnswers("this model", [hostile]), ModelAnswers("the teacher", [hostile])])
    html, markdown = render(blocks)
    page = Tags(html)
    assert not page.names & {"script", "img", "a", "iframe"} and html.count("<h1") == 1
    assert sum("<script>alert(1)</script>" in text for _, text in page.texts) >= 8
    unfenced = "".join(markdown.split("\n```")[::2])  # what stands between fences is text
    assert unfenced.count("\n</details>") == unfenced.count("<details") == 2 and "\n# " not in unfenced
    assert not re.search(r"(?<!\\)<(script|img|h1|/div)", unfenced) and not re.search(r"(?<!\\)\](\(|\[)", unfenced)
    for text in (html, markdown):
        assert not set("\x00\x1b\u202e\ud83d") & set(text)
        text.encode("utf-8")


def test_long_messages_are_folded_and_nothing_of_them_is_lost():
    long = " ".join(str(n) for n in range(1000))
    both = [ModelAnswers("this model", [row(0, 1.0, answer=long)]), ModelAnswers("the teacher", [row(0, 0.0)])]
    html, _ = render(show_conversations(both))
    start, rest = html.index("0 1 2 3"), html.index("997 998 999")
    assert start < html.index("<details><summary>", start) < rest < html.index("</details>", rest)
    assert "more characters</summary>" in html[start:rest] and "Question 0?" in html
    system = html.index("The page. The page.")
    assert html.count("<details", 0, system) - html.count("</details>", 0, system) == 2
    assert html.index("What came before: 1 message") < system < html.index("Question 0?", system)


def test_calls_are_written_as_in_a_program_and_the_expected_one_too():
    call = {"name": "cancel", "arguments": {"order_id": "AB-1", "days": 2}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    asked = row(0, 1.0, grade="tool_call", expected=call) | {"answer": answer}
    html, markdown = render(show_conversations([ModelAnswers("this model", [asked])]))
    assert "calls cancel(order_id=&quot;AB-1&quot;, days=2)" in html
    assert 'the call cancel(order_id="AB-1", days=2)' in markdown


def test_the_result_of_a_tool_stands_with_the_question():
    asked = row(0, 1.0)
    asked["conversation"]["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "status", "arguments": {}}}]},
        {"role": "tool", "content": '{"state": "sent"}'},
    ]
    _, markdown = render(show_conversations([ModelAnswers("this model", [asked])]))
    question, result = markdown.index("Question:"), markdown.index("Result of the tool:")
    assert question < markdown.index("calls status()") < result < markdown.index("Right would be:")


@pytest.mark.parametrize(
    ("grade", "expected", "shown"),
    [
        ("contains", {"contains": ["5", "kg"], "distractors": ["6"]}, "an answer with “5”, “kg”, and not “6”"),
        ("refusal", {"contains": ["not say"]}, "a refusal, with “not say”"),
        ("exact", {"exact": "ja"}, "ja"),
        ("facts", {"reference": "At 9.", "facts": ["9:00"]}, "At 9.\n(required: “9:00”)"),
        ("no_call", {"no_call": True, "reference": "Good day."}, "Good day."),
        ("no_call", {"no_call": True}, "an answer in words; nobody wrote down which"),
        ("new", {"thing": 1}, '{"thing": 1}'),
    ],
)
def test_the_expected_answer_is_said_in_words(grade: str, expected: dict[str, Any], shown: str):
    assert expected_text(row(0, 1.0, grade=grade, expected=expected)) == shown


def test_the_columns_have_verdict_reason_and_evidence():
    judged = row(0, 0.5, judged=True, judged_by="judge", evidence="page 2", reason="half of it")
    details = next(
        block for block in show_conversations([ModelAnswers("this model", [judged])]) if isinstance(block, Details)
    )
    answers = next(block for block in details.blocks if isinstance(block, SideBySide)).answers
    assert (answers[0].verdict, answers[0].reason) == ("partly right", "half of it (“page 2”)")


# What "right" means


def test_what_right_means_counts_each_kind_by_who_judged_it():
    rows = [row(n, 1.0, judged=True, judged_by="rule") for n in range(5)]
    words = {"grade": "no_call", "expected": {"no_call": True}}
    rows += [row(n, 1.0, judged=True, judged_by="judge", **words) for n in range(5, 8)]
    rows += [row(8, 1.0, judged=True, judged_by="person", **words), row(9, 1.0, judged=False, judged_by="", **words)]
    summary, table = explain_right(rows, "the task")
    assert isinstance(table, Table) and "9 of 10 was judged, that of 1 was not" in render([summary])[1]
    assert [cells[:3] for cells in table.rows] == [
        ["Facts to be named", "5 of 5", "a rule"],
        ["Free words", "1 of 5", "nobody"],
        ["Free words", "3 of 5", "a judge model"],
        ["Free words", "1 of 5", "people"],
    ]
    assert table.rows[2][3] == "a judge model found it right"


def test_models_that_know_nothing_stand_with_their_scores_the_nearest_first():
    rows = [NullScore("says nothing", 0.0, 0.9, 0.05, True), NullScore("repeats the page", 0.88, 0.9, 0.05, False)]
    _, markdown = render(explain_exam(rows, "the task"))
    assert "only 1 of 2, so the questions decide nothing" in markdown and "more than 5 points" in markdown
    assert markdown.index("| repeats the page | 88.0 % | 90.0 % | no |") < markdown.index("| says nothing | 0.0 %")
    assert "all 1, so the questions tell good from bad" in render(explain_exam(rows[:1], "the task"))[1]
    assert explain_exam([], "the task") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("base, 0e9e39f249a16976918f6564b8830bc894c89659, was", "base, 0e9e39…, was"),
        ("dlg-fdc00633-16c9-4e29-bd12-f96ae062322d/2", "dlg-fdc006…/2"),
        ("Feather-4f1d2a9b8c7e", "Feather-4f1d2a…"),
        ("deadbeefcafe effaceable defaced", "deadbeefcafe effaceable defaced"),
        ("1,234 of 100000 questions in row 1234567", "1,234 of 100000 questions in row 1234567"),
    ],
)
def test_hashes_are_shortened_and_words_and_numbers_are_not(text: str, shown: str):
    assert shorten_ids(text) == shown
