"""A world and a topic -> a handbook page in one of several layouts, with the facts of the page.

A page holds a part of the world's facts. The remaining facts give unanswerable questions.
"""

from random import Random
from typing import NamedTuple

from puna.corpus.synthesize.content.layouts import LAYOUTS, MAX_LINES, Line, frame_page
from puna.corpus.synthesize.content.scenes import Asked, draw_spelling
from puna.corpus.synthesize.content.talk import NOT_SAID, OFF_TOPIC, refuse
from puna.corpus.synthesize.phrases import CLOSINGS, OPENINGS, PHRASES, TITLES
from puna.corpus.synthesize.questions import QUESTIONS
from puna.corpus.synthesize.worlds import TOPICS, Fact, World

# Kinds of facts on every page of the topic. Without shipping_cost, "shipping" could mean express_cost.
ALWAYS = ("hours", "closed", "shipping_cost")
OFF_TOPIC_SHARE = 0.2  # of unanswerable questions
# Kinds of facts with values that a careless reader confuses: the values become distractors.
FAMILIES = {"closed": "hours", "express_cost": "shipping_cost", "engraving_cost": "repair_cost"}


class Page(NamedTuple):
    """A page as text, with the facts of the text. Example: see `draw_page`."""

    topic: str
    text: str
    facts: tuple[Fact, ...]


def draw_page(world: World, topic: str, rng: Random) -> Page:
    """Draw facts and a layout for a page.

    Example:
        >>> draw_page(make_world(0, "train", 0), "visit", Random(0)).topic
        'visit'
    """
    layout = rng.choice(tuple(LAYOUTS))
    facts = _shorten(_choose_facts(world, topic, rng), MAX_LINES[layout], rng)
    openings = rng.sample(OPENINGS, 2 if layout in ("bullets", "pairs", "plain") else rng.choice((0, 1, 1)))
    body = LAYOUTS[layout]([_line(fact, rng) for fact in facts], rng)
    parts = [" ".join(openings).format(name=world.name), body, rng.choice(CLOSINGS) if rng.random() < 0.7 else ""]
    title = f"{world.name}: {rng.choice(TITLES[topic])}"
    text = frame_page(title, [part for part in parts if part], world.name, rng)
    return Page(topic, text, tuple(facts))


def ask(page: Page, fact: Fact, rng: Random) -> Asked:
    """Return a question about a fact of the page, with the answer."""
    slots = _slots(fact, rng)
    answer = PHRASES[fact.kind].answer.format(**slots)
    others = {other.needle for other in page.facts if _family(other) == _family(fact)}
    distractors = tuple(sorted(other for other in others if other not in answer))
    question = draw_spelling(rng.choice(QUESTIONS[fact.kind]).format(**slots), rng)
    return Asked(fact.kind, question, answer, (fact.needle,), distractors)


def ask_unanswerable(world: World, page: Page, rng: Random) -> Asked:
    """Return a question without an answer on the page, with a refusal."""
    if rng.random() < OFF_TOPIC_SHARE:
        return Asked("refusal", rng.choice(OFF_TOPIC), refuse(rng), (NOT_SAID,))
    silent = [fact for fact in world.facts if fact not in page.facts]
    kind = rng.choice(sorted({fact.kind for fact in silent}))
    fact = rng.choice([fact for fact in silent if fact.kind == kind])
    slots = _slots(fact, rng)
    about = PHRASES[fact.kind].about.format(**slots)
    return Asked("refusal", rng.choice(QUESTIONS[kind]).format(**slots), refuse(rng, about), (NOT_SAID,))


def _slots(fact: Fact, rng: Random | None = None) -> dict[str, str]:
    """Return the values of a template: with `rng` for a question about one day, otherwise for all days of a fact."""
    asked = rng.choice(fact.asked) if rng and fact.asked else fact.slots.get("days", "")
    return {**fact.slots, "value": fact.value, "asked": asked}


def _family(fact: Fact) -> str:
    return FAMILIES.get(fact.kind, fact.kind)


def _choose_facts(world: World, topic: str, rng: Random) -> list[Fact]:
    facts = [fact for fact in world.facts if fact.kind in TOPICS[topic]]
    if topic == "products":
        num_products, num_others = rng.choice(((2, 2), (2, 3), (3, 1), (3, 2)))
        kinds = {"price", *rng.sample(TOPICS[topic][1:], num_others)}
        products = rng.sample(world.products, num_products)
        facts = [fact for fact in facts if fact.kind in kinds and fact.slots["product"] in products]
        return sorted(facts, key=lambda fact: products.index(fact.slots["product"]))
    others = [kind for kind in TOPICS[topic] if kind not in ALWAYS]
    kinds = {*ALWAYS, *rng.sample(others, len(others) - rng.choice((0, 1)))}
    facts = [fact for fact in facts if fact.kind in kinds]
    rng.shuffle(facts)
    return facts


def _shorten(facts: list[Fact], limit: int, rng: Random) -> list[Fact]:
    may_go = [fact for fact in facts if fact.kind not in ALWAYS]
    gone = rng.sample(may_go, max(0, len(facts) - limit))
    return [fact for fact in facts if fact not in gone]


def _line(fact: Fact, rng: Random) -> Line:
    phrases, slots = PHRASES[fact.kind], _slots(fact)
    return Line(
        phrases.label.format(**fact.slots),
        fact.value,
        rng.choice(phrases.sentences).format(**slots),
        rng.choice(QUESTIONS[fact.kind]).format(**slots),
        phrases.answer.format(**slots),
    )
