"""(seed, split, index) -> an invented business: name, products, and facts with values but without sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from puna.corpus.synthesize.content.names import Split, draw_name
from puna.corpus.synthesize.content.values import draw_phone, draw_price

NUM_PRODUCTS = 4
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

# fmt: off
COLOURS = (
    "crimson", "navy", "olive", "ivory", "amber", "violet", "charcoal", "turquoise", "copper", "beige", "scarlet",
    "lilac",
)
MATERIALS = (
    "steel", "oak", "walnut", "brass", "linen", "leather", "bamboo", "glass", "marble", "cork", "titanium", "wool",
)
# fmt: on

SHOPS = {
    "Bicycle Shop": ("bicycle", "helmet", "pannier", "trailer", "pump", "saddle"),
    "Tea House": ("teapot", "kettle", "cup", "tea tin", "tray", "strainer"),
    "Camera Shop": ("camera", "lens", "tripod", "flash", "camera bag", "light meter"),
    "Music Store": ("guitar", "violin", "flute", "drum", "piano stool", "music stand"),
    "Furniture Workshop": ("chair", "table", "bookcase", "bench", "bed", "desk"),
    "Clock Workshop": ("clock", "watch", "alarm clock", "barometer", "timer", "hourglass"),
    "Camping Shop": ("tent", "stove", "backpack", "sleeping bag", "lantern", "hammock"),
    "Toy Shop": ("train", "puzzle", "kite", "doll house", "robot", "puppet"),
    "Lamp Studio": ("lamp", "lantern", "candle holder", "floor lamp", "desk lamp", "chandelier"),
    "Kitchen Shop": ("pan", "knife", "mixer", "toaster", "scale", "casserole"),
    "Garden Shop": ("spade", "rake", "bench", "watering can", "greenhouse", "parasol"),
    "Pottery": ("vase", "bowl", "mug", "plate", "jug", "planter"),
}
CURRENCIES = ("{} euros", "€{}", "${}", "{} francs", "£{}")
STREETS = ("Street", "Lane", "Road", "Square", "Avenue")

TOPICS = {
    "products": ("price", "colour", "weight", "warranty", "material", "origin"),
    "visit": ("hours", "closed", "phone", "address", "manager", "founded", "email"),
    "orders": ("shipping_cost", "shipping_days", "express_cost", "free_shipping", "return_days", "invoice_days"),
    "service": ("repair_days", "repair_cost", "engraving_cost", "gift_card", "discount", "course"),
}


class Fact(NamedTuple):
    """A fact of a world.

    Attributes:
        value: Text on the page.
        needle: Text in every right answer.
        slots: Values for the templates of the kind.
        asked: Days of the week for questions about the fact.

    Example:
        >>> make_world(0, "train", 0).facts[0].kind
        'price'
    """

    kind: str
    value: str
    needle: str
    slots: dict[str, str]
    asked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """An invented business; `facts` holds more than any page. Example: see `Fact`."""

    id: str
    split: Split
    name: str
    products: tuple[str, ...]
    facts: tuple[Fact, ...]
    currency: str


def make_world(seed: int, split: Split, index: int) -> World:
    """Build world `index` of a split, independent of all other worlds."""
    rng = Random(f"{seed}/{split}/{index}")
    shop = rng.choice(tuple(SHOPS))
    stems: list[str] = []
    while len(stems) < NUM_PRODUCTS + 1:
        stem = draw_name(rng, split)
        if stem not in stems:
            stems.append(stem)
    name, *kinds = stems
    nouns = rng.sample(SHOPS[shop], NUM_PRODUCTS)
    products = tuple(f"{kind} {noun}" for kind, noun in zip(kinds, nouns, strict=True))
    currency = rng.choice(CURRENCIES)
    facts = (*_product_facts(rng, split, products, currency), *_business_facts(rng, split, name, currency))
    return World(f"{split}-{seed}-{index:05d}", split, f"{name} {shop}", products, facts, currency)


def _product_facts(rng: Random, split: Split, products: Sequence[str], currency: str) -> list[Fact]:
    draws: dict[str, Callable[[], str]] = {
        "price": lambda: draw_price(rng, 3, 300),
        "colour": lambda: rng.choice(COLOURS),
        "weight": lambda: f"{rng.randrange(21, 200) * 5} g",
        "warranty": lambda: rng.choice((f"{rng.randrange(2, 10)} years", f"{rng.choice((15, 18, 30, 42))} months")),
        "material": lambda: rng.choice(MATERIALS),
        "origin": lambda: draw_name(rng, split),
    }
    facts: list[Fact] = []
    for kind, draw in draws.items():
        needles = _distinct(draw, len(products))
        for product, needle in zip(products, needles, strict=True):
            value = currency.format(needle) if kind == "price" else needle
            facts.append(Fact(kind, value, needle, {"product": product}))
    return facts


def _business_facts(rng: Random, split: Split, name: str, currency: str) -> list[Fact]:
    costs = ("shipping_cost", "express_cost", "repair_cost", "engraving_cost")
    amounts = {"free_shipping": str(rng.randrange(4, 40) * 5)}
    amounts |= dict(zip(costs, _distinct(lambda: draw_price(rng, 2, 60), len(costs)), strict=True))
    first, last = draw_name(rng, split), draw_name(rng, split)
    course_hour = f"{rng.randrange(16, 20)}:{rng.choice(('00', '15', '30', '45'))}"
    texts = {
        "phone": draw_phone(rng),
        "address": f"{rng.randrange(1, 99)} {draw_name(rng, split)} {rng.choice(STREETS)}",
        "manager": f"{first} {last}",
        "founded": str(rng.randrange(1880, 2021)),
        "email": f"{rng.choice(('help', 'hello', 'info', 'post'))}@{name.lower()}.example",
        "shipping_days": _range_of_days(rng),
        "return_days": f"{rng.choice((10, 14, 20, 21, 28, 30, 40, 45, 60, 90))} days",
        "invoice_days": f"{rng.randrange(5, 50)} days",
        "repair_days": _range_of_days(rng),
        "gift_card": f"{rng.randrange(2, 10)} years",
        "discount": f"{rng.randrange(3, 21)} percent",
        "course": f"{rng.choice(WEEKDAYS)} at {course_hour}",
    }
    facts = [Fact(kind, currency.format(needle), needle, {}) for kind, needle in amounts.items()]
    return facts + [Fact(kind, text, text, {}) for kind, text in texts.items()] + _hours(rng)


def _hours(rng: Random) -> list[Fact]:
    def draw() -> str:
        opening = f"{rng.randrange(7, 12)}:{rng.choice(('00', '15', '30', '45'))}"
        return f"{opening} to {rng.randrange(15, 21)}:{rng.choice(('00', '15', '30', '45'))}"

    week, saturday, sunday = _distinct(draw, 3)
    facts = [
        Fact("hours", week, week, {"days": "Monday to Friday"}, WEEKDAYS),
        Fact("hours", saturday, saturday, {"days": "Saturday"}, ("Saturday",)),
    ]
    if rng.random() < 0.4:
        return [*facts, Fact("hours", sunday, sunday, {"days": "Sunday"}, ("Sunday",))]
    return [*facts, Fact("closed", "closed", "closed", {"days": "Sunday"}, ("Sunday",))]


def _range_of_days(rng: Random) -> str:
    low = rng.randrange(1, 7)
    return f"{low} to {low + rng.randrange(1, 5)} days"


def _distinct(draw: Callable[[], str], count: int) -> list[str]:
    """Draw values without substrings of one another: grading by substring can then tell wrong from right."""
    values: list[str] = []
    while len(values) < count:
        new = draw()
        if not any(new in old or old in new for old in values):
            values.append(new)
    return values
