"""Null models and bad models: what they answer, and that the gate lets none of twenty bad models through."""

import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.data.shards import write_jsonl
from puna.evaluation.evaluate.exam import describe_null_scores, mean_score, null_scores, null_table
from puna.evaluation.evaluate.grading import Grader, Item
from puna.evaluation.release.decision import ComparedModel, Decision
from puna.evaluation.release.gate import judge
from puna.evaluation.release.paired_comparison import compare_paired
from puna.evaluation.release.rules.exam import examine
from puna.evaluation.release.settings import GateConfig
from puna.evaluation.scores import EvaluatedModel, Evaluation
from puna.evaluation.tasks import Question, Task
from puna.evaluation.tasks.null_models import null_models, right_answer
from puna.formats.chat.conversation import Conversation, Message, ToolCall, tool_name

TEAMS = ("Card Delivery", "Lost Cards", "Foreign Transfers", "Direct Debits", "Mortgage Advice", "Fraud Watch")
TROUBLES = (
    "My new card has not arrived",
    "I cannot find my card any more",
    "Money I sent abroad is missing",
    "A payment left my account twice",
    "I would like to borrow for a flat",
    "Somebody paid with my card in Lima",
)
DRINKS = ("latte", "mocha", "espresso", "flat white", "cortado")
ORDER = {"type": "function", "function": {"name": "place_order", "parameters": {"type": "object", "properties": {}}}}


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def bank_dialogue(number: int) -> dict[str, Any]:
    """One customer's trouble; the answer names the team, a phone extension and a person."""
    kind, source = number % len(TEAMS), random.Random(number)
    asked = f"{TROUBLES[kind]}, since {source.randint(2, 9)} days. Who helps me?"
    answer = f"Please ask the {TEAMS[kind]} team, extension {4000 + 37 * kind}, for help."
    return {"id": f"bank-{number}", "messages": [said("user", asked), said("assistant", answer)]}


def order_dialogue(number: int) -> dict[str, Any]:
    """An order by a tool call, its result read out, and a goodbye."""
    source = random.Random(number)
    drink, count, total = source.choice(DRINKS), source.randint(1, 4), f"{source.randint(300, 2900) / 100:.2f}"
    call = {"type": "function", "function": {"name": "place_order", "arguments": {"drink": drink, "count": count}}}
    messages = [
        said("system", "You take orders in a coffee shop."),
        said("user", f"Could I get {count} {drink}, please?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        said("tool", json.dumps({"total": total})),
        said("assistant", f"That comes to {total} dollars."),
        said("user", "Thanks a lot."),
        said("assistant", "You are welcome, enjoy!"),
    ]
    return {"id": f"order-{number}", "tools": [ORDER], "environment": "ipython", "messages": messages}


@pytest.fixture(scope="module", params=["shop", "bank", "orders"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, perform_stage: Any) -> Task:
    """The demo's own kind of questions, and conversations like those of a bank and of a coffee shop."""
    path = tmp_path_factory.mktemp("exam") / request.param
    if request.param == "shop":
        perform_stage("synthesize", path, split="held_out", num_worlds=10, conversations_per_world=8, pages=False)
        return Task.load(path)
    path.mkdir()
    dialogue = bank_dialogue if request.param == "bank" else order_dialogue
    write_jsonl(path / "conversations.jsonl", [dialogue(number) for number in range(120)])
    return Task.load(path)


def words(text: str) -> Callable[[Question], Message]:
    return lambda _: Message("assistant", text)


def prompt(question: Question) -> str:
    return "\n".join(message.content for message in question.conversation.messages)


def last(question: Question) -> str:
    return question.conversation.messages[-1].content


def drawn(question: Question, alphabet: list[str], count: int, glue: str) -> Message:
    return Message("assistant", glue.join(random.Random(question.id).choices(alphabet, k=count)))


def first_tool(question: Question, **arguments: Any) -> Message:
    names = [tool_name(tool) for tool in question.conversation.tools] or ["look_up_order"]
    return Message("assistant", tool_calls=(ToolCall(names[0], arguments),))


BAD_MODELS: dict[str, Callable[[Question], Message]] = {
    "Sure.": words("Sure."),
    "Yes.": words("Yes."),
    "No.": words("No."),
    "a greeting": words("Hello! How can I help you today?"),
    "a refusal": words("I'm sorry, the handbook does not say that."),
    "a disclaimer": words("As an AI language model, I cannot answer that."),
    "dots": words("..."),
    "nothing": words(""),
    "an empty object": words("{}"),
    "the question": lambda question: Message("assistant", last(question)),
    "the question, twice": lambda question: Message("assistant", f"You ask: {last(question)} {last(question)}"),
    "the whole prompt": lambda question: Message("assistant", prompt(question)),
    "the first line of the prompt": lambda question: Message("assistant", prompt(question).splitlines()[0]),
    "all numbers of the prompt": lambda question: Message(
        "assistant", " ".join(re.findall(r"[\d.,:]+", prompt(question)))
    ),
    "random words of the prompt": lambda question: drawn(question, prompt(question).split(), 15, " "),
    "random letters": lambda question: drawn(question, list(string.ascii_lowercase), 40, ""),
    "random digits": lambda question: drawn(question, list(string.digits), 12, ""),
    "a tool without arguments": first_tool,
    "a tool with a made-up argument": lambda question: first_tool(question, order_id="12345"),
    "a call in words": lambda question: Message("assistant", "place_order(drink=latte, count=1) look_up_order(12345)"),
}


def graded(name: str, task: Task, answers: list[Message]) -> EvaluatedModel:
    rows: list[dict[str, Any]] = []
    for question, answer in zip(task.questions, answers, strict=True):
        grade = task.grade(question, answer)
        row = {"task": task.name, "score": grade.score, "judged": grade.is_judged, "parts": {}, "reason": grade.reason}
        rows.append({**question.to_json(), **row})
    return EvaluatedModel(name, rows)


@pytest.fixture(scope="module")
def gate_of(task: Task) -> Callable[[list[Message], GateConfig], Decision]:
    """Return a gate that judges answers against a base that writes gibberish, with nothing else in the way."""
    base = graded("base", task, [drawn(question, list("xyz"), 9, "") for question in task.questions])
    nulls = null_scores([Item(task, question) for question in task.questions], Grader(), seed=0)
    null_answers = Evaluation(Path("scores"), [task.name], 0.0, {}, {}, [], {}, nulls).null_answers(base)
    assert null_answers

    def decide(answers: list[Message], settings: GateConfig) -> Decision:
        candidate = graded("candidate", task, answers)
        label = "the base model"
        return judge(
            "candidate",
            settings,
            [
                ComparedModel("candidate", "candidate", candidate, None),
                ComparedModel("base", "base", base, None, label=label),
            ],
            [compare_paired(candidate, base, suite="task", role="base", threshold=0.0, label=label)],
            suites=["task"],
            exams={"task": examine(candidate, null_answers, suite="task", margin=settings.null_margin)},
            receipts=[],
            leaks=None,
            licence_reasons=[],
            overrides={},
        )

    return decide


@pytest.mark.parametrize("name", BAD_MODELS)
def test_no_bad_model_passes_the_gate(gate_of: Callable[..., Decision], task: Task, name: str) -> None:
    answers = [BAD_MODELS[name](question) for question in task.questions]
    # Also where the user lets unjudged answers pass: the exam alone has to stop it.
    for settings in (GateConfig(), GateConfig(max_unjudged=1.0)):
        assert not gate_of(answers, settings).is_go


def test_there_are_twenty_bad_models() -> None:
    assert len(BAD_MODELS) == 20


def test_a_good_model_passes_once_its_answers_are_judged(gate_of: Callable[..., Decision], task: Task) -> None:
    answers = [right_answer(question) or Message("assistant", "You are welcome!") for question in task.questions]
    answers[0] = Message("assistant", "I do not know.")
    decision = gate_of(answers, GateConfig(max_unjudged=0.4))
    assert decision.is_go, decision.reasons


def test_the_right_answer_of_a_question_is_right_and_random_words_are_not(task: Task) -> None:
    judged = [question for question in task.questions if task.grade(question, Message("assistant", "x")).is_judged]
    for question in judged:
        answer = right_answer(question)
        assert answer is not None and task.grade(question, answer).score == 1, question
    random_words = next(model for model in null_models(task.questions, seed=0) if model.name == "random").alternatives[
        0
    ]
    hits = [task.grade(*each).score for each in zip(task.questions, random_words, strict=True) if each[0] in judged]
    assert sum(hits) <= 0.05 * len(hits)


def exam_of(number: int, answer: Callable[[int], str]) -> list[Question]:
    def question(index: int) -> Question:
        conversation = Conversation((Message("user", f"What is number {index}?"),))
        return Question(str(index), conversation, {"contains": [answer(index)]})

    return [question(index) for index in range(number)]


def scores_of(questions: list[Question]) -> dict[str, float]:
    task = Task("exam", tuple(questions))
    nulls = null_scores([Item(task, question) for question in questions], Grader(), seed=0)
    return {null["name"]: mean_score(null["scores"]) for null in nulls}


def test_the_best_constant_is_found_among_the_exams_own_answers() -> None:
    questions = exam_of(100, lambda index: "zebra" if index % 5 else f"answer-{index}x")
    assert scores_of(questions)["constant"] >= 0.8


def test_a_constant_that_joins_many_answers_is_tried_too() -> None:
    questions = exam_of(100, lambda index: f"colour{'abcdefghij'[index % 10]}")
    assert scores_of(questions)["constant"] == 1


def test_each_null_model_finds_the_exam_that_it_can_pass() -> None:
    assert scores_of(exam_of(20, lambda index: f"number {index}"))["question"] == 1
    assert scores_of(exam_of(20, lambda _: "the same"))["other"] == 1
    hard = scores_of(exam_of(60, lambda index: f"key{index * 7919}"))
    assert hard["question"] == hard["page"] == hard["empty"] == hard["other"] == hard["random"] == hard["tool"] == 0


def test_the_same_exam_has_the_same_null_models(task: Task) -> None:
    once, again, other = (null_models(task.questions, seed=seed) for seed in (3, 3, 4))
    assert once == again and once != other


def test_another_questions_answer_is_of_another_group() -> None:
    conversation = Conversation((Message("user", "?"),))
    questions = [
        Question(f"{group}/{index}", conversation, {"contains": [f"{group}-{index}"]}, group=group)
        for group in "abcd"
        for index in range(5)
    ]
    others = next(model for model in null_models(questions, seed=1) if model.name == "other").alternatives[0]
    assert all(
        not answer.content.startswith(question.group) for question, answer in zip(questions, others, strict=True)
    )


def test_an_exam_without_questions_has_null_models_without_answers() -> None:
    assert all(not null["scores"] for null in null_scores([], Grader(), seed=0))


def test_a_null_model_whose_answers_nobody_judged_has_no_score() -> None:
    asked = Conversation((Message("user", "Where is my card?"),))
    questions = tuple(Question(f"q{n}", asked, {"no_call": True}, "no_call", f"g{n}") for n in range(3))
    task = Task("talk", questions)
    nulls = null_scores([Item(task, question) for question in questions], Grader(), seed=0)
    assert {score for _, score in null_table(nulls)} == {"not judged"}
    assert "%" not in describe_null_scores(nulls)


def test_a_null_model_that_was_judged_and_failed_scores_nothing() -> None:
    nulls = [
        {"name": "a", "description": "says a", "scores": [None, 0.0]},
        {"name": "b", "description": "says b", "scores": [None]},
    ]
    assert null_table(nulls) == [["says a", "0.0"], ["says b", "not judged"]]
    assert describe_null_scores(nulls) == "models that know nothing: a 0.0%"
