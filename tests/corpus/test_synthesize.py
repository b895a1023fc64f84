"""The imagined worlds: what may be trained on them, and what held-out questions may ask."""

import io
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from puna.corpus.synthesize.content.layouts import LAYOUTS, MAX_LINES
from puna.corpus.synthesize.content.names import Split, split_of
from puna.corpus.synthesize.content.scenes import Scene
from puna.corpus.synthesize.content.talk import NOT_SAID, TALK
from puna.corpus.synthesize.content.values import draw_digits, draw_identifier
from puna.corpus.synthesize.conversations import questions
from puna.corpus.synthesize.languages.others import LANGUAGES
from puna.corpus.synthesize.pages import ask_unanswerable, draw_page
from puna.corpus.synthesize.phrases import PHRASES
from puna.corpus.synthesize.questions import QUESTIONS
from puna.corpus.synthesize.synthesize import Config, make_documents, make_scenes, run
from puna.corpus.synthesize.tools import TOOLS
from puna.corpus.synthesize.worlds import TOPICS, World, make_world
from puna.data.document import Document
from puna.data.shards import read_rows
from puna.evaluation.tasks import Task
from puna.formats.chat.conversation import Conversation
from puna.pipeline.run import Run

KINDS: dict[str, Any] = {"organization_share": 0.25, "language_share": 0.15, "prose_share": 0.15, "bare_share": 0.05}
TRAIN = Config(seed=3, split="train", conversations_per_world=12, **KINDS)
HELD_OUT = Config(seed=3, split="held_out", conversations_per_world=12, **KINDS)
EMAIL = re.compile(r"[\w.]+@[\w.]+")


def worlds(split: Split, count: int = 60) -> list[World]:
    return [make_world(3, split, index) for index in range(count)]


def scenes(config: Config, count: int = 60) -> list[Scene]:
    return [scene for world in worlds(config.split, count) for scene in make_scenes(world, config)]


def words(scene: Scene) -> str:
    messages = scene.conversation.messages
    return "\n".join(message.content for message in messages)


def names(config: Config) -> set[str]:
    """Everything that is invented by letter or digit: businesses, products, codes, addresses of people."""
    found = {world.name.split()[0] for world in worlds(config.split)}
    found |= {product.split()[0] for world in worlds(config.split) for product in world.products}
    found |= {
        fact.value for world in worlds(config.split) for fact in world.facts if fact.kind in ("origin", "manager")
    }
    made = scenes(config, 40)
    return found | codes(made) | {email for scene in made for email in EMAIL.findall(words(scene))}


def codes(made: list[Scene]) -> set[str]:
    """Every order and card number that the assistant passes on to a tool."""
    calls = [call for scene in made for m in scene.conversation.messages for call in m.tool_calls]
    named = [call.arguments.get("order_id") or call.arguments.get("card_number") for call in calls]
    return {code for code in named if code}


def test_training_and_held_out_share_no_name_and_no_code():
    train, held_out = names(TRAIN), names(HELD_OUT)
    assert len(train) > 500 and len(held_out) > 500
    assert not train & held_out
    assert {split_of(code) for code in codes(scenes(TRAIN, 20))} == {"train"}
    assert {split_of(code) for code in codes(scenes(HELD_OUT, 20))} == {"held_out"}


def test_the_split_of_a_name_is_for_ever():
    # NOTE: if this changes, what was held out of an earlier model is trained on by a later one.
    held_out = ("Torden", "Delvey", "Perbry", "TK-62369")
    train = ("Velsen", "Marabry", "Oralis", "TK-48213")
    assert [split_of(name) for name in held_out + train] == ["held_out"] * 4 + ["train"] * 4
    assert split_of("TORDEN") == "held_out"


@pytest.mark.parametrize("config", [TRAIN, HELD_OUT])
def test_a_world_is_a_pure_function_of_seed_split_and_index(config: Config):
    def everything(order: list[int]) -> dict[int, object]:
        made = {index: make_world(config.seed, config.split, index) for index in order}
        return {i: (w, list(make_documents(w, config)), list(make_scenes(w, config))) for i, w in made.items()}

    assert everything([0, 1, 2, 7]) == everything([7, 2, 0, 1])
    assert everything([5])[5] != everything([6])[6]
    assert make_world(3, config.split, 5) != make_world(4, config.split, 5)


def test_what_is_expected_stands_on_the_page_or_in_a_result():
    for scene in scenes(TRAIN):
        for question in questions(scene):
            messages = question.conversation.messages
            source = messages[-1] if messages[-1].role == "tool" else messages[0]
            kind, topic = question.conversation.metadata["kind"], question.conversation.metadata["topic"]
            is_worded = kind == "talk" or (kind == "closed" and topic.startswith("language"))
            if question.grade == "contains" and not is_worded:
                assert all(needle in source.content for needle in question.expected["contains"]), question
                others = [other for other in question.expected.get("distractors", []) if other not in REFUSALS]
                assert all(other in source.content for other in others), question


def test_arguments_are_copied_from_the_customer_or_from_the_result_before():
    for scene in scenes(TRAIN):
        messages = scene.conversation.messages
        for place, message in enumerate(messages):
            for call in message.tool_calls:
                assert all(value in messages[place - 1].content for value in call.arguments.values()), call
                assert f"{call.name}({', '.join(call.arguments)})" in messages[0].content


def test_a_refused_question_has_no_answer_on_the_page():
    rng = Random(0)
    for world in worlds("train"):
        for topic in TOPICS:
            page = draw_page(world, topic, rng)
            answered = {form.format(**fact.slots, asked=day) for fact in page.facts for form in QUESTIONS[fact.kind]
                        for day in fact.asked or ("",)}  # fmt: skip
            for _ in range(5):
                asked = ask_unanswerable(world, page, rng)
                assert NOT_SAID in asked.answer and asked.question not in answered


def test_refusals_are_worded_in_many_ways_and_repeat_no_question():
    refused = [
        (messages[place - 1].content, messages[place].content)
        for scene in scenes(TRAIN)
        for messages in [scene.conversation.messages]
        for place, expected in zip(answered(scene), scene.expected, strict=True)
        if expected.grade == "refusal"
    ]
    assert len(refused) > 100
    assert len({answer for _, answer in refused}) > 50
    whole = [(question, answer) for question, answer in refused if len(question.split()) > 3]
    assert not [pair for pair in whole if pair[0].lower().rstrip("?.!") in pair[1].lower()]


REFUSALS = {NOT_SAID, *(language.not_said for language in LANGUAGES.values())}


def answered(scene: Scene) -> list[int]:
    return [place for place, message in enumerate(scene.conversation.messages) if message.role == "assistant"]


def test_no_answer_that_is_not_a_refusal_reads_like_one():
    for scene in scenes(TRAIN):
        for place, expected in zip(answered(scene), scene.expected, strict=True):
            answer = scene.conversation.messages[place].content
            assert expected.grade == "refusal" or not any(refusal in answer for refusal in REFUSALS), answer


def test_identifiers_have_every_shape():
    rng = Random(0)
    drawn = [draw_identifier(rng) for _ in range(3000)]
    assert all(3 <= len(text) <= 14 for text in drawn)
    assert {len(text) for text in drawn} == set(range(3, 15))
    separators = {letter for text in drawn for letter in text if not letter.isalnum()}
    assert {"-", "/"} <= separators
    for shape in (r"[A-Z]{2}-\d{5}", r"[A-Z]{1,3}/20\d\d/\d{3,5}", r"\d+", r".*[a-z].*[A-Z].*\d.*", r".*(\d)\1\1\1.*"):
        assert sum(bool(re.fullmatch(shape, text)) for text in drawn) >= 5, shape


def test_runs_of_equal_digits_are_drawn_on_purpose():
    rng = Random(0)
    runs = sum(bool(re.search(r"(\d)\1\1", draw_digits(rng, 7))) for _ in range(2000)) / 2000
    by_chance = sum(bool(re.search(r"(\d)\1\1", f"{rng.randrange(10**7):07}")) for _ in range(2000)) / 2000
    assert runs > 0.25 > 3 * by_chance


def test_small_talk_names_the_business_and_never_claims_to_be_human():
    config = TRAIN.model_copy(update={"talk_share": 1.0})
    replies = [
        (scene, scene.conversation.messages[place].content, expected)
        for scene in scenes(config, 20)
        for place, expected in zip(answered(scene), scene.expected, strict=True)
        if expected.kind == "talk"
    ]
    assert len(replies) > 200
    for _, reply, expected in replies:
        assert all(needle.lower() in reply.lower() for needle in expected.values["contains"])
    for kind in ("who", "human"):
        assert all("not a human" in reply for reply in TALK[kind].replies)


def test_each_language_is_answered_in_itself():
    by_language = {
        code: scenes(TRAIN.model_copy(update={"language_share": 1.0, "organization_share": 0.0, "prose_share": 0.0,
                                              "bare_share": 0.0, "languages": [code]}), 10)
        for code in LANGUAGES
    }  # fmt: skip
    for code, made in by_language.items():
        forms = [*LANGUAGES[code].answers.values(), *LANGUAGES[code].refusals]
        forms += [said.reply for said in LANGUAGES[code].talk.values()]
        patterns = [re.compile(re.sub(r"\\\{\w+\\\}", "(.*)", re.escape(form))) for form in forms]
        for scene in made:
            for place in answered(scene):
                answer = scene.conversation.messages[place].content
                assert any(pattern.fullmatch(answer) for pattern in patterns), (code, answer)


def test_all_languages_say_all_the_basics():
    for code, language in LANGUAGES.items():
        kinds = {"hours", "closed", "phone", "price", "email"}
        for table in (language.labels, language.sentences, language.questions, language.answers):
            assert set(table) == kinds, code
        assert set(language.talk) == {"greeting", "who", "thanks", "bye"} and len(language.days) == 7
        assert all(language.not_said in refusal for refusal in language.refusals), code


def test_each_true_answer_passes_its_grade_and_a_wrong_one_fails(tmp_path: Path):
    write(HELD_OUT.model_copy(update={"num_worlds": 20}), tmp_path)
    task = Task.load(tmp_path)
    truth = {row["id"]: Conversation.from_json(row) for row in read_rows(tmp_path / "conversations.jsonl")}
    answers = []
    for question in task.questions:
        conversation, _, place = question.id.rpartition("/")
        answers.append(truth[conversation].messages[int(place)])
    assert all(task.grade(*pair).score == 1 for pair in zip(task.questions, answers, strict=True))
    crossed = [task.grade(*pair).score for pair in zip(task.questions[1:], answers, strict=False)]
    assert sum(crossed) / len(crossed) < 0.1


def test_there_are_at_least_eight_ways_to_ask_for_everything():
    kinds = [kind for topic in TOPICS.values() for kind in topic]
    assert set(kinds) == set(PHRASES) == set(QUESTIONS)
    ways = {**QUESTIONS, **{name: tool.requests for name, tool in TOOLS.items()}}
    assert all(len(set(forms)) == len(forms) >= 8 for forms in ways.values())


def test_pages_answers_and_prompts_are_short():
    pages = [
        document.text for world in worlds("train") for document in make_documents(world, Config(questions_per_page=0))
    ]
    lengths = [len(page.split()) for page in pages]
    assert min(lengths) >= 12 and max(lengths) <= 150
    shops = TRAIN.model_copy(update=dict.fromkeys(KINDS, 0.0))
    answers = [m.content for s in scenes(shops) for m in s.conversation.messages if m.role == "assistant" and m.content]
    assert all(4 <= len(answer.split()) <= 45 for answer in answers)
    assert set(MAX_LINES) == set(LAYOUTS)


def test_shares_say_what_is_drawn():
    def made(**changes: float) -> list[Scene]:
        nothing = {**dict.fromkeys(KINDS, 0.0), "talk_share": 0.0}
        return scenes(TRAIN.model_copy(update={**nothing, **changes}), 10)

    def grades(**changes: float) -> list[str]:
        return [expected.grade for scene in made(**changes) for expected in scene.expected]

    assert "tool_call" not in grades(tool_share=0) and "refusal" not in grades(refusal_share=0)
    assert set(grades(tool_share=0, refusal_share=1)) == {"refusal"}
    for kind in KINDS:
        topics = {scene.conversation.metadata["topic"].split()[0] for scene in made(**{kind: 1.0})}
        assert topics == {kind.removesuffix("_share")}
    assert {scene.conversation.metadata["topic"] for scene in made()} == {"shop"}


def test_shares_that_exceed_one_are_refused():
    with pytest.raises(ValueError, match="a sum of at most 1"):
        Config(organization_share=0.6, language_share=0.5)


def test_schemas_describe_the_tools_that_the_prompt_names():
    for scene in scenes(TRAIN.model_copy(update={"schemas": True}), 10):
        offered = [tool["function"]["name"] for tool in scene.conversation.tools]
        named = re.findall(r"(\w+)\(", scene.conversation.messages[0].content.split("\n")[0])
        assert offered == named and bool(offered) == (scene.conversation.environment == "ipython")


def test_the_stage_writes_rows_that_the_others_read(tmp_path: Path):
    config = Config(num_worlds=3, conversations_per_world=2)
    write(config, tmp_path)
    documents = [Document.from_json(row) for row in read_rows(tmp_path / "documents.jsonl")]
    conversations = [Conversation.from_json(row) for row in read_rows(tmp_path / "conversations.jsonl")]
    assert len(documents) == 3 * len(TOPICS) and len(conversations) == 6
    assert all(conversation.metadata["split"] == "train" for conversation in conversations)
    assert not (tmp_path / "questions.jsonl").exists()


def write(config: Config, path: Path) -> None:
    run(config, Run("synthesize", "key", output=path, directory=path, console=Console(file=io.StringIO())))
