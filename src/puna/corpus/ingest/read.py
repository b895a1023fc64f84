"""The results of a reader for a record: a row in Puna's schema with notes for the report, or a reason."""

from typing import NamedTuple

from puna.data.document import Document
from puna.data.preference import Preference
from puna.formats.chat.conversation import Conversation

Row = Document | Conversation | Preference


class Accepted(NamedTuple):
    """A row with notes for the report.

    `spelling` names how the record was written, `descriptive` the columns that became metadata, `left_out` the fields
    that the prompt format has no room for. `place` is the file and line of the record, and becomes the id where
    other rows share the id by right.

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
    """The name of a record that cannot be used, and the reason.

    Example:
        >>> Rejected("train.jsonl:3", "a line is not JSON").name
        'train.jsonl:3'
    """

    name: str
    reason: str


Read = Accepted | Rejected
