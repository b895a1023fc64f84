"""A world and a topic -> one handbook page in one of several layouts, and the facts that stand on it.

A page says a part of what is true in its world; the rest is what a question can ask in vain.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from puna.synthesize.phrases import CLOSINGS, OPENINGS, PHRASES, REFUSAL, TITLES
from puna.synthesize.questions import QUESTIONS
from puna.synthesize.worlds import TOPICS, Fact, World

# What a page of its topic never leaves out: beside express, a question about shipping would be ambiguous without it.
ALWAYS = ("hours", "closed", "shipping_cost")
MAX_FACTS = {"bullets": 9, "prose": 8, "sections": 7, "answers": 5}
# Kinds whose values a careless answer mixes up.
FAMILIES = {"closed": "hours", "express_cost": "shipping_cost", "engraving_cost": "repair_cost"}


class Page(NamedTuple):
    """Text, and the facts that stand in it."""

    topic: str
    text: str
    facts: tuple[Fact, ...]


class Asked(NamedTuple):
    """A question with its answer; `needles` stand in a right answer, `distractors` do not."""

    kind: str
    question: str
    answer: str
    needles: tuple[str, ...]
    distractors: tuple[str, ...] = ()


def draw_page(world: World, topic: str, rng: Random) -> Page:
    """Choose what the page says and how it looks."""
    layout = rng.choice(tuple(LAYOUTS))
    facts = _shorten(_choose_facts(world, topic, rng), MAX_FACTS[layout], rng)
    title = f"# {world.name}: {rng.choice(TITLES[topic])}"
    openings = rng.sample(OPENINGS, 2 if layout == "bullets" else 1)
    parts = [title, " ".join(openings).format(name=world.name), LAYOUTS[layout](facts, rng), rng.choice(CLOSINGS)]
    return Page(topic, "\n\n".join(parts), tuple(facts))


def ask(page: Page, fact: Fact, rng: Random) -> Asked:
    """Ask about a fact that stands on the page."""
    slots = _slots(fact, rng)
    answer = PHRASES[fact.kind].answer.format(**slots)
    others = {other.needle for other in page.facts if _family(other) == _family(fact)}
    distractors = tuple(sorted(other for other in others if other not in answer))
    return Asked(fact.kind, rng.choice(QUESTIONS[fact.kind]).format(**slots), answer, (fact.needle,), distractors)


def ask_in_vain(world: World, page: Page, rng: Random) -> Asked:
    """Ask about something that the page does not say."""
    silent = [fact for fact in world.facts if fact not in page.facts]
    kind = rng.choice(sorted({fact.kind for fact in silent}))
    fact = rng.choice([fact for fact in silent if fact.kind == kind])
    question = rng.choice(QUESTIONS[kind]).format(**_slots(fact, rng))
    return Asked("refusal", question, REFUSAL, ("does not say",))


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


def _sentence(fact: Fact, rng: Random) -> str:
    return rng.choice(PHRASES[fact.kind].sentences).format(**_slots(fact))


def _label(fact: Fact) -> str:
    return PHRASES[fact.kind].label.format(**fact.slots)


def _bullets(facts: Sequence[Fact], rng: Random) -> str:
    return "\n".join(f"- {_label(fact)}: {fact.value}" for fact in facts)


def _prose(facts: Sequence[Fact], rng: Random) -> str:
    sentences = [_sentence(fact, rng) for fact in facts]
    half = (len(sentences) + 1) // 2
    return " ".join(sentences[:half]) + "\n\n" + " ".join(sentences[half:])


def _sections(facts: Sequence[Fact], rng: Random) -> str:
    return "\n\n".join(f"## {_label(fact)}\n{_sentence(fact, rng)}" for fact in facts)


def _answers(facts: Sequence[Fact], rng: Random) -> str:
    def pair(fact: Fact) -> str:
        slots = _slots(fact)
        question = rng.choice(QUESTIONS[fact.kind]).format(**slots)
        return f"Q: {question}\nA: {PHRASES[fact.kind].answer.format(**slots)}"

    return "\n\n".join(pair(fact) for fact in facts)


LAYOUTS: dict[str, Callable[[Sequence[Fact], Random], str]] = {
    "bullets": _bullets,
    "prose": _prose,
    "sections": _sections,
    "answers": _answers,
}
