"""Text with hashes, UUIDs and snapshot names -> the same text, short enough to read aloud."""

import re

# 12 or more hexadecimal digits, with or without the hyphens of a UUID; a word that is made of letters alone is left.
ID = re.compile(r"(?<![^\W_])(?=[a-f-]*[0-9])[0-9a-f]{8}(?:-?[0-9a-f]){4,}(?![^\W_])", re.IGNORECASE)
SHOWN = 6


def shorten_ids(text: str) -> str:
    """Cut every hash or UUID in a text to its first digits.

    Example:
        >>> shorten_ids("snapshots/0e9e39f249a16976918f6564b8830bc894c89659")
        'snapshots/0e9e39…'
    """
    return ID.sub(lambda match: f"{match[0][:SHOWN]}…", text)
