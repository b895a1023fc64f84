"""A seed -> invented businesses: handbook pages (documents.jsonl) and customer conversations (conversations.jsonl).

The held-out split also gets questions.jsonl, an evaluation task. Templates write page and answer from the same fact,
so every answer is right without a teacher model.

Example:
    [synthesize]
    split = "train"
    num_worlds = 200
    tool_share = 0.4
"""

import time
from collections.abc import Iterator
from random import Random
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from puna.corpus.synthesize.content.names import Split
from puna.corpus.synthesize.content.organizations import draw_organization_scene
from puna.corpus.synthesize.content.prose import draw_bare_scene, draw_prose_scene
from puna.corpus.synthesize.content.scenes import Scene
from puna.corpus.synthesize.conversations import draw_conversation, questions
from puna.corpus.synthesize.languages.scenes import draw_language_scene
from puna.corpus.synthesize.pages import ask, draw_page
from puna.corpus.synthesize.worlds import TOPICS, World, make_world
from puna.data.document import Document
from puna.data.shards import write_jsonl
from puna.pipeline.config import StageConfig
from puna.pipeline.estimate import Estimate, Known, Sketch
from puna.pipeline.run import Run
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS

Language = Literal["en", "de", "fr", "it", "pt", "hi", "es", "th"]

# Worlds written by a dry run, from which the sizes of the whole output are extrapolated.
SKETCHED_WORLDS = 30


class Config(StageConfig):
    """Number and content of the invented businesses. Example: see the module."""

    seed: int = Field(default=0, description="Random seed of the worlds; another seed gives other businesses and facts")
    split: Split = Field(
        default="train", description="Split, train or held_out; no name or order number appears in both"
    )
    num_worlds: int = Field(default=200, ge=1, description="Number of invented businesses (worlds)")
    conversations_per_world: int = Field(default=10, ge=0, description="Number of conversations per world")
    tool_share: float = Field(
        default=0.4, ge=0, le=1, description="Share of shop conversations, 0 to 1, with tool calls"
    )
    refusal_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of questions, 0 to 1, without an answer on the page"
    )
    talk_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Probability, 0 to 1, of small talk before the first and after the last question of a conversation",
    )
    organization_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of conversations, 0 to 1, about organizations other than shops, such as clinics and clubs",
    )
    language_share: float = Field(
        default=0.15, ge=0, le=1, description="Share of conversations, 0 to 1, in a language drawn from `languages`"
    )
    prose_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of conversations, 0 to 1, about pages of long sentences without a meaning",
    )
    bare_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of conversations, 0 to 1, without a page and a business name"
    )
    languages: list[Language] = Field(
        default=[*get_args(Language)],
        min_length=1,
        description="Languages, as ISO 639-1 codes, from which language_share draws the language of a conversation",
    )
    schemas: bool = Field(
        default=False,
        description="Whether conversations carry JSON schemas of the tools besides the names in the prompt",
    )
    pages: bool = Field(default=True, description="Whether to write the pages of every world as documents")
    questions_per_page: int = Field(
        default=4, ge=0, description="Number of questions with answers appended to the page in a document"
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if sum(self.shares().values()) > 1:
            raise ValueError("organization_share, language_share, prose_share and bare_share with a sum of at most 1")
        return self

    def shares(self) -> dict[str, float]:
        """Return the shares of all kinds of conversations except shops, which take the rest."""
        return {
            "organization": self.organization_share,
            "language": self.language_share,
            "prose": self.prose_share,
            "bare": self.bare_share,
        }

    def estimate(self, known: Known) -> Estimate:
        """Sample the first worlds, for the estimates of later stages in a dry run."""
        start, num_seen = time.perf_counter(), min(self.num_worlds, SKETCHED_WORLDS)
        worlds = [make_world(self.seed, self.split, index) for index in range(num_seen)]
        scenes = [scene for world in worlds for scene in make_scenes(world, self)]
        samples: dict[str, list[Any]] = {"conversations": [scene.conversation for scene in scenes]}
        if self.pages:
            samples["documents"] = [page for world in worlds for page in make_documents(world, self)]
        if self.split == "held_out":
            samples["questions"] = [question for scene in scenes for question in questions(scene)]
        share = num_seen / self.num_worlds
        num_rows = {kind: round(len(rows) / share) for kind, rows in samples.items()}
        seconds = STAGE_SECONDS + 2 * (time.perf_counter() - start) / share
        note = ", ".join(f"{count:,} {kind}" for kind, count in num_rows.items())
        return Estimate(seconds, PROCESS_BYTES, Sketch(samples=samples, num_rows=num_rows), note=note)


def run(config: Config, run: Run) -> None:
    """Write documents and conversations, and questions for the held-out split."""
    documents: list[dict[str, Any]] = []
    scenes: list[Scene] = []
    with run.progress(config.num_worlds, "worlds", unit="worlds") as progress:
        for index in range(config.num_worlds):
            world = make_world(config.seed, config.split, index)
            documents += [document.to_json() for document in make_documents(world, config)] if config.pages else []
            scenes += make_scenes(world, config)
            progress.advance()
    if config.pages:
        write_jsonl(run.output / "documents.jsonl", documents)
    write_jsonl(run.output / "conversations.jsonl", (scene.conversation.to_json() for scene in scenes))
    if config.split == "held_out":
        write_jsonl(run.output / "questions.jsonl", (row.to_json() for scene in scenes for row in questions(scene)))
    run.log(f"{config.num_worlds} worlds, {len(documents)} documents, {len(scenes)} conversations")


def make_documents(world: World, config: Config) -> Iterator[Document]:
    """Yield one document per topic: a page, then questions with answers."""
    for topic in TOPICS:
        rng = Random(f"{config.seed}/{world.id}/{topic}")
        page = draw_page(world, topic, rng)
        facts = rng.sample(page.facts, min(config.questions_per_page, len(page.facts)))
        pairs = (ask(page, fact, rng) for fact in facts)
        text = "\n\n".join([page.text, *(f"{asked.question}\n{asked.answer}" for asked in pairs)])
        yield Document(
            text,
            f"{world.id}/{topic}",
            source="puna synthesize",
            language="en",
            licence="Apache-2.0",
            metadata={"world": world.id, "topic": topic, "split": world.split},
        )


def make_scenes(world: World, config: Config) -> Iterator[Scene]:
    """Draw the conversations of a world: about the shop, or of the kinds in `Config.shares`."""
    for number in range(config.conversations_per_world):
        rng = Random(f"{config.seed}/{world.id}/{number}/kind")
        kind = _draw_kind(config, rng)
        if kind == "shop":
            yield draw_conversation(
                world,
                config.seed,
                number,
                tool_share=config.tool_share,
                refusal_share=config.refusal_share,
                talk_share=config.talk_share,
                schemas=config.schemas,
            )
        else:
            yield _make_other_scene(kind, f"{world.id}/{number}", world, config, rng)


def _draw_kind(config: Config, rng: Random) -> str:
    position = rng.random()
    for kind, share in config.shares().items():
        if position < share:
            return kind
        position -= share
    return "shop"


def _make_other_scene(kind: str, identifier: str, world: World, config: Config, rng: Random) -> Scene:
    refusal_share, split = config.refusal_share, world.split
    if kind == "bare":
        return draw_bare_scene(rng, split, identifier=identifier, world=world.id)
    if kind == "language":
        code = rng.choice(config.languages)
        return draw_language_scene(rng, split, code, refusal_share=refusal_share, identifier=identifier, world=world.id)
    draw = draw_organization_scene if kind == "organization" else draw_prose_scene
    return draw(
        rng,
        split,
        refusal_share=refusal_share,
        talk_share=config.talk_share,
        identifier=identifier,
        world=world.id,
    )
