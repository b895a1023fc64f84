"""A random source -> a page about an organization other than a shop, and a conversation about the page.

A page consists of records ("The parking fee is $12."), clauses ("Members must return books within 14 days.") and
statements of further forms. The answer to a question about a clause quotes the clause. Words are combined freely, so a
model learns to find the sentence for a question instead of learning sentences by heart.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from puna.corpus.synthesize.content import lexicon, values
from puna.corpus.synthesize.content.layouts import LAYOUTS, MAX_LINES, Line, frame_page
from puna.corpus.synthesize.content.names import Split, draw_name, draw_of_split
from puna.corpus.synthesize.content.scenes import (
    Asked,
    Scene,
    Turn,
    add_talk,
    draw_spelling,
    join_asked,
    make_scene,
    make_turn,
)
from puna.corpus.synthesize.content.talk import NOT_SAID, OFF_TOPIC, refuse

ROLES = (
    "You are the assistant of {name}. Answer from this page.",
    "You are the assistant of {name}. Answer from this page.",
    "You are the assistant of {name}. Answer from the page below.",
    "You answer questions for {name}. Use this page.",
    "You are a helpful assistant of {name}. Answer from this page.",
)
TITLES = (
    "{name}",
    "{name}: rules",
    "{name}: what you should know",
    "About {name}",
    "{name} at a glance",
    "{m} at {name}",
)
SPARE = 4  # facts that a page leaves out, for questions without an answer


class Item(NamedTuple):
    """A fact of an organization. `kind` is the kind of the value.

    Example:
        >>> item = Source(Random(0), "train").draw(0.5)
        >>> item.needle in item.line.answer
        True
    """

    kind: str
    line: Line
    questions: tuple[str, ...]
    needle: str
    about: str


class Source:
    """Draws the items of a page; no item repeats a subject or a value.

    Example:
        >>> source = Source(Random(0), "train")
        >>> source.draw(0.5).kind
        'identifier'
    """

    def __init__(self, rng: Random, split: Split) -> None:
        self._rng = rng
        self._split: Split = split
        self._subjects: set[str] = set()
        self._values: list[str] = []

    def draw(self, records: float) -> Item:
        """Draw a record with probability `records`, else a clause or a statement."""
        kind = self._rng.random()
        if kind < records:
            return self._record()
        return self._clause() if kind < records + (1 - records) * 0.7 else self._statement()

    def similar_to(self, item: Item) -> Item:
        """Draw a record with the noun of `item` and a new subject if `item` is a record, else a clause."""
        nouns = [noun for noun in lexicon.NOUNS.get(item.kind, ()) if item.about.endswith(" " + noun)]
        return self._record(item.kind, nouns[0]) if nouns else self._clause()

    def word(self, words: tuple[str, ...]) -> str:
        """Draw a word unused by the page's items."""
        word = self._rng.choice(self._free(words))
        self._subjects.add(word)
        return word

    def _free(self, words: tuple[str, ...]) -> list[str]:
        return [word for word in words if word not in self._subjects]

    def value(self, kind: str) -> str:
        """Draw a value of a kind; values of a page never contain each other."""
        rng = self._rng
        draws: dict[str, Callable[[], str]] = {
            "amount": lambda: values.draw_amount_of_money(rng),
            "date": lambda: values.draw_date(rng),
            "time": lambda: values.draw_time(rng),
            "duration": lambda: values.draw_duration(rng),
            "count": lambda: str(rng.choice((rng.randrange(11, 100), rng.randrange(100, 3000)))),
            "person": lambda: f"{draw_name(rng, self._split)} {draw_name(rng, self._split)}",
            "place": lambda: (
                f"{rng.randrange(1, 99)} {draw_name(rng, self._split)} {rng.choice(('Street', 'Road', 'Square'))}"
            ),
            "identifier": lambda: draw_of_split(lambda: values.draw_identifier(rng), self._split),
            "email": lambda: values.draw_email(rng, draw_name(rng, self._split)),
            "web": lambda: values.draw_web_address(rng, draw_name(rng, self._split)),
            "phone": lambda: values.draw_phone(rng),
            "percent": lambda: f"{rng.randrange(3, 99)}{rng.choice((' percent', '%'))}",
            "weekday": lambda: rng.choice(values.WEEKDAYS),
            "year": lambda: str(rng.randrange(1880, 2030)),
            "thing": lambda: f"{rng.choice(lexicon.OBJECTS)} and {rng.choice(lexicon.OBJECTS)}",
        }
        value = values.draw_other(draws[kind], self._values)
        self._values.append(value)
        return value

    def _record(self, kind: str = "", noun: str = "") -> Item:
        rng = self._rng
        kind = kind or rng.choice(tuple(lexicon.NOUNS))
        subject = self._new(lambda: f"{rng.choice(lexicon.MODIFIERS)} {noun or rng.choice(lexicon.NOUNS[kind])}")
        value = self.value(kind)
        sentences = lexicon.RECORD_SENTENCES[""] + lexicon.RECORD_SENTENCES.get(kind, ())
        forms = lexicon.RECORD_QUESTIONS[""] + lexicon.RECORD_QUESTIONS[kind] * 2
        questions = tuple(form.format(x=subject, X=_capital(subject)) for form in forms)
        answer = f"The {subject} is {value}."
        line = Line(
            _capital(subject), value, rng.choice(sentences).format(x=subject, v=value), rng.choice(questions), answer
        )
        return Item(kind, line, questions, value, f"the {subject}")

    def _clause(self) -> Item:
        rng = self._rng
        action = self._new(lambda: f"{rng.choice(lexicon.VERBS)} | {rng.choice(self._free(lexicon.OBJECTS))}")
        verb, thing = action.split(" | ")
        self._subjects.add(thing)
        if rng.random() < 0.25:
            thing = f"{draw_name(rng, self._split)} {thing}"
        who, modal = rng.choice(lexicon.SUBJECTS), rng.choice(lexicon.MODALS)
        kind, ending, asking = rng.choice(lexicon.COMPLEMENTS)
        value = self.value(kind)
        lead = rng.choice(lexicon.LEADS)
        subject = who.lower() if lead else who
        sentence = f"{lead}{subject} {modal} {verb} {thing} {ending.format(v=value)}{rng.choice(lexicon.TAILS)}."
        do = f"do {who.lower()} have to" if modal == "have to" else f"{modal} {who.lower()}"
        slots = {"do": f"{do} {verb} {thing}", "s": who.lower(), "w": verb, "o": thing}
        questions = tuple(form.format(**slots) for form in asking * 2 + lexicon.CLAUSE_QUESTIONS)
        line = Line(_capital(thing), sentence, sentence, questions[0], sentence)
        return Item(kind, line, questions, value, thing)

    def _statement(self) -> Item:
        rng = self._rng
        forms = {form: (kind, asking) for kind, form, asking in lexicon.STATEMENTS}
        subject = self._new(lambda: f"{rng.choice(tuple(forms))} | {rng.choice(lexicon.MODIFIERS)}")
        form, modifier = subject.split(" | ")
        kind, asking = forms[form]
        value = self.value(kind)
        sentence = form.format(m=modifier, v=value)
        questions = tuple(template.format(m=modifier) for template in asking)
        line = Line(_capital(modifier), sentence, sentence, questions[0], sentence)
        return Item(kind, line, questions, value, f"{modifier} matters")

    def _new(self, draw: Callable[[], str]) -> str:
        while (subject := draw_of_split(draw, self._split)) in self._subjects:
            pass
        self._subjects.add(subject)
        return subject


def draw_organization_scene(
    rng: Random, split: Split, *, refusal_share: float, talk_share: float, identifier: str, world: str
) -> Scene:
    """Draw an organization, a page, and a conversation of up to four turns about the page, small talk aside.

    Example:
        >>> options = {"refusal_share": 0.1, "talk_share": 0.0, "identifier": "1", "world": "w"}
        >>> draw_organization_scene(Random(0), "train", **options).conversation.messages[0].role
        'system'
    """
    name = rng.choice(lexicon.ORGANIZATIONS).format(name=draw_name(rng, split))
    source = Source(rng, split)
    layout = rng.choice(tuple(LAYOUTS))
    records = rng.choice((1.0, 0.5, 0.0)) if layout not in ("prose", "numbered") else rng.choice((0.5, 0.2, 0.0))
    items = [source.draw(records) for _ in range(rng.randrange(3, MAX_LINES[layout] + 1))]
    silent = [source.similar_to(item) for item in items[:2]] + [source.draw(records) for _ in range(SPARE - 2)]
    text = _draw_text(name, layout, items, source, rng)
    turns: list[Turn] = []
    asked = iter(rng.sample(items, len(items)))
    for _ in range(rng.choice((2, 3, 3, 4))):
        if rng.random() < refusal_share:
            turns.append(make_turn(_ask_in_vain(silent, rng)))
            continue
        count = rng.choices((1, 2, 3), (80, 15, 5))[0]
        several = [ask_item(item, items, rng) for item in (next(asked, None) for _ in range(count)) if item]
        if several:
            turns.append(make_turn(join_asked(several, rng) if len(several) > 1 else several[0]))
    turns = turns or [make_turn(_ask_in_vain(silent, rng))]
    system = rng.choice(ROLES).format(name=name) + "\n\n" + text
    metadata = {"world": world, "split": split, "topic": "organization"}
    return make_scene(system, add_talk(turns, name, talk_share, rng), identifier=identifier, metadata=metadata)


def _draw_text(name: str, layout: str, items: list[Item], source: Source, rng: Random) -> str:
    def fillers() -> str:
        who = rng.choice(lexicon.SUBJECTS)
        slots = {"S": who, "s": who.lower(), "m": rng.choice(lexicon.MODIFIERS), "o": source.word(lexicon.OBJECTS)}
        return " ".join(form.format(**slots) for form in rng.sample(lexicon.FILLERS, rng.choice((1, 2))))

    title = rng.choice(TITLES).format(name=name, m=_capital(rng.choice(lexicon.MODIFIERS)))
    paragraphs = [LAYOUTS[layout]([item.line for item in items], rng)]
    if rng.random() < 0.6:
        paragraphs.insert(0, fillers())
    if rng.random() < 0.5:
        paragraphs.append(fillers())
    return frame_page(title, paragraphs, name, rng)


def ask_item(item: Item, items: list[Item], rng: Random) -> Asked:
    """Ask for an item's value. Further values of the same kind on the page are distractors.

    Example:
        >>> item = Source(Random(0), "train").draw(0.5)
        >>> ask_item(item, [item], Random(0)).needles == (item.needle,)
        True
    """
    others = {other.needle for other in items if other.kind == item.kind}
    distractors = tuple(sorted(other for other in others if other not in item.line.answer))
    question = draw_spelling(rng.choice(item.questions), rng)
    return Asked(item.kind, question, item.line.answer, (item.needle,), distractors)


def _ask_in_vain(silent: list[Item], rng: Random) -> Asked:
    if rng.random() < 0.25:
        return Asked("refusal", rng.choice(OFF_TOPIC), refuse(rng), (NOT_SAID,))
    item = rng.choice(silent)
    return Asked("refusal", rng.choice(item.questions), refuse(rng, item.about), (NOT_SAID,))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
