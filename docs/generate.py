"""Generate the pages that repeat the code: `python docs/generate.py` writes the sources of the site into build/docs.

Generated from the package: the CLI reference (parsers of all verbs), the settings reference (settings classes of all
stages), a page for each recipe, and docs/internals/architecture.md (floors and stage table). The architecture page is
also kept in the repository, for readers without the site; a test tells when it is out of date.
"""

import ast
import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from puna.cli import FACES, build_app
from puna.pipeline.execution.recipe import config_class
from puna.pipeline.stages import KINDS, STAGES

Floors = dict[str, tuple[set[str], ...]]

ROOT = Path(__file__).parents[1]
DOCS, PACKAGE = ROOT / "docs", ROOT / "src" / "puna"
OUT = ROOT / "build" / "docs"
VERBS = ["raise", *(stage.verb for stage in STAGES), "lineage", *(face[0] for face in FACES)]
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
TYPES = {"str": "text", "bool": "true or false", "int": "integer", "float": "number", "Path": "path"}
RANGE = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}

PATH_OF_DATA = """\
raw files          imaginary worlds                 open Llama
    │ ingest             │ synthesize                   │ import
    └──────────┬─────────┘                              │
            dataset ─ tokenizer                         │
               │                                        │
               ├─ pretrain, sft, dpo, reward ───────────┤
               │                                        ▼
               │                    teacher: checkpoint, or adapter ─ merge ─ checkpoint
               │                          │ label               │ prune
               │                          ▼                     ▼
               │                       labels           smaller checkpoint
               │                          └──────────┬──────────┘
               │                                     │ distill
               │                                     ▼
               │                            student: checkpoint
               │                                     │ quantize
               │                                     ▼
               └─ held-out questions ─ evaluate ─ scores ─ release ─┬─ promote ─ serve, chat
                        │                       (GO or NO-GO)       └─ export: GGUF, Meta, Ollama
                        └─ answer ─ dataset: the next round
"""


def main() -> None:
    """Write the architecture page into the repository and every page of the site into build/docs."""
    (DOCS / "internals" / "architecture.md").write_text(architecture(), encoding="utf-8")
    write_site(OUT)
    print(f"{OUT.relative_to(ROOT)} holds {len(list(OUT.rglob('*.md')))} pages; next: zensical build")


def write_site(folder: Path) -> None:
    """Write every page and picture of the site into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in site().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for picture in DOCS.rglob("*.svg"):
        shutil.copy(picture, folder / picture.relative_to(DOCS))


def site() -> dict[str, str]:
    """Return every page of the site by path: {"reference/cli.md": text}."""
    places = {path: path.relative_to(DOCS) for path in DOCS.rglob("*.md")}
    places |= {
        ROOT / name: Path("internals") / name.lower() for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
    }
    places |= {ROOT / "findings" / "README.md": Path("internals/findings.md")}
    recipes = {path: Path("reference/recipes") / f"{path.stem}.md" for path in (ROOT / "recipes").glob("*.toml")}
    pages = {place.as_posix(): moved(path, places | recipes) for path, place in places.items() if path.exists()}
    for path, place in recipes.items():
        pages[place.as_posix()] = f"# {path.name}\n\n```toml\n{path.read_text(encoding='utf-8')}```\n"
    return pages | {
        "reference/cli.md": cli(),
        "reference/settings.md": settings(),
        "internals/architecture.md": architecture(),
    }


def moved(page: Path, places: dict[Path, Path]) -> str:
    """Return a page with its links as they are in the site; a link to a file outside the site becomes plain text."""

    def relink(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target:
            return match[0]
        path = (page.parent / target).resolve()
        if path not in places and not path.is_relative_to(DOCS):
            return text
        place = places[path] if path in places else path.relative_to(DOCS)
        return f"[{text}]({os.path.relpath(place, places[page].parent)}{anchor})"

    return LINK.sub(relink, page.read_text(encoding="utf-8"))


def cli() -> str:
    """Return the page of all verbs with their flags."""
    lines = [
        "# Command line",
        "",
        "Every verb with its arguments, as `puna VERB --help` prints them. `--offline` keeps any verb off the network.",
        "A stage's settings are flags as well (`--optim.lr 1e-4`); [settings](settings.md) lists all of them.",
    ]
    summaries = {stage.verb: stage.summary for stage in STAGES} | {verb: summary for verb, _, summary in FACES}
    stages = {stage.verb: config_class(stage) for stage in STAGES}
    for verb in VERBS:
        command = build_app([verb])[verb]
        summary = summaries.get(verb) or command.help.splitlines()[0]
        lines += ["", f"## puna {verb}", "", f"{summary.rstrip('.')}.", ""]
        if verb in stages:
            lines += [f"Settings: [`[{verb}]`](settings.md#{verb}).", ""]
        lines += ["| argument | type | default | effect |", "|---|---|---|---|"]
        lines += list(flags(command, set(stages[verb].model_fields) if verb in stages else set()))
    return "\n".join(lines) + "\n"


def flags(command: Any, settings_of_stage: set[str]) -> Iterator[str]:
    """Yield the rows of a verb's flags, without the settings of a stage."""
    for argument in command.assemble_argument_collection(parse_docstring=True):
        name = argument.names[0]
        key = name.removeprefix("--").split(".")[0].replace("-", "_")
        if name == "*" or key in settings_of_stage or argument.parameter.parse is False:
            continue
        default = "required" if argument.required else value(argument.field_info.default)
        yield row(f"`{name}`", type_name(argument.hint), default, argument.parameter.help or "")


def settings() -> str:
    """Return the page of all settings of all stages."""
    lines = [
        "# Settings",
        "",
        "A table of a recipe holds the settings of one stage; the same names are flags of `puna STAGE`. An",
        "unknown name or a value out of range is an error before anything runs.",
    ]
    for stage in STAGES:
        lines += [
            "",
            f"## {stage.verb}",
            "",
            f"{stage.summary.rstrip('.')}: {kinds(stage.reads)} → {kinds(stage.writes)}.",
            "",
        ]
        lines += ["| setting | type | default | range | effect |", "|---|---|---|---|---|"]
        lines += list(fields(config_class(stage), ""))
    return "\n".join(lines) + "\n"


def fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the rows of a settings class, sub-tables below their table."""
    for name, field in model.model_fields.items():
        limits = ", ".join(
            f"{sign} {getattr(limit, key)}"
            for limit in field.metadata
            for key, sign in RANGE.items()
            if hasattr(limit, key)
        )
        yield row(f"`{prefix}{name}`", type_name(field.annotation), default_of(field), limits, field.description or "")
        for part in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(part) and issubclass(part, BaseModel):
                yield from fields(part, f"{prefix}{name}.")


def default_of(field: FieldInfo) -> str:
    """Return the default of a setting as TOML would spell it."""
    return "required" if field.is_required() else value(field.get_default(call_default_factory=True))


def value(default: Any) -> str:
    """Spell a default value; an empty one and a table with defaults of its own stay blank."""
    if (
        default is None
        or default in ("", [], (), {})
        or default is PydanticUndefined
        or default is inspect.Parameter.empty
    ):
        return ""
    if isinstance(default, BaseModel) or hasattr(default, "__dataclass_fields__"):
        return "see below"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default.value if isinstance(default, Enum) else default}`"


def type_name(annotation: Any) -> str:
    """Spell a type for readers: Path -> path, `Literal["a", "b"]` -> `a`, `b`."""
    options = get_args(annotation)
    if inspect.isclass(annotation) and not options:
        return "table" if issubclass(annotation, BaseModel) else TYPES.get(annotation.__name__, annotation.__name__)
    name = getattr(getattr(annotation, "__origin__", None), "__name__", "")
    if name in ("list", "tuple"):
        return f"list of {type_name(options[0])}"
    if name == "dict":
        return "table"
    if "Literal" in str(annotation) and not any("Literal" in str(option) for option in options):
        return ", ".join(f"`{option}`" for option in options)
    if "Annotated" in str(annotation) and hasattr(annotation, "__metadata__"):
        return type_name(options[0])
    return " or ".join(dict.fromkeys(type_name(option) for option in options if option is not NoneType)) or "text"


def row(*cells: str) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def architecture() -> str:
    """Return the page of the architecture: path of the data, stages, rooms and their floors."""
    sys.path.insert(0, str(ROOT / "tests" / "package"))
    from floors import FLOORS

    lines = [
        "# Architecture",
        "",
        "Generated by `docs/generate.py` from the stage table (`src/puna/pipeline/stages.py`), the floors",
        "(`tests/package/floors.py`) and the first line of every module.",
        "",
        "## The path of the data",
        "",
        "Every word below is a directory; each one but the raw files has a manifest. Every labelled line is a stage,",
        "which reads artifacts and writes one artifact. Stages meet only through artifacts, so each stage can be",
        "rerun, resumed, cached and replaced alone.",
        "",
        "```text",
        PATH_OF_DATA + "```",
        *stage_tables(),
        *room_table(FLOORS),
        *folder_tables(FLOORS),
    ]
    return "\n".join(lines) + "\n"


def stage_tables() -> Iterator[str]:
    """Yield the lines of the section on stages and kinds of artifacts."""
    yield from (
        "",
        "## The stages",
        "",
        "A verb is a module, a table of a recipe, a test file and a page of these docs.",
        "",
        "| stage | reads | writes | does | code |",
        "|---|---|---|---|---|",
    )
    for stage in STAGES:
        page = f"[{stage.verb}](../stages/{stage.verb}.md)"
        yield row(page, kinds(stage.reads), kinds(stage.writes), stage.summary, f"`{stage.file}.py`")
    yield from ("", "| kind of artifact | holds |", "|---|---|")
    yield from (row(kind, text) for kind, text in KINDS.items())


def room_table(floors: Floors) -> Iterator[str]:
    """Yield the lines of the section on the rooms, from the top floor to the ground."""
    yield from (
        "",
        "## The rooms",
        "",
        "The package has a folder for each thing a user comes for, and `cli.py`. Imports point downward: a room",
        "imports rooms of the floors below its own; `tests/package/test_architecture.py` checks every import. From the",
        "top to the ground:",
        "",
        "| floor | room | holds |",
        "|---:|---|---|",
    )
    for level, room in from_the_top(floors[""]):
        yield row(str(level), f"[`{room}`](#{room})" if room in floors else f"`{room}`", caption(PACKAGE / room))


def folder_tables(floors: Floors) -> Iterator[str]:
    """Yield the lines of the section on files and folders inside the rooms."""
    yield from (
        "",
        "## Inside the rooms",
        "",
        "Files and folders of a room have floors of their own, here from the top down. Folders without floors are",
        "lists in alphabetic order; no files of a folder import one another in a circle.",
    )
    folders = sorted({path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")} - {"."})
    for _, room in from_the_top(floors[""]):
        for folder in (folder for folder in folders if folder.split("/")[0] == room):
            yield from ("", f"{'#' * (3 + folder.count('/'))} {folder}", "")
            if folder in floors:
                yield from ("| floor | entry | holds |", "|---:|---|---|")
                for level, name in from_the_top(floors[folder]):
                    yield row(str(level), *entry(PACKAGE / folder / name))
            else:
                yield from ("| entry | holds |", "|---|---|")
                paths = {path.with_suffix("") for path in (PACKAGE / folder).iterdir() if path.suffix == ".py"}
                paths |= {path.parent for path in (PACKAGE / folder).glob("*/__init__.py")}
                yield from (row(*entry(path)) for path in sorted(paths) if path.name != "__init__")


def from_the_top(floors: tuple[set[str], ...]) -> list[tuple[int, str]]:
    """Return the entries of a folder with their floors, the highest floor first, each floor in alphabetic order."""
    return [(level, name) for level, names in reversed([*enumerate(floors)]) for name in sorted(names)]


def entry(path: Path) -> tuple[str, str]:
    """Return the name of a file or folder, and the first line of the docstring."""
    return f"`{path.name}{'/' if path.is_dir() else '.py'}`", caption(path)


def kinds(names: tuple[str, ...]) -> str:
    """Spell the kinds of artifacts that a stage reads or writes."""
    return ", ".join(dict.fromkeys(names)) or "nothing"


def caption(path: Path) -> str:
    """Return the first sentence of the docstring of a module or folder."""
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return "Files of a web page."
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = docstring.split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[a-z)`\"])\. (?=[A-Z])", first)[0].rstrip(".") + "."


if __name__ == "__main__":
    main()
