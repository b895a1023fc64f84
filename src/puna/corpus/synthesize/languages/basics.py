"""The shape of the basics in one language: greetings, opening hours, phone, price, e-mail, refusals.

The data are in european.py and others.py.
"""

from typing import NamedTuple


class Said(NamedTuple):
    """Ways to say one thing, the reply, and what a right reply contains.

    Example:
        >>> Said(("Hola",), "Hola, soy el asistente de {name}.", ("{name}",)).said[0]
        'Hola'
    """

    said: tuple[str, ...]
    reply: str
    needles: tuple[str, ...]


class Basics(NamedTuple):
    """One language. Keys of the tables: hours, closed, phone, price, email.

    Example:
        >>> LANGUAGES["de"].days[0]
        'Montag'
    """

    role: str
    title: str
    days: tuple[str, ...]  # Monday to Sunday
    week: str  # the label of Monday to Friday
    span: str  # "{a} to {b}"
    closed: str
    closed_needle: str  # what every answer about a closed day contains
    labels: dict[str, str]
    sentences: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]
    answers: dict[str, str]
    not_said: str  # what every refusal contains
    refusals: tuple[str, ...]
    off_topic: tuple[str, ...]
    talk: dict[str, Said]
