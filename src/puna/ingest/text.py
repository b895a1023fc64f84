"""A Markdown or text file -> one document; its language is the name of its folder where that is a language code."""

from collections.abc import Iterator
from pathlib import Path

from puna.data.document import Document

LANGUAGES = {"de", "en", "es", "fr", "hi", "it", "pt", "th"}


def read_text(path: Path, source: str) -> Iterator[Document | tuple[str, str]]:
    """Yield the file as a document, or the reason why it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        yield source, f"not UTF-8: byte {error.start}"
        return
    except OSError as error:
        yield source, f"unreadable: {error.strerror}"
        return
    if not text:
        yield source, "empty"
        return
    language = path.parent.name if path.parent.name in LANGUAGES else ""
    yield Document(text=text, id=source, source=source, language=language)
