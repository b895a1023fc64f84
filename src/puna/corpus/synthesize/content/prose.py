"""A random source -> pages of long sentences from everyday words, with questions, and small talk without a page.

The sentences have no meaning. To answer, a model must find the sentence that shares rare words with the question, and
quote the sentence. Finding and quoting transfer to unseen pages.
"""

from random import Random

from puna.corpus.synthesize.content import words
from puna.corpus.synthesize.content.layouts import MENU_WORDS, frame_page
from puna.corpus.synthesize.content.names import Split, draw_name
from puna.corpus.synthesize.content.organizations import ROLES, Item, Line, Source, ask_item
from puna.corpus.synthesize.content.scenes import Asked, Scene, Turn, add_talk, join_asked, make_scene, make_turn
from puna.corpus.synthesize.content.talk import NOT_SAID, OFF_TOPIC, TALK, refuse


def draw_prose_scene(
    rng: Random, split: Split, *, refusal_share: float, talk_share: float, identifier: str, world: str
) -> Scene:
    """Draw a page of long sentences and a conversation about the page: two to four turns, plus small talk.

    Example:
        >>> options = {"refusal_share": 0.1, "talk_share": 0.0, "identifier": "1", "world": "w"}
        >>> draw_prose_scene(Random(0), "train", **options).conversation.messages[0].role
        'system'
    """
    source = Source(rng, split)
    keys = _draw_keys(rng, split, 14)
    items = [_draw_item(source, keys.pop(), rng) for _ in range(rng.randrange(3, 8))]
    name = rng.choice((draw_name(rng, split), f"The {keys.pop()}"))
    turns: list[Turn] = []
    asked = iter(rng.sample(items, len(items)))
    for _ in range(rng.choice((2, 3, 3, 4))):
        item = next(asked, None)
        if item is None or rng.random() < refusal_share:
            question = rng.choice(words.QUESTIONS).format(k=keys[-1])
            turns.append(make_turn(Asked("refusal", question, refuse(rng, f"the {keys.pop()}"), (NOT_SAID,))))
            continue
        several = [ask_item(item, items, rng)]
        second = next(asked, None) if rng.random() < 0.1 else None
        if second:
            several.append(ask_item(second, items, rng))
        turns.append(make_turn(join_asked(several, rng) if second else several[0]))
    system = rng.choice(ROLES).format(name=name) + "\n\n" + _write(name, items, rng)
    metadata = {"world": world, "split": split, "topic": "prose"}
    return make_scene(system, add_talk(turns, name, talk_share, rng), identifier=identifier, metadata=metadata)


def draw_bare_scene(rng: Random, split: Split, *, identifier: str, world: str) -> Scene:
    """Draw a short talk without a page and without a name.

    Example:
        >>> draw_bare_scene(Random(0), "train", identifier="1", world="w").conversation.metadata["topic"]
        'bare'
    """
    kinds = rng.sample(("greeting", "who", "page"), rng.choice((1, 2, 3))) + rng.sample(("thanks", "bye"), 1)
    turns: list[Turn] = []
    for kind in kinds:
        reply, needle = words.BARE_REPLIES[kind]
        said = OFF_TOPIC + _PAGE_QUESTIONS if kind == "page" else TALK[kind].said
        if kind == "page":
            turns.append(make_turn(Asked("refusal", rng.choice(said), reply, (needle,))))
        else:
            turns.append(make_turn(Asked("talk", rng.choice(said), reply, (needle,), (NOT_SAID, "no page"))))
    metadata = {"world": world, "split": split, "topic": "bare"}
    return make_scene(rng.choice(words.BARE_SYSTEMS), turns, identifier=identifier, metadata=metadata)


_PAGE_QUESTIONS = (
    "When are you open?",
    "What is your phone number?",
    "How much is shipping?",
    "Where is my order?",
    "What is your address?",
    "Are you open on Sunday?",
    "How long does a repair take?",
    "What do you sell?",
    "Who is the manager?",
    "What is the price?",
)


def _draw_keys(rng: Random, split: Split, count: int) -> list[str]:
    """Draw subjects ("final harbour", "Velsen report"); things and qualities are sampled without replacement."""
    things, qualities = rng.sample(words.THINGS, count), rng.sample(words.QUALITIES, count)
    names = [draw_name(rng, split) if rng.random() < 0.3 else quality for quality in qualities]
    return [f"{name} {thing}" for name, thing in zip(names, things, strict=True)]


def _draw_item(source: Source, key: str, rng: Random) -> Item:
    kind, mention = rng.choice(words.MENTIONS)
    value = source.value(kind)
    sentence = _draw_sentence(key, mention.format(v=value), rng)
    questions = tuple(form.format(k=key) for form in words.QUESTIONS + words.TYPED_QUESTIONS[kind] * 3)
    line = Line(key, sentence, sentence, questions[0], sentence)
    return Item(kind, line, questions, value, f"the {key}")


def _draw_sentence(key: str, mention: str, rng: Random) -> str:
    def thing() -> str:
        quality = f"{rng.choice(words.QUALITIES)} " if rng.random() < 0.4 else ""
        return f"{rng.choice(words.ARTICLES)} {quality}{rng.choice(words.THINGS)}"

    def clause(subject: str) -> str:
        where = f" {rng.choice(words.PLACES)} {thing()}" if rng.random() < 0.5 else ""
        return f"{subject} {rng.choice(words.DEEDS)} {thing()}{where}"

    main = f"{clause(f'the {key}')} {mention}"
    if rng.random() < 0.3:
        main = f"{clause(thing())} {rng.choice(words.PLACES)} the {key} {mention}"
    style = rng.random()
    if style < 0.3:
        main = f"{main}{rng.choice((', ', ' '))}{rng.choice(words.LINKS)} {clause(thing())}"
    elif style < 0.5:
        main = f"{rng.choice(words.PLACES)} {thing()}, {main}"
    return main[:1].upper() + main[1:] + "."


def _write(name: str, items: list[Item], rng: Random) -> str:
    sentences = [item.line.sentence for item in items]
    form = rng.random()
    if form < 0.3:
        mark = rng.choice("-*")
        body = ["\n".join(f"{mark} {sentence}" for sentence in sentences)]
    elif form < 0.5:
        body = [f"## {item.line.label}\n\n{item.line.sentence}" for item in items]
    else:
        cut = rng.randrange(1, len(sentences))
        body = [" ".join(sentences[:cut]), " ".join(sentences[cut:])]
    title = rng.choice((name, f"About {name}", rng.choice(MENU_WORDS)))
    return frame_page(title, body, name, rng)
