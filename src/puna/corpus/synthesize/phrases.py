"""Templates of facts for pages and answers. Data.

`{value}` is the same text on the page and in the answer, so the answer can copy the text. questions.py has questions.
"""

from typing import NamedTuple


class Phrases(NamedTuple):
    """Wordings of a fact: label for lists, sentences for prose, the answer, and the subject for a refusal.

    Example:
        >>> PHRASES["price"].answer
        'The {product} costs {value}.'
    """

    label: str
    sentences: tuple[str, ...]
    answer: str
    about: str


PHRASES: dict[str, Phrases] = {
    "price": Phrases(
        "{product}, price",
        (
            "The {product} costs {value}.",
            "We sell the {product} for {value}.",
            "The price of the {product} is {value}.",
        ),
        "The {product} costs {value}.",
        "what the {product} costs",
    ),
    "colour": Phrases(
        "{product}, colour",
        (
            "The {product} comes in {value}.",
            "The colour of the {product} is {value}.",
            "We make the {product} in {value}.",
        ),
        "The {product} comes in {value}.",
        "the colour of the {product}",
    ),
    "weight": Phrases(
        "{product}, weight",
        (
            "The {product} weighs {value}.",
            "The weight of the {product} is {value}.",
            "On the scale the {product} shows {value}.",
        ),
        "The {product} weighs {value}.",
        "how heavy the {product} is",
    ),
    "warranty": Phrases(
        "{product}, warranty",
        (
            "The {product} has a warranty of {value}.",
            "We give a warranty of {value} on the {product}.",
            "The warranty of the {product} lasts {value}.",
        ),
        "The {product} has a warranty of {value}.",
        "a warranty of the {product}",
    ),
    "material": Phrases(
        "{product}, material",
        (
            "The {product} is made of {value}.",
            "The material of the {product} is {value}.",
            "We use {value} for the {product}.",
        ),
        "The {product} is made of {value}.",
        "the material of the {product}",
    ),
    "origin": Phrases(
        "{product}, origin",
        (
            "The {product} is made in {value}.",
            "The {product} comes from {value}.",
            "A workshop in {value} makes the {product}.",
        ),
        "The {product} is made in {value}.",
        "where the {product} is from",
    ),
    "hours": Phrases(
        "Open on {days}",
        (
            "On {days} we are open from {value}.",
            "Our hours on {days} are {value}.",
            "On {days} the doors are open from {value}.",
        ),
        "On {asked} we are open from {value}.",
        "the hours on {asked}",
    ),
    "closed": Phrases(
        "Open on {days}",
        ("On {days} we are {value}.", "The shop is {value} on {days}.", "On {days} the doors stay {value}."),
        "On {asked} we are {value}.",
        "the hours on {asked}",
    ),
    "phone": Phrases(
        "Phone",
        ("Our phone number is {value}.", "Call us at {value}.", "By phone you reach us at {value}."),
        "Our phone number is {value}.",
        "a phone number",
    ),
    "address": Phrases(
        "Address",
        ("You find us at {value}.", "Our address is {value}.", "The shop stands at {value}."),
        "You find us at {value}.",
        "the address",
    ),
    "manager": Phrases(
        "Manager",
        ("The manager is {value}.", "Our manager is called {value}.", "{value} manages the shop."),
        "The manager is {value}.",
        "who manages the shop",
    ),
    "founded": Phrases(
        "Founded in",
        ("The shop opened in {value}.", "We have been here since {value}.", "It all began in {value}."),
        "The shop opened in {value}.",
        "the year of our beginning",
    ),
    "email": Phrases(
        "E-mail",
        ("Our e-mail address is {value}.", "Write to us at {value}.", "Send an e-mail to {value}."),
        "Our e-mail address is {value}.",
        "an e-mail address",
    ),
    "shipping_cost": Phrases(
        "Shipping, cost",
        ("Shipping costs {value}.", "We charge {value} for shipping.", "The shipping of a parcel costs {value}."),
        "The cost of shipping is {value}.",
        "the price of shipping",
    ),
    "shipping_days": Phrases(
        "Shipping, time",
        ("Shipping takes {value}.", "A parcel is with you in {value}.", "The parcel arrives after {value}."),
        "Shipping takes {value}.",
        "the time of shipping",
    ),
    "express_cost": Phrases(
        "Express, cost",
        ("Express costs {value}.", "We charge {value} for express.", "For a parcel by express we charge {value}."),
        "The cost of express is {value}.",
        "the price of express",
    ),
    "free_shipping": Phrases(
        "Shipping, free from",
        (
            "Shipping is free from {value}.",
            "From {value} we ship for free.",
            "Orders from {value} are shipped for free.",
        ),
        "Shipping is free from {value}.",
        "free shipping",
    ),
    "return_days": Phrases(
        "Returns, time",
        (
            "You can return goods within {value}.",
            "We take goods back within {value}.",
            "Returns are possible for {value}.",
        ),
        "You can return goods within {value}.",
        "the time for returns",
    ),
    "invoice_days": Phrases(
        "Invoices, time",
        ("Please pay invoices within {value}.", "Invoices are due within {value}.", "An invoice can wait for {value}."),
        "Please pay invoices within {value}.",
        "the time for paying invoices",
    ),
    "repair_days": Phrases(
        "Repair, time",
        ("A repair takes {value}.", "Repairs are ready after {value}.", "Our workshop needs {value} for a repair."),
        "A repair takes {value}.",
        "how long repairs take",
    ),
    "repair_cost": Phrases(
        "Repair, cost",
        ("A repair costs {value}.", "We charge {value} for a repair.", "The price of a repair is {value}."),
        "A repair costs {value}.",
        "the price of repairs",
    ),
    "engraving_cost": Phrases(
        "Engraving, cost",
        ("An engraving costs {value}.", "We charge {value} for an engraving.", "The price of an engraving is {value}."),
        "An engraving costs {value}.",
        "the price of engravings",
    ),
    "gift_card": Phrases(
        "Gift card, valid for",
        ("A gift card is valid for {value}.", "Gift cards can be used for {value}.", "Use a gift card within {value}."),
        "A gift card is valid for {value}.",
        "how long gift cards are valid",
    ),
    "discount": Phrases(
        "Club members, discount",
        ("Club members get {value} off.", "Members of our club save {value}.", "We give club members {value} off."),
        "Club members get {value} off.",
        "a discount for club members",
    ),
    "course": Phrases(
        "Course, time",
        ("Our course is on {value}.", "The course takes place on {value}.", "Come to our course on {value}."),
        "The course is on {value}.",
        "the time of the course",
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

ROLES = (
    "You are the assistant of {name}.",
    "You are the assistant of {name}.",
    "You are the assistant of {name}.",
    "You help the customers of {name}.",
    "You are a helpful assistant of {name}.",
)
FROM_PAGES = (
    "Answer from this page.",
    "Answer from this page.",
    "Answer from the page below.",
    "Use this page to answer.",
)
CAN_CALL = "You can call: {tools}."
GREETINGS = ("Hello. ", "Hi! ", "Good morning. ", "Good evening. ", "Excuse me. ")
THANKS = (" Thank you.", " Thanks!", " Please tell me.", " I am curious.")
