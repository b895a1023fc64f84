"""A checkpoint, its scores and its lineage -> a directory that may be handed on: weights, licences, model card.

Refuses names and terms that the inherited licences do not allow. Sends nothing anywhere, and measures nothing itself.
"""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from puna import artifact
from puna.checkpoint.checkpoint import CONFIG_NAME, GENERATION_NAME, Checkpoint
from puna.checkpoint.directory import find_file, read_json
from puna.checkpoint.layout import INDEX_NAME, SINGLE_NAME
from puna.config import StageConfig
from puna.errors import ArtifactError, ReleaseError
from puna.licence import LICENCES, read_notices
from puna.lineage import licences_of
from puna.release.card import model_card
from puna.release.facts import Facts, base_of, hub_name, name_of, read_lineage, read_scores
from puna.release.terms import Node, applying, find_texts, governing_licence, notice, origin, statement, walk
from puna.run import Run

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
# What a released checkpoint consists of beside its weights; anything else in the folder stays behind.
FILES = (
    CONFIG_NAME,
    GENERATION_NAME,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class Config(StageConfig):
    """What to release, under which name, and what its card says that no artifact knows."""

    checkpoint: Path = Field(description="the model to release")
    name: str = Field(description="its name: letters, digits, '.', '_' and '-'")
    scores: Path | None = Field(default=None, description="an evaluation in which it was asked")
    description: str = Field(default="", description="what it is for, in a few sentences")
    author: str = Field(default="", description="who answers for it, and how to be reached")
    languages: list[str] = Field(default=[], description="that it is meant for, as codes of ISO 639-1")
    licence: str = Field(default="", description="terms of the release, where those inherited leave the choice")
    credits: list[str] = Field(default=[], description="lines for NOTICE: authors whose licences ask to be named")
    base_model: str = Field(default="", description="the base model's name on the hub, if its path does not tell")
    datasets: list[str] = Field(default=[], description="names on the hub of published data that it was trained on")
    licence_files: Path | None = Field(default=None, description="folder with agreements that the lineage lacks")
    accepted_terms: list[str] = Field(default=[], description="terms without a known licence that you have read")
    allow_name: bool = Field(default=False, description="release under a name that an inherited licence forbids")
    allow_noncommercial: bool = Field(default=False, description="release although commercial use is forbidden")

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or "--" in name or ".." in name:
            raise ValueError("at most 96 letters, digits, and single '.', '_' or '-' between them")
        return name

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences the release inherits: scores are about it, not in it."""
        return {"checkpoint": self.checkpoint}


def run(config: Config, run: Run) -> None:
    """Write the checkpoint with LICENSE, NOTICE, README.md (the card) and release.json; ReleaseError if it may not."""
    tree = read_lineage(config.checkpoint)
    inherited = licences_of(config.checkpoint)
    exceptions = _exceptions(config, inherited, tree)
    governing = governing_licence(inherited, config.licence)
    places = [Path(step.node["path"]) for step in walk(tree)]
    texts = find_texts([*places, *filter(None, [config.licence_files])], inherited, governing)
    scores = read_scores(config.scores, config.checkpoint) if config.scores else None
    _copy_checkpoint(config.checkpoint, run.output)
    for name, file in texts.items():
        shutil.copyfile(file, run.output / name)
    if "LICENSE" not in texts:
        artifact.write_text(run.output / "LICENSE", statement(config.name, governing, config.author))
    notices = [text for place in places for text in read_notices(place)]
    artifact.write_text(run.output / "NOTICE", notice(config.name, inherited, config.credits, notices))
    facts = Facts(
        name=config.name,
        checkpoint=_opened(run.output),
        tree=tree,
        inherited=inherited,
        governing=governing,
        description=config.description,
        author=config.author,
        languages=config.languages,
        datasets=config.datasets,
        credits=config.credits,
        base_model=config.base_model or hub_name(base_of(tree)),
        texts=sorted({"LICENSE", "NOTICE", *texts}),
        exceptions=exceptions,
        scores=scores,
    )
    artifact.write_text(run.output / "README.md", model_card(facts))
    artifact.write_text(run.output / "release.json", json.dumps(_record(facts), indent=2, ensure_ascii=False) + "\n")
    _report(facts, run)


def _exceptions(config: Config, inherited: set[str], tree: Node) -> list[str]:
    """Raise ReleaseError for what the licences do not allow; return what was let through on the user's word."""
    exceptions: list[str] = []
    for id in sorted(inherited - LICENCES.keys()):
        if id not in config.accepted_terms:
            raise ReleaseError(
                f"the terms '{id}' come from {origin(tree, id)}",
                expected=f"terms that are known ({', '.join(LICENCES)})",
                hint="State `licence` at the stage that reads it ('own' for data of your own), add a LICENSE to the "
                "raw folder, or name these terms in accepted_terms once you have read them",
            )
        exceptions.append(f"The terms '{id}' were accepted as read.")
    for each in applying(inherited):
        if not each.allows_name(config.name):
            if not config.allow_name:
                raise ReleaseError(
                    f"name = '{config.name}', but the model inherits the {each.title} from {origin(tree, each.id)}",
                    expected=f"a name that begins with '{each.name_prefix}', as in '{each.name_prefix}-{config.name}'",
                    hint="--allow-name overrides this, and is recorded",
                )
            exceptions.append(f"The name does not begin with '{each.name_prefix}', as the {each.title} asks.")
        if each.is_noncommercial:
            if not config.allow_noncommercial:
                raise ReleaseError(
                    f"the {each.title}, which comes from {origin(tree, each.id)}, forbids commercial use",
                    hint="Train without it, or give --allow-noncommercial to release for other uses",
                )
            exceptions.append(f"Material under the {each.title} is in it: no commercial use.")
    return exceptions


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Link or copy the files of a checkpoint that are known, and its receipts."""
    weights = [SINGLE_NAME]
    if find_file(source, SINGLE_NAME) is None:
        index = find_file(source, INDEX_NAME)
        weights = [INDEX_NAME, *sorted(set(read_json(index)["weight_map"].values()))] if index else []
    for name in (*FILES, *weights):
        file = find_file(source, name)
        if file is not None:
            _link(file, target / name)
    if artifact.is_artifact(source):
        for receipt in artifact.read_receipts(source):
            receipt.save(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
        if artifact.hash_file(source) != artifact.hash_file(target):
            raise ArtifactError(
                f"{source} was not copied as it is", hint="Look at the disk, and release again"
            ) from None


def _opened(path: Path) -> Checkpoint:
    """Open what was written as anyone would, tokenizer included; CheckpointError or TokenizerError if that fails."""
    checkpoint = Checkpoint.open(path)
    checkpoint.tokenizer()
    return checkpoint


def _record(facts: Facts) -> dict[str, Any]:
    """Return what release.json holds: the card's facts for programs, without a path of this machine."""
    scores = facts.scores
    return {
        "name": facts.name,
        "licence": facts.governing.id,
        "inherited": sorted(facts.inherited),
        "badges": facts.badges,
        "files": facts.texts,
        "exceptions": facts.exceptions,
        "base_model": facts.base_model,
        "languages": facts.languages,
        "receipts": [{"of": name, **asdict(receipt)} for name, receipt in facts.receipts],
        "scores": {"name": scores.name, "tasks": scores.tasks, **scores.checkpoints[scores.name]} if scores else None,
        "lineage": _without_paths(facts.tree),
    }


def _without_paths(node: Node) -> Node:
    told = {key: node[key] for key in ("kind", "stage", "hash", "licences", "state") if key in node}
    inputs = {role: _without_paths(each) for role, each in node["inputs"].items()}
    return {"name": name_of(node["path"]), **told, "inputs": inputs}


def _report(facts: Facts, run: Run) -> None:
    run.log(f"{facts.name}: {facts.governing.title}; with {', '.join(facts.texts)}")
    for line in facts.exceptions:
        run.log(f"exception: {line}")
    uncredited = [each.title for each in applying(facts.inherited) if each.needs_credit and not facts.credits]
    for title in uncredited:
        run.log(f"the {title} asks to name the authors: give them as `credits`")
    if facts.scores is None:
        run.log("no scores: the card says that nothing was measured")
