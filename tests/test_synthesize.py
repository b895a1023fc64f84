"""The imagined worlds: what may be trained on them, and what held-out questions may ask."""

import io
import re
from pathlib import Path
from random import Random

import pytest
from rich.console import Console

from puna.chat.conversation import Conversation
from puna.data.document import Document
from puna.data.shards import read_rows
from puna.run import Run
from puna.synthesize.conversations import Scene, questions
from puna.synthesize.pages import LAYOUTS, MAX_FACTS, ask_in_vain, draw_page
from puna.synthesize.phrases import PHRASES, REFUSAL
from puna.synthesize.questions import QUESTIONS
from puna.synthesize.synthesize import Config, make_documents, make_scenes, run
from puna.synthesize.tools import TOOLS
from puna.synthesize.worlds import TOPICS, Split, World, make_world, split_of
from puna.tasks import load_task

TRAIN = Config(seed=3, split="train", conversations_per_world=12)
HELD_OUT = Config(seed=3, split="held_out", conversations_per_world=12)
CODE = re.compile(r"\b[A-Z]{1,2}-\d{4,6}\b")
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
    texts = [words(scene) for scene in scenes(config)]
    return found | {code for text in texts for code in CODE.findall(text) + EMAIL.findall(text)}


def test_training_and_held_out_share_no_name_and_no_code():
    train, held_out = names(TRAIN), names(HELD_OUT)
    assert len(train) > 500 and len(held_out) > 500
    assert not train & held_out
    assert {split_of(name) for name in train if CODE.fullmatch(name)} == {"train"}
    assert {split_of(name) for name in held_out if CODE.fullmatch(name)} == {"held_out"}


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
            if question.grade == "contains":
                assert all(needle in source.content for needle in question.expected["contains"]), question
            assert all(other in source.content for other in question.expected.get("distractors", []))


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
                asked = ask_in_vain(world, page, rng)
                assert asked.answer == REFUSAL and asked.question not in answered


def test_each_true_answer_passes_its_grade_and_a_wrong_one_fails(tmp_path: Path):
    write(HELD_OUT.model_copy(update={"num_worlds": 20}), tmp_path)
    task = load_task(tmp_path)
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
    assert min(lengths) >= 40 and max(lengths) <= 135
    answers = [m.content for s in scenes(TRAIN) for m in s.conversation.messages if m.role == "assistant" and m.content]
    assert all(4 <= len(answer.split()) <= 20 for answer in answers)
    assert set(MAX_FACTS) == set(LAYOUTS)


def test_shares_say_what_is_drawn():
    def kinds(**changes: float) -> list[str]:
        config = TRAIN.model_copy(update=changes)
        return [expected.grade for scene in scenes(config, 10) for expected in scene.expected]

    assert "tool_call" not in kinds(tool_share=0) and "refusal" not in kinds(refusal_share=0)
    assert set(kinds(tool_share=0, refusal_share=1)) == {"refusal"}


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
