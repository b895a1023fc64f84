"""Result of a reader for a record: an accepted row with notes for the report, or a rejection."""

from typing import NamedTuple

from puna.data.document import Document
from puna.data.preference import Preference
from puna.formats.chat.conversation import Conversation

Row = Document | Conversation | Preference


class Accepted(NamedTuple):
    """A row with notes for the report.

    Attributes:
        spelling: Layout of the record, such as "ShareGPT".
        descriptive: Columns that became metadata.
        left_out: Fields without a place in the prompt format.
        place: File and line of the record; replaces a shared id if `may_share_id`.

    Example:
        >>> Accepted(Document("A page.", "page.md")).spelling
        ''
    """

    row: Row
    spelling: str = ""
    descriptive: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()
    place: str = ""
    may_share_id: bool = False


class Rejected(NamedTuple):
    """A rejected record: name and reason.

    Example:
        >>> Rejected("train.jsonl:3", "a line is not JSON").name
        'train.jsonl:3'
    """

    name: str
    reason: str


Read = Accepted | Rejected
