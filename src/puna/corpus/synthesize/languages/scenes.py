"""A random source and a language -> a small page of a business, and a conversation about the page in the language.

One page of four has a language drawn at random. If page and customer differ in language, answers copy only numbers,
names and addresses.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from puna.corpus.synthesize.content import values
from puna.corpus.synthesize.content.layouts import LAYOUTS, Line, frame_page
from puna.corpus.synthesize.content.names import Split, draw_name
from puna.corpus.synthesize.content.scenes import Asked, Scene, Turn, make_scene, make_turn
from puna.corpus.synthesize.languages.basics import Basics
from puna.corpus.synthesize.languages.others import LANGUAGES

SHOPS = ("{}", "{} & Co", "Casa {}", "{} 24", "Atelier {}", "Studio {}", "Café {}", "{} Sport", "Hotel {}", "Radio {}")
# Layouts that a page of labels and short sentences can have in any language.
PLAIN_LAYOUTS = ("bullets", "prose", "table", "pairs", "plain", "numbered")
WEEK, SATURDAY, SUNDAY = range(5), 5, 6


class Fact(NamedTuple):
    """A fact about the business, independent of language. `first` and `second` are opening and closing time.

    Example:
        >>> Fact("price", "24.90 €", product="Belmar").kind
        'price'
    """

    kind: str
    value: str = ""
    first: str = ""
    second: str = ""
    days: tuple[int, ...] = ()
    product: str = ""


def draw_language_scene(
    rng: Random, split: Split, code: str, *, refusal_share: float, identifier: str, world: str
) -> Scene:
    """Draw a business, a page, and a conversation with a customer in the language `code`.

    Example:
        >>> options = {"refusal_share": 0.1, "identifier": "1", "world": "w"}
        >>> scene = draw_language_scene(Random(0), "train", "de", **options)
        >>> scene.conversation.metadata["topic"]
        'language de'
    """
    spoken = LANGUAGES[code]
    written = spoken if rng.random() < 0.75 else LANGUAGES[rng.choice(tuple(LANGUAGES))]
    name = rng.choice(SHOPS).format(draw_name(rng, split))
    facts = _draw_facts(rng, split)
    shown = rng.sample(facts, rng.randrange(3, len(facts) + 1))
    turns: list[Turn] = []
    if rng.random() < 0.35:
        turns.append(_talk(spoken, rng.choice(("greeting", "greeting", "who")), name, rng))
    asked = iter(rng.sample(shown, len(shown)))
    for _ in range(rng.choice((2, 3, 3, 4))):
        silent = [fact for fact in facts if fact not in shown]
        fact = next(asked, None)
        if fact is None or rng.random() < refusal_share:
            turns.append(make_turn(_ask_in_vain(spoken, silent, rng)))
        else:
            turns.append(make_turn(_ask(spoken, fact, shown, rng)))
    if rng.random() < 0.35:
        turns.append(_talk(spoken, rng.choice(("thanks", "bye", "who")), name, rng))
    role = rng.choice((spoken, LANGUAGES["en"], written)).role.format(name=name)
    system = f"{role}\n\n{_write(written, shown, name, rng)}"
    metadata = {"world": world, "split": split, "topic": f"language {code}"}
    return make_scene(system, turns, identifier=identifier, metadata=metadata)


def _draw_facts(rng: Random, split: Split) -> list[Fact]:
    taken: list[str] = []

    def hours(days: Sequence[int]) -> Fact:
        minutes = ("00", "15", "30", "45")
        first = values.draw_other(lambda: f"{rng.randrange(7, 13)}:{rng.choice(minutes)}", taken)
        second = values.draw_other(lambda: f"{rng.randrange(14, 22)}:{rng.choice(minutes)}", taken)
        taken.extend((first, second))
        return Fact("hours", "", first, second, tuple(days))

    closed = Fact("closed", days=(SUNDAY,))
    facts = [hours(WEEK), hours((SATURDAY,)), closed if rng.random() < 0.6 else hours((SUNDAY,))]
    currency = rng.choice(("{} €", "€{}", "{} euros", "${}", "{} CHF", "£{}"))
    products: list[str] = []
    for _ in range(rng.choice((1, 2, 3))):
        product = values.draw_other(lambda: draw_name(rng, split), products)
        products.append(product)
        price = values.draw_other(lambda: values.draw_price(rng, 3, 900), taken)
        taken.append(price)
        point = rng.choice((".", ","))
        facts.append(Fact("price", currency.format(price.replace(".", point)), product=product))
    facts.append(Fact("phone", values.draw_phone(rng)))
    facts.append(Fact("email", values.draw_email(rng, draw_name(rng, split))))
    return facts


def _slots(language: Basics, fact: Fact, day: str) -> dict[str, str]:
    value = fact.value or (language.span.format(a=fact.first, b=fact.second) if fact.first else language.closed)
    return {"v": value, "a": fact.first, "b": fact.second, "day": day, "product": fact.product}


def _write(language: Basics, facts: Sequence[Fact], name: str, rng: Random) -> str:
    lines: list[Line] = []
    for fact in facts:
        days = language.week if len(fact.days) > 1 else language.days[fact.days[0]] if fact.days else ""
        slots = _slots(language, fact, days)
        label = language.labels[fact.kind].format(**slots)
        sentence = rng.choice(language.sentences[fact.kind]).format(**slots)
        lines.append(Line(label, slots["v"], sentence, label, sentence))
    title = language.title.format(name=name)
    return frame_page(title, [LAYOUTS[rng.choice(PLAIN_LAYOUTS)](lines, rng)], name, rng)


def _ask(language: Basics, fact: Fact, shown: Sequence[Fact], rng: Random) -> Asked:
    slots = _slots(language, fact, language.days[rng.choice(fact.days)] if fact.days else "")
    answer = language.answers[fact.kind].format(**slots)
    needles = (fact.first, fact.second) if fact.first else (slots["v"],) if fact.value else (language.closed_needle,)
    others = {text for other in shown for text in (other.value, other.first, other.second) if text}
    distractors = (*sorted(other for other in others if other not in answer), language.not_said)
    question = rng.choice(language.questions[fact.kind]).format(**slots)
    return Asked(fact.kind, question, answer, needles, distractors)


def _ask_in_vain(language: Basics, silent: Sequence[Fact], rng: Random) -> Asked:
    refusal = rng.choice(language.refusals)
    # The hours of the week on the page may answer a question about a missing day: only other kinds are asked in vain.
    kinds = [fact for fact in silent if fact.kind not in ("hours", "closed")]
    if not kinds or rng.random() < 0.4:
        return Asked("refusal", rng.choice(language.off_topic), refusal, (language.not_said,))
    fact = rng.choice(kinds)
    question = rng.choice(language.questions[fact.kind]).format(**_slots(language, fact, ""))
    return Asked("refusal", question, refusal, (language.not_said,))


def _talk(language: Basics, kind: str, name: str, rng: Random) -> Turn:
    said = language.talk[kind]
    needles = tuple(needle.format(name=name) for needle in said.needles)
    return make_turn(Asked("talk", rng.choice(said.said), said.reply.format(name=name), needles, (language.not_said,)))
