"""How pages and answers say a fact: templates as data.

`{value}` is in each the same words, so that an answer can copy them from the page. Questions are in questions.py.
"""

from typing import NamedTuple

REFUSAL = "I'm sorry, the handbook does not say that."


class Phrases(NamedTuple):
    """A label for lists, sentences for prose, and the one form of the answer."""

    label: str
    sentences: tuple[str, ...]
    answer: str


PHRASES: dict[str, Phrases] = {
    "price": Phrases(
        "{product}, price",
        (
            "The {product} costs {value}.",
            "We sell the {product} for {value}.",
            "The price of the {product} is {value}.",
        ),
        "The {product} costs {value}.",
    ),
    "colour": Phrases(
        "{product}, colour",
        (
            "The {product} comes in {value}.",
            "The colour of the {product} is {value}.",
            "We make the {product} in {value}.",
        ),
        "The {product} comes in {value}.",
    ),
    "weight": Phrases(
        "{product}, weight",
        (
            "The {product} weighs {value}.",
            "The weight of the {product} is {value}.",
            "On the scale the {product} shows {value}.",
        ),
        "The {product} weighs {value}.",
    ),
    "warranty": Phrases(
        "{product}, warranty",
        (
            "The {product} has a warranty of {value}.",
            "We give a warranty of {value} on the {product}.",
            "The warranty of the {product} lasts {value}.",
        ),
        "The {product} has a warranty of {value}.",
    ),
    "material": Phrases(
        "{product}, material",
        (
            "The {product} is made of {value}.",
            "The material of the {product} is {value}.",
            "We use {value} for the {product}.",
        ),
        "The {product} is made of {value}.",
    ),
    "origin": Phrases(
        "{product}, origin",
        (
            "The {product} is made in {value}.",
            "The {product} comes from {value}.",
            "A workshop in {value} makes the {product}.",
        ),
        "The {product} is made in {value}.",
    ),
    "hours": Phrases(
        "Open on {days}",
        (
            "On {days} we are open from {value}.",
            "Our hours on {days} are {value}.",
            "On {days} the doors are open from {value}.",
        ),
        "On {asked} we are open from {value}.",
    ),
    "closed": Phrases(
        "Open on {days}",
        ("On {days} we are {value}.", "The shop is {value} on {days}.", "On {days} the doors stay {value}."),
        "On {asked} we are {value}.",
    ),
    "phone": Phrases(
        "Phone",
        ("Our phone number is {value}.", "Call us at {value}.", "By phone you reach us at {value}."),
        "Our phone number is {value}.",
    ),
    "address": Phrases(
        "Address",
        ("You find us at {value}.", "Our address is {value}.", "The shop stands at {value}."),
        "You find us at {value}.",
    ),
    "manager": Phrases(
        "Manager",
        ("The manager is {value}.", "Our manager is called {value}.", "{value} manages the shop."),
        "The manager is {value}.",
    ),
    "founded": Phrases(
        "Founded in",
        ("The shop opened in {value}.", "We have been here since {value}.", "It all began in {value}."),
        "The shop opened in {value}.",
    ),
    "email": Phrases(
        "E-mail",
        ("Our e-mail address is {value}.", "Write to us at {value}.", "Send an e-mail to {value}."),
        "Our e-mail address is {value}.",
    ),
    "shipping_cost": Phrases(
        "Shipping, cost",
        ("Shipping costs {value}.", "We charge {value} for shipping.", "The shipping of a parcel costs {value}."),
        "The cost of shipping is {value}.",
    ),
    "shipping_days": Phrases(
        "Shipping, time",
        ("Shipping takes {value}.", "A parcel is with you in {value}.", "The parcel arrives after {value}."),
        "Shipping takes {value}.",
    ),
    "express_cost": Phrases(
        "Express, cost",
        ("Express costs {value}.", "We charge {value} for express.", "For a parcel by express we charge {value}."),
        "The cost of express is {value}.",
    ),
    "free_shipping": Phrases(
        "Shipping, free from",
        (
            "Shipping is free from {value}.",
            "From {value} we ship for free.",
            "Orders from {value} are shipped for free.",
        ),
        "Shipping is free from {value}.",
    ),
    "return_days": Phrases(
        "Returns, time",
        (
            "You can return goods within {value}.",
            "We take goods back within {value}.",
            "Returns are possible for {value}.",
        ),
        "You can return goods within {value}.",
    ),
    "invoice_days": Phrases(
        "Invoices, time",
        ("Please pay invoices within {value}.", "Invoices are due within {value}.", "An invoice can wait for {value}."),
        "Please pay invoices within {value}.",
    ),
    "repair_days": Phrases(
        "Repair, time",
        ("A repair takes {value}.", "Repairs are ready after {value}.", "Our workshop needs {value} for a repair."),
        "A repair takes {value}.",
    ),
    "repair_cost": Phrases(
        "Repair, cost",
        ("A repair costs {value}.", "We charge {value} for a repair.", "The price of a repair is {value}."),
        "A repair costs {value}.",
    ),
    "engraving_cost": Phrases(
        "Engraving, cost",
        ("An engraving costs {value}.", "We charge {value} for an engraving.", "The price of an engraving is {value}."),
        "An engraving costs {value}.",
    ),
    "gift_card": Phrases(
        "Gift card, valid for",
        ("A gift card is valid for {value}.", "Gift cards can be used for {value}.", "Use a gift card within {value}."),
        "A gift card is valid for {value}.",
    ),
    "discount": Phrases(
        "Club members, discount",
        ("Club members get {value} off.", "Members of our club save {value}.", "We give club members {value} off."),
        "Club members get {value} off.",
    ),
    "course": Phrases(
        "Course, time",
        ("Our course is on {value}.", "The course takes place on {value}.", "Come to our course on {value}."),
        "The course is on {value}.",
    ),
}

TITLES = {
    "products": ("Products", "What we sell", "From our shelves"),
    "visit": ("Visit us", "The shop", "Where and when"),
    "orders": ("Orders", "Shipping and returns", "Parcels"),
    "service": ("Service", "Workshop and cards", "What else we do"),
}
OPENINGS = (
    "This page belongs to the handbook of {name}.",
    "Here is what our customers ask most often.",
    "Welcome to {name}.",
    "Please read this page before you ask.",
    "Everybody at {name} knows this page.",
    "We keep this page short and up to date.",
)
CLOSINGS = (
    "If you are not sure, ask a colleague.",
    "We look forward to seeing you.",
    "All of this may change next year.",
    "Thank you for your trust.",
    "Everything else is on the other pages.",
    "We wish you a good day.",
)

ROLE = "You are the assistant of {name}."
FROM_PAGE = "Answer from this page."
CAN_CALL = "You can call: {tools}."
GREETINGS = ("Hello. ", "Hi! ", "Good morning. ", "Good evening. ", "Excuse me. ")
THANKS = (" Thank you.", " Thanks!", " Please tell me.", " I am curious.")
