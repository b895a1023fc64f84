"""Questions files, and how answers are judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.corpus.synthesize.conversations import draw_conversation, questions
from puna.corpus.synthesize.worlds import make_world
from puna.data.shards import write_jsonl
from puna.evaluation.tasks import GRADES, Grade, Question, Task
from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.pipeline.errors import DataError

ASK = Conversation((Message("user", "How much is it?"),))


def judge(grade: str, expected: dict[str, Any], answer: Message) -> Grade:
    return GRADES[grade](Question("1", ASK, expected, grade), answer)


def says(text: str) -> Message:
    return Message("assistant", text)


def calls(name: str, *more: str, **arguments: Any) -> Message:
    return Message("assistant", tool_calls=(ToolCall(name, arguments), *(ToolCall(other, {}) for other in more)))


def row(**changes: Any) -> dict[str, Any]:
    conversation = {"messages": [{"role": "user", "content": "How much is it?"}]}
    good = {"id": "a", "conversation": conversation, "expected": {"contains": ["5"]}, "grade": "contains"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    write_jsonl(path, rows)
    return path


@pytest.mark.parametrize(
    ("wanted", "answer", "is_right"),
    [
        ("4.90", "It costs 4.90.", True),
        ("4.90", "4.90€", True),
        ("4.90", "It costs 24.90", False),
        ("4.90", "It costs 4.901", False),
        ("4", "It costs 4.5", False),
        ("90", "It costs 4.90", False),
        ("500", "It costs 1,500 in all", False),
        ("4", "It costs 4, and that is all.", True),
        ("9:00", "from 19:00", False),
        ("9:00", "from 9:00 to 12:00", True),
        ("10", "10-12", True),
        ("K-4471", "under k-4471.", True),
        ("K-4471", "under K-44712", False),
        ("๔", "๒๔", False),
        ("5", "It is -5 degrees.", False),
        ("-3", "It fell to \u22123 degrees.", True),
        ("3", "It fell to \u22123 degrees.", False),
        ("5", "\u20135", False),
        ("5", "minus 5 degrees", False),
        ("-5", "minus 5 degrees", True),
        ("5", "10 minus 5 is 5", True),
        ("5", "- 5 apples", True),
        ("5", "-$5", False),
        ("-5", "$-5", True),
        ("42", "**-42**", False),
        ("42", "x=-42", False),
        ("10 euros", "-10 euros", False),
        ("9", "7\u20139", True),
        ("10", "5\u20ac-10\u20ac", True),
        ("10", "10 000", False),
        ("10", "10\u202f000", False),
        ("10", "10\u2019000", False),
        ("000", "10 000", False),
        ("10000", "10\u00a0000 people", True),
        ("8:45 to 18:30", "8:45 to 18:30 088-555-0121", True),
        ("100 people", "in 2024 100 people came", True),
        ("200", "at 18:30 200 people came", True),
        ("10,000", "10.000 Euro", True),
        ("100000", "1,00,000", True),
        ("1", "1,00,000", False),
        ("\u20ac5", "\u20ac5 000", False),
        ("000 euros", "10 000 euros", False),
        ("1000", "1,000", True),
        ("1,500", "1.5", False),
        ("1.234", "1,234 kg", True),
        ("29", "$29.00", True),
        ("4.9", "4,90", True),
        (".5", "0.5", True),
        ("5", "0.5", False),
        ("5", "5\u00bd", False),
        ("10", "10\u00b2", False),
        ("1", "1/2", False),
        ("2026", "3/4/2026", True),
        ("30", "at 10:30", False),
        ("5", "A5", False),
        ("5", "EUR5, 5kg or 5%", True),
        ("42", "answer:42.", True),
        ("5", "\u4ef7\u683c5\u5143", True),
        ("500", "\u0e23\u0e32\u0e04\u0e32500\u0e1a\u0e32\u0e17", True),
        ("-1,500", "-1.5", False),
        ("-1,500", "-1500", True),
        ("50%", "50\u202f%", True),
        ("$5", "$ 5", True),
        ("5€", "5 €", True),
        ("$5", "-$5", False),
        ("007", "7", False),
        ("7", "007", False),
        ("3", "version 1.2.3", False),
        ("5", "5e3", False),
        ("5", "Rs.5", True),
        ("50%", "\u0665\u0660\u066a", True),
        ("12", "\u0967\u0968", True),
        ("12", "\u09e7\u09e8", True),
        ("12", "\uff11\uff12", True),
        ("3.5", "\u0663\u066b\u0665", True),
        ("1000", "\u0661\u066c\u0660\u0660\u0660", True),
    ],
)
def test_a_number_matches_as_a_whole_only(wanted: str, answer: str, is_right: bool) -> None:
    assert judge("contains", {"contains": [wanted]}, says(answer)).score == is_right


def test_case_white_space_and_composition_make_no_difference() -> None:
    answer = says("ouvert  LE\nsamedi\u00a0matin: cafe\u0301")
    assert judge("contains", {"contains": ["le samedi matin", "caf\u00e9"]}, answer).score == 1


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ("I don't know.", "I don\u2019t know."),
        ("I don\u2019t know.", "I don't know."),
        ("it's", "it\u2032s"),
        ("it's", "it`s"),
        ("it's", "it\u00b4s"),
        ('say "non"', "say \u00ab\u202fnon\u202f\u00bb"),
        ("say \u00ab non \u00bb", 'say "non"'),
        ('say "no"', "say \u00abno\u00bb"),
        ('say "no"', "say \u201eno\u201c"),
        ("wait...", "wait\u2026"),
        ("co-op", "co\u2011op"),
        ("a - b", "a \u2014 b"),
        ("cooperate", "co\u00adop\u200berate"),
        ("A: b!", "\uff21\uff1a\u3000\uff42\uff01"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_quotes_dashes_and_characters_without_width_make_no_difference(wanted: str, answer: str) -> None:
    assert judge("contains", {"contains": [wanted]}, says(answer)).score == 1
    assert judge("refusal", {"contains": [wanted]}, says(answer)).score == 1
    assert judge("exact", {"exact": f"So: {wanted}"}, says(f"So:  {answer}")).score == 1


def test_an_answer_needs_every_string_and_no_distractor() -> None:
    expected = {"contains": ["Monday", "9:00"], "distractors": ["Sunday"]}
    assert judge("contains", expected, says("Monday from 9:00")).score == 1
    half = judge("contains", expected, says("Monday"))
    assert (half.score, half.reason) == (0, "lacks '9:00'")
    both = judge("contains", expected, says("Monday and Sunday from 9:00"))
    assert (both.score, both.reason) == (0, "has 'Sunday'")


@pytest.mark.parametrize("grade", ["contains", "refusal", "exact", "no_call"])
def test_a_call_is_no_answer_in_words(grade: str) -> None:
    expected = {"contains": ["5"], "exact": "5", "no_call": True}
    answer = Message("assistant", "5", (ToolCall("look_up", {}),))
    grade_given = judge(grade, expected, answer)
    assert grade_given.score == 0
    assert "look_up" in grade_given.reason


def test_a_refusal_that_names_a_distractor_fails() -> None:
    expected = {"contains": ["does not say"], "distractors": ["4.90"]}
    assert judge("refusal", expected, says("The handbook does not say that.")).score == 1
    assert judge("refusal", expected, says("The handbook does not say that, but 4.90.")).score == 0
    assert judge("refusal", expected, says("It costs 5.")).score == 0


def test_an_exact_answer_is_equal_up_to_white_space() -> None:
    assert judge("exact", {"exact": "S2\nS5"}, says(" S2 S5 ")).score == 1
    assert judge("exact", {"exact": "S2\nS5"}, says("s2 S5")).score == 0


def test_a_call_is_right_when_its_arguments_are_equal_as_json() -> None:
    expected = {"name": "order", "arguments": {"size": "L", "count": 2, "extra": {"a": [1, None]}}}
    grade = judge("tool_call", expected, calls("order", count=2.0, extra={"a": [1, None]}, size="L"))
    assert (grade.score, grade.parts) == (1, {"name": 1, "arguments": 1})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"count": "2"}, "argument 'count' is \"2\", expected 2"),
        ({"count": 3}, "argument 'count' is 3, expected 2"),
        ({}, "lacks argument 'count'"),
        ({"count": 2, "size": "L"}, "has the unexpected argument 'size'"),
    ],
)
def test_a_call_with_a_wrong_argument_has_the_name_right_and_says_which(arguments: dict, reason: str) -> None:
    grade = judge("tool_call", {"name": "order", "arguments": {"count": 2}}, calls("order", **arguments))
    assert (grade.score, grade.parts, grade.reason) == (0, {"name": 1, "arguments": 0}, reason)


@pytest.mark.parametrize(("wanted", "given"), [(1, True), (0, False), ([1], [True]), ("a", "A"), ([1, 2], [2, 1])])
def test_values_that_json_tells_apart_are_not_equal(wanted: Any, given: Any) -> None:
    assert judge("tool_call", {"name": "f", "arguments": {"x": wanted}}, calls("f", x=given)).score == 0


@pytest.mark.parametrize("answer", [says("I look it up."), calls("order", "order", count=2), calls("cancel", count=2)])
def test_no_call_two_calls_or_another_name_get_nothing(answer: Message) -> None:
    grade = judge("tool_call", {"name": "order", "arguments": {"count": 2}}, answer)
    assert (grade.score, grade.parts) == (0, {"name": 0, "arguments": 0})
    assert "order" in grade.reason


def test_words_where_no_call_is_expected_count_as_words_whose_content_nobody_judged() -> None:
    for answer in (says("Which size?"), says("Sure."), says("  "), calls("order")):
        assert not judge("no_call", {"no_call": True}, answer).is_judged
    assert judge("no_call", {"no_call": True}, says("Which size?")).score == 1
    assert judge("no_call", {"no_call": True}, says("  ")).score == 0
    assert judge("no_call", {"no_call": True}, says('{"name": "order", "parameters": {')).score == 0


def test_the_answers_that_wrote_the_questions_get_full_grades() -> None:
    seen: set[str] = set()
    for index in range(12):
        world = make_world(5, "held_out", index)
        for number in range(8):
            scene = draw_conversation(world, 5, number, tool_share=0.5, refusal_share=0.3)
            answers = [message for message in scene.conversation.messages if message.role == "assistant"]
            for question, answer in zip(questions(scene), answers, strict=True):
                grade = GRADES[question.grade](question, answer)
                assert grade.score == 1, f"{grade.reason}: {answer}"
                seen.add(question.grade)
    assert seen == {"contains", "refusal", "tool_call"}


def test_a_written_task_is_read_back_equal(tmp_path: Path) -> None:
    conversation = Conversation((Message("user", "Where is it?"),), environment="ipython", today="05 March 2025")
    asked = Question("a", conversation, {"name": "f", "arguments": {"x": 1}}, "tool_call", "world 1")
    alone = Question("b", ASK, {"contains": ["5"]}, "contains")
    write(tmp_path / "questions-1.jsonl", asked.to_json())
    write(tmp_path / "questions-2.jsonl", alone.to_json())
    assert Task.load(tmp_path) == Task(tmp_path.name, (asked, alone))
    assert Task.load(tmp_path / "questions-2.jsonl").questions == (alone,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": None}, "lacks 'id'"),
        ({"group": 3}, "group is int"),
        ({"answer": "5"}, "unknown field 'answer'"),
        ({"grade": "contain"}, "grade = 'contain'"),
        ({"conversation": {"messages": [{"role": "usr", "content": "x"}]}}, "role 'usr'"),
        (
            {"conversation": {"messages": [{"role": "assistant", "content": "x"}]}},
            "does not end with what the assistant says",
        ),
        ({"conversation": {"messages": []}}, "does not end with what the assistant says"),
        ({"expected": {"contains": []}}, "expected.contains = []"),
        ({"expected": {"contains": [" "]}}, "expected.contains = [' ']"),
        ({"expected": {"contains": [5]}}, "expected.contains = [5]"),
        ({"expected": {"contains": ["5"], "distractor": ["6"]}}, "unknown field 'distractor'"),
        ({"expected": {"name": "f"}, "grade": "tool_call"}, "lacks 'arguments'"),
        ({"expected": {"no_call": False}, "grade": "no_call"}, "no_call = false"),
    ],
)
def test_a_question_that_cannot_be_judged_is_refused_by_file_and_row(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = write(tmp_path / "questions.jsonl", row(id="first"), row(**changes))
    with pytest.raises(DataError) as caught:
        Task.load(path)
    assert complaint in str(caught.value)
    assert f"{path} row 2" in str(caught.value)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the id 'a' again"):
        Task.load(write(tmp_path / "questions.jsonl", row(), row()))


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conversations.jsonl").write_text(json.dumps({"messages": []}))
    with pytest.raises(DataError, match="has no questions"):
        Task.load(tmp_path)
    with pytest.raises(DataError, match="has no questions"):
        Task.load(write(tmp_path / "questions.jsonl"))


def test_a_sample_takes_from_each_group_in_proportion_and_keeps_the_order() -> None:
    sizes = {"a": 30, "b": 10, "c": 10}
    asked = [Question(f"{name}{n}", ASK, {}, group=name) for name, size in sizes.items() for n in range(size)]
    task = Task("t", tuple(asked))
    sample = task.sample(15, seed=1)
    groups = [question.group for question in sample.questions]
    assert {name: groups.count(name) for name in sizes} == {"a": 9, "b": 3, "c": 3}
    assert list(sample.questions) == sorted(sample.questions, key=asked.index)
    assert sample == task.sample(15, seed=1)
    assert sample != task.sample(15, seed=2)
    assert task.sample(50, seed=1) == task


def test_each_question_has_the_same_chance_to_be_drawn() -> None:
    sizes = {"a": 7, "b": 2, "": 1}
    asked = [Question(f"{name}{n}", ASK, {}, group=name) for name, size in sizes.items() for n in range(size)]
    task = Task("t", tuple(asked))
    drawn = [question.id for seed in range(600) for question in task.sample(3, seed).questions]
    shares = {question.id: drawn.count(question.id) / 600 for question in asked}
    assert shares == pytest.approx(dict.fromkeys(shares, 0.3), abs=0.06)


def test_a_folder_of_conversations_asks_for_every_assistant_turn(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {"id": "17"}}}
    messages = [
        {"role": "user", "content": "where is 17?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "here"},
        {"role": "assistant", "content": "It is here."},
    ]
    write_jsonl(tmp_path / "conversations.jsonl", [{"messages": messages, "id": "a"}, {"messages": messages}])
    questions = Task.load(tmp_path).questions
    assert [(q.id, q.grade, q.group) for q in questions] == [
        ("a/1", "tool_call", "a"),
        ("a/3", "no_call", "a"),
        ("2/1", "tool_call", "2"),
        ("2/3", "no_call", "2"),
    ]
    assert questions[1].expected == {"no_call": True, "reference": "It is here."}
    assert questions[0].expected == {"name": "find", "arguments": {"id": "17"}}
    assert [message.role for message in questions[1].conversation.messages] == ["user", "assistant", "tool"]


def test_a_name_that_recurs_in_the_task_is_a_fact_and_a_name_that_is_said_once_is_none(tmp_path: Path) -> None:
    teams = ["Card Delivery"] * 3 + ["Lost Cards"] * 2 + ["Fraud Watch"] * 3
    rows = [
        {"id": f"c{number}", "messages": [
            {"role": "user", "content": "Who can help me with it?"},
            {"role": "assistant", "content": f"Please ask the {team} team about it."},
        ]}
        for number, team in enumerate(teams)
    ]  # fmt: skip
    write_jsonl(tmp_path / "conversations.jsonl", rows)
    task = Task.load(tmp_path)
    assert [question.grade for question in task.questions] == ["facts"] * 3 + ["no_call"] * 2 + ["facts"] * 3
    right, wrong = (Message("assistant", f"The {team} team will do it.") for team in ("Card Delivery", "Lost Cards"))
    both = Message("assistant", "Ask the Card Delivery team, or the Fraud Watch team.")
    assert [task.grade(task.questions[0], each).score for each in (right, wrong, both)] == [1, 0, 0]


@pytest.mark.parametrize(("given", "inside"), [(".", "exam"), ("..", "exam/deep"), ("../exam", "exam"), ("exam", ".")])
def test_a_folder_of_questions_is_named_however_its_path_is_written(
    given: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exam" / "deep").mkdir(parents=True)
    write(tmp_path / "exam" / "questions.jsonl", row())
    monkeypatch.chdir(tmp_path / inside)
    assert Task.load(Path(given)).name == "exam"
