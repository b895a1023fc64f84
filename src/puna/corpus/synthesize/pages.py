"""A world and a topic -> one handbook page in one of several layouts, and the facts that stand on it.

A page says a part of what is true in its world; the rest is what a question can ask in vain.
"""

from random import Random
from typing import NamedTuple

from puna.corpus.synthesize.matter.layouts import LAYOUTS, MAX_LINES, Line, frame_page
from puna.corpus.synthesize.matter.scenes import Asked, draw_spelling
from puna.corpus.synthesize.matter.talk import NOT_SAID, OFF_TOPIC, refuse
from puna.corpus.synthesize.phrases import CLOSINGS, OPENINGS, PHRASES, TITLES
from puna.corpus.synthesize.questions import QUESTIONS
from puna.corpus.synthesize.worlds import TOPICS, Fact, World

# What a page of its topic never leaves out: beside express, a question about shipping would be ambiguous without it.
ALWAYS = ("hours", "closed", "shipping_cost")
OFF_TOPIC_SHARE = 0.2  # of the questions in vain
# Kinds whose values a careless answer mixes up.
FAMILIES = {"closed": "hours", "express_cost": "shipping_cost", "engraving_cost": "repair_cost"}


class Page(NamedTuple):
    """Text, and the facts that stand in it."""

    topic: str
    text: str
    facts: tuple[Fact, ...]


def draw_page(world: World, topic: str, rng: Random) -> Page:
    """Choose what the page says and how it looks."""
    layout = rng.choice(tuple(LAYOUTS))
    facts = _shorten(_choose_facts(world, topic, rng), MAX_LINES[layout], rng)
    openings = rng.sample(OPENINGS, 2 if layout in ("bullets", "pairs", "plain") else rng.choice((0, 1, 1)))
    body = LAYOUTS[layout]([_line(fact, rng) for fact in facts], rng)
    parts = [" ".join(openings).format(name=world.name), body, rng.choice(CLOSINGS) if rng.random() < 0.7 else ""]
    title = f"{world.name}: {rng.choice(TITLES[topic])}"
    text = frame_page(title, [part for part in parts if part], world.name, rng)
    return Page(topic, text, tuple(facts))


def ask(page: Page, fact: Fact, rng: Random) -> Asked:
    """Ask about a fact that stands on the page."""
    slots = _slots(fact, rng)
    answer = PHRASES[fact.kind].answer.format(**slots)
    others = {other.needle for other in page.facts if _family(other) == _family(fact)}
    distractors = tuple(sorted(other for other in others if other not in answer))
    question = draw_spelling(rng.choice(QUESTIONS[fact.kind]).format(**slots), rng)
    return Asked(fact.kind, question, answer, (fact.needle,), distractors)


def ask_in_vain(world: World, page: Page, rng: Random) -> Asked:
    """Ask about something that the page does not say."""
    if rng.random() < OFF_TOPIC_SHARE:
        return Asked("refusal", rng.choice(OFF_TOPIC), refuse(rng), (NOT_SAID,))
    silent = [fact for fact in world.facts if fact not in page.facts]
    kind = rng.choice(sorted({fact.kind for fact in silent}))
    fact = rng.choice([fact for fact in silent if fact.kind == kind])
    slots = _slots(fact, rng)
    about = PHRASES[fact.kind].about.format(**slots)
    return Asked("refusal", rng.choice(QUESTIONS[kind]).format(**slots), refuse(rng, about), (NOT_SAID,))


def _slots(fact: Fact, rng: Random | None = None) -> dict[str, str]:
    """Fill the templates of a fact: a customer (`rng`) asks about one day, a page speaks of all its days."""
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
