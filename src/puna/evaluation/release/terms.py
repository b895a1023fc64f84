"""Inherited licences -> licence of the release, licence texts to ship, and obstacles to a release.

Licence texts are copies of files in the lineage; Puna writes none.
"""

import itertools
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from puna.pipeline.artifacts.licence import LICENCES, OWN, TABLE, UNKNOWN, Licence, folders_of, identify, read_texts
from puna.pipeline.errors import ConfigError, ReleaseError

POLICY = "USE_POLICY.md"

Node = dict[str, Any]


class Step(NamedTuple):
    """An edge of a lineage: `reader` read `node` in the role `role`; the root has neither.

    Example:
        >>> [step.role for step in walk(tree)]
        ['', 'start', 'data.0']
    """

    node: Node
    role: str = ""
    reader: Node | None = None


def walk(tree: Node) -> Iterator[Step]:
    """Yield every edge of a lineage from the root down; the inputs of a repeated artifact follow only once."""
    seen: set[str] = set()

    def below(step: Step) -> Iterator[Step]:
        yield step
        if step.node["path"] not in seen:
            seen.add(step.node["path"])
            for role, node in step.node["inputs"].items():
                yield from below(Step(node, role, step.node))

    yield from below(Step(tree))


def origin(tree: Node, id: str) -> str:
    """Return the path of the first artifact with a licence, and of the artifact's raw inputs."""
    for node, _, _ in walk(tree):
        inputs = list(node["inputs"].values())
        if id in _ids(node) and not any(id in _ids(each) for each in inputs):
            raw = [each["path"] for each in inputs if each["kind"] == "raw"]
            return f"{node['path']}" + (f", made from {', '.join(raw)}" if raw else "")
    return str(tree["path"])


def _ids(node: Node) -> set[str]:
    return {identify(name) for name in node.get("licences", [])}


def applying(inherited: Iterable[str]) -> list[Licence]:
    """Return the known licences among the inherited ids, in order of precedence."""
    ids = set(inherited)
    return [each for each in TABLE if each.id in ids]


def governing_licence(inherited: Iterable[str], stated: str) -> Licence:
    """Choose the licence of the release.

    A restrictive inherited licence comes first, then the stated licence, then a single inherited licence. Otherwise all
    rights are reserved.

    Raises:
        ConfigError: The stated licence is unknown, or an inherited restrictive licence excludes it.
    """
    known = applying(inherited)
    restrictive = [each for each in known if each.is_restrictive]
    if stated:
        chosen = LICENCES.get(identify(stated))
        if chosen is None:
            raise ConfigError(f"licence = '{stated}'", expected=f"one of {', '.join(LICENCES)}")
        if restrictive and chosen not in restrictive:
            raise ConfigError(
                f"licence = '{stated}', but the model inherits {', '.join(each.id for each in restrictive)}",
                expected=restrictive[0].id,
            )
        return chosen
    others = [each for each in known if each.id != OWN]
    return (restrictive or (others if len(others) == len(known) == 1 else [LICENCES[OWN]]))[0]


def find_texts(paths: Iterable[Path], inherited: Iterable[str], governing: Licence) -> dict[str, Path]:
    """Return the licence texts to ship, by file name in the release.

    The governing licence becomes LICENSE, other licences LICENSE-ID, and use policies USE_POLICY.md.

    Raises:
        ReleaseError: A licence requires a text that is not in the lineage.
    """
    licence_ids, texts, contents = set(inherited), dict[str, Path](), set[bytes]()
    licence_ids |= {UNKNOWN} if licence_ids - LICENCES.keys() else set()
    for folder in dict.fromkeys(folder for path in paths for folder in folders_of(path)):
        for file, ids in read_texts(folder):
            content = file.read_bytes()
            if not ids & licence_ids or content in contents:
                continue
            contents.add(content)
            id = next((each.id for each in TABLE if each.id in ids & licence_ids), UNKNOWN)
            is_main = id == governing.id and governing.needs_text
            texts[_free_name("LICENSE" if is_main else f"LICENSE-{id}", texts)] = file
            policy = folder / POLICY
            if policy.is_file() and (id not in LICENCES or LICENCES[id].needs_text):
                texts[POLICY if is_main else f"USE_POLICY-{id}.md"] = policy
    for each in applying(licence_ids):
        if each.needs_text and not ({"LICENSE" if each == governing else f"LICENSE-{each.id}"} & texts.keys()):
            raise ReleaseError(
                f"the text of the {each.title}, which the model inherits, lies nowhere in its lineage",
                expected="a LICENSE file in the folder of the base model",
                hint=f"Put it there, or into a folder of its own and name that as licence_files. It is at {each.url}",
            )
    return texts


def _free_name(name: str, taken: Container[str]) -> str:
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def notice(name: str, inherited: Iterable[str], credits: Iterable[str], notices: Iterable[str]) -> str:
    """Return the NOTICE file: Meta's lines, credits, addresses of licences, and lines of inherited notices."""
    known = applying(inherited)
    blocks = [
        [name],
        [*(each.notice for each in known if each.notice), *credits],
        [f"Made with material under the {each.title} ({each.id}): {each.url}" for each in known if each.url],
        *(text.splitlines() for text in notices),
    ]
    written: set[str] = set()
    paragraphs: list[str] = []
    for block in blocks:
        # Every line but blank lines appears once, also after many releases with the same notice.
        lines = [line for line in block if not line.strip() or line.strip() not in written]
        written.update(line.strip() for line in lines)
        if paragraph := "\n".join(lines).strip("\n"):
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs) + "\n"


def statement(name: str, governing: Licence, author: str) -> str:
    """Return the LICENSE file of a release without a licence text of its own."""
    if governing.id == OWN:
        return f"{name}: all rights reserved{f' by {author}' if author else ''}. No licence has been given.\n"
    owner = f"Copyright {author}\n\n" if author else ""
    return f"{owner}{name} is released under the {governing.title} ({governing.id}).\nIts text: {governing.url}\n"
