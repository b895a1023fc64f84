"""A Markdown or text file -> one document. A folder named after a language code gives the language."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from puna.corpus.ingest.results import Accepted, Read, Rejected
from puna.data.document import Document

LANGUAGES = {"de", "en", "es", "fr", "hi", "it", "pt", "th"}
MAX_BYTES = 1 << 30


def read_text(path: Path, source: str) -> Iterator[Read]:
    """Yield the file as a document, or a reason.

    Example:
        (read,) = read_text(Path("en/opening.md"), "en/opening.md")
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        yield Rejected(source, f"unreadable: {error.strerror}")
        return
    if len(data) > MAX_BYTES:
        yield Rejected(source, f"a text of more than {MAX_BYTES >> 30} GiB")
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield Rejected(source, "not UTF-8: UTF-16")
    else:
        yield _document(data, path, source)


def _document(data: bytes, path: Path, source: str) -> Read:
    try:
        # Line ends of Windows and old Macs become \n.
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").strip()
    except UnicodeDecodeError as error:
        return Rejected(source, f"not UTF-8: byte {error.start}")
    if "\0" in text:
        return Rejected(source, f"not a text: a null character at {text.index(chr(0))}")
    if not text:
        return Rejected(source, "empty")
    language = path.parent.name if path.parent.name in LANGUAGES else ""
    return Accepted(Document(text=text, id=source, source=source, language=language))
