"""Schema of the basics in a language: greetings, opening hours, phone, price, e-mail, refusals.

The data are in european.py and others.py.
"""

from typing import NamedTuple


class Said(NamedTuple):
    """Wordings of a user message, the reply, and the needles of a right reply.

    Example:
        >>> Said(("Hola",), "Hola, soy el asistente de {name}.", ("{name}",)).said[0]
        'Hola'
    """

    said: tuple[str, ...]
    reply: str
    needles: tuple[str, ...]


class Basics(NamedTuple):
    """A language. Keys of the tables: hours, closed, phone, price, email.

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
    closed_needle: str  # in every answer about a closed day
    labels: dict[str, str]
    sentences: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]
    answers: dict[str, str]
    not_said: str  # in every refusal
    refusals: tuple[str, ...]
    off_topic: tuple[str, ...]
    talk: dict[str, Said]
