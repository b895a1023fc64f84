"""A table of licences and their duties; names, texts and notices -> ids of licences.

Ids are the names of the Hugging Face hub. No text here is legal advice.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"
OWN = "own"

MAX_CHARACTERS = 100_000  # largest part of a text to read
# Number of words at the beginning of a text that contain the title or the typical phrases.
OPENING_WORDS = 300
TEXT_NAME = re.compile(r"(licen[cs]e|copying)(-[\w.-]+)?(\.(txt|md|rst))?", re.IGNORECASE)
NOTICE_NAME = re.compile(r"notice(\.(txt|md))?", re.IGNORECASE)
POLICY_NAME = re.compile(r"use_policy(\.\w+)?", re.IGNORECASE)
NAME_STARTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")  # usual spellings


@dataclass(frozen=True)
class Licence:
    """A licence with its duties.

    Attributes:
        id: Name on the Hugging Face hub: "llama3.1".
        opening: Pattern in the first lines of the text; matched in lower case, with no punctuation but "." and "-".
        duties: One sentence per duty of the licensee.
        name_prefix: Required beginning of the names of derived models.
        is_restrictive: Whether derived models must keep the licence.

    Example:
        >>> LICENCES["llama3.1"].allows_name("Llama-Acme-1B")
        True
    """

    id: str
    title: str
    url: str = ""
    opening: str = ""
    other_names: tuple[str, ...] = ()
    duties: tuple[str, ...] = ()
    name_prefix: str = ""
    badge: str = ""
    notice: str = ""
    policy_url: str = ""
    is_restrictive: bool = False
    is_noncommercial: bool = False
    needs_credit: bool = False

    @property
    def needs_text(self) -> bool:
        """Whether a copy of the agreement must accompany the model."""
        return bool(self.notice)

    def allows_name(self, name: str) -> bool:
        """Return whether a derived model may have the name: "Llama-Acme-1B", but not "Llamazing"."""
        follows = r"(?![a-z0-9])" if self.name_prefix[-1:].isdigit() else r"(?![a-z])"
        return not self.name_prefix or re.match(re.escape(self.name_prefix) + follows, name) is not None


def _llama(version: str, *, brand: str = "Llama", mark: str = "Llama", more_duties: tuple[str, ...] = ()) -> Licence:
    version_path, product = f"llama{version.replace('.', '_')}", f"{brand} {version}"
    name = mark.removeprefix("Meta ")
    return Licence(
        id=f"llama{version}",
        title=f"{product} Community License",
        url=f"https://www.llama.com/{version_path}/license/",
        opening=rf"^{product.lower()} community license agreement".replace(".", r"\."),
        other_names=(f"llama-{version}", f"{product} Community License Agreement"),
        duties=(
            "Hand on a copy of the agreement with the model.",
            f'Show "Built with {mark}" prominently where the model is offered: website, interface or documentation.',
            f'Let the name of the model, and of any model trained on it or on what it writes, begin with "{name}".',
            "Keep the notice line of Meta in the file NOTICE.",
            "Follow the acceptable use policy, and the law.",
            "Whoever had more than 700 million users a month when the version came out needs a licence of their own.",
            *more_duties,
        ),
        name_prefix=name.replace(" ", "-"),
        badge=f"Built with {mark}",
        notice=f"{product} is licensed under the {product} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        policy_url=f"https://www.llama.com/{version_path}/use-policy",
        is_restrictive=True,
    )


def _cc(kind: str, code: str, *, duties: tuple[str, ...] = (), is_noncommercial: bool = False) -> Licence:
    """Return a Creative Commons licence 4.0 with attribution."""
    words = kind.lower()
    return Licence(
        id=f"cc-{code}-4.0",
        title=f"Creative Commons {kind} 4.0",
        url=f"https://creativecommons.org/licenses/{code}/4.0/",
        opening=rf"(?<![-\w]){words} 4\.0 international",
        other_names=(f"Creative Commons {kind} 4.0 International", f"{kind} 4.0 International"),
        duties=("Name the authors, link the licence and say that the material was changed.", *duties),
        is_restrictive=bool(duties),
        is_noncommercial=is_noncommercial,
        needs_credit=True,
    )


KEEP_COPYRIGHT = "Keep the copyright notice and the text of the licence with what contains the material."
SHARE_ALIKE = "What is adapted from the material may be passed on only under the same licence."
NO_COMMERCE = "No commercial use."

# In order of precedence: the first restrictive licence that a model inherits governs its release.
TABLE = (
    _llama("3.3"),
    _llama("3.2"),
    _llama("3.1"),
    _llama(
        "3",
        brand="Meta Llama",
        mark="Meta Llama 3",
        more_duties=("Improve no language model with it or its output but Llama 3 and what is made of Llama 3.",),
    ),
    _cc("Attribution-NonCommercial-ShareAlike", "by-nc-sa", duties=(NO_COMMERCE, SHARE_ALIKE), is_noncommercial=True),
    _cc("Attribution-NonCommercial", "by-nc", duties=(NO_COMMERCE,), is_noncommercial=True),
    _cc("Attribution-ShareAlike", "by-sa", duties=(SHARE_ALIKE,)),
    _cc("Attribution", "by"),
    Licence(
        "apache-2.0",
        "Apache License 2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        opening=r"apache license( |-)version 2\.0",
        other_names=("Apache License, Version 2.0", "Apache 2", "Apache-2"),
        duties=("Keep the text of the licence and its NOTICE with what contains the material; say what was changed.",),
    ),
    Licence(
        "mit",
        "MIT License",
        "https://opensource.org/license/mit",
        opening=r"^(the )?mit license|permission is hereby granted free of charge to any person obtaining a copy",
        other_names=("The MIT License",),
        duties=(KEEP_COPYRIGHT,),
    ),
    Licence(
        "bsd-3-clause",
        "BSD 3-Clause License",
        "https://opensource.org/license/bsd-3-clause",
        opening=r"bsd 3-clause license|redistribution and use in source and binary forms.*neither the name",
        other_names=("BSD-3", "New BSD License"),
        duties=(KEEP_COPYRIGHT, "Do not advertise with the names of the authors."),
    ),
    Licence(
        "cc0-1.0",
        "Creative Commons Zero 1.0",
        "https://creativecommons.org/publicdomain/zero/1.0/",
        opening=r"cc0 1\.0 universal",
        other_names=("CC0", "CC0 1.0 Universal", "public domain"),
        duties=(),
    ),
    Licence(OWN, "no terms of others", other_names=("proprietary", "private", "in-house")),
)  # fmt: skip
LICENCES = {licence.id: licence for licence in TABLE}


def identify(name: str) -> str:
    """Return the id of a licence by any usual name; unknown names are returned unchanged.

    Example:
        >>> identify("CC BY 4.0"), identify("Apache-2.0")
        ('cc-by-4.0', 'apache-2.0')
    """
    return _IDS.get(_squashed(name), name.strip())


def badges(ids: Container[str]) -> list[str]:
    """Return the texts to show prominently beside a model under these licences: "Built with Llama"."""
    return list(dict.fromkeys(each.badge for each in TABLE if each.badge and each.id in ids))


def recognize(path: Path) -> set[str]:
    """Return the ids of licences beside a raw folder or file: from texts, notices, and the front matter of README.md.

    Texts and names outside of the table give "unknown"; a folder without any gives an empty set.
    """
    ids_found: set[str] = set()
    for folder in folders_of(path):
        ids_found |= {each for _, ids in read_texts(folder) for each in ids} | _front_matter(folder / "README.md")
        for text in read_notices(folder):
            words = _words(text)
            ids_found.update(each.id for each in TABLE if each.notice and _words(each.notice) in words)
            ids_found.update(
                each.id for each in TABLE if _words(f"material under the {each.title} ({each.id})") in words
            )
    return ids_found


def folders_of(path: Path) -> list[Path]:
    """Return the folders with the terms of a raw folder or file; for Meta's `original/` also the parent folder."""
    folder = path if path.is_dir() else path.parent
    return [folder, folder.parent] if folder.name == "original" else [folder]


def read_texts(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield the licence files of a folder by name, with the ids of the recognized licences, or {"unknown"}."""
    for file in _named(folder, TEXT_NAME):
        words = " ".join(_words(_head(file)).split()[:OPENING_WORDS])
        yield file, {each.id for each in TABLE if _is_about(words, each)} or {UNKNOWN}


def read_notices(folder: Path) -> list[str]:
    """Return the texts of the NOTICE files of a folder."""
    return [_head(file) for file in _named(folder, NOTICE_NAME)]


def _is_about(words: str, licence: Licence) -> bool:
    """Return whether a text is the licence, or names the licence where naming is enough."""
    named = not licence.needs_text and f"released under the {_words(licence.title)}" in words
    return named or bool(licence.opening and re.search(licence.opening, words))


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if pattern.fullmatch(file.name) and file.is_file())
    except OSError:  # a missing or unreadable folder has no licence files
        return []


def _head(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.read(MAX_CHARACTERS)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w.-]", " ", text.lower()).split())


def _front_matter(readme: Path) -> set[str]:
    """Return ids from `license` and `license_name` in the YAML front matter of a model or dataset card."""
    if not readme.is_file():
        return set()
    head = re.match(r"---\n(.*?)\n---", _head(readme), re.DOTALL)
    names: list[str] = []
    for values in re.findall(r"^license(?:_name)?:(.*(?:\n *- .*)*)", head.group(1) if head else "", re.MULTILINE):
        names += re.findall(r"[^\s,\[\]'\"-][^\n,\[\]'\"]*", values)
    ids = {identify(name) for name in names if name.strip().lower() != "other"}
    known = ids & LICENCES.keys() - {OWN}  # "own" in a card of others is not the user's own
    return known | ({UNKNOWN} if (names and not known) or ids - known else set())


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


_IDS = {_squashed(name): each.id for each in TABLE for name in (each.id, each.title, *each.other_names)}
