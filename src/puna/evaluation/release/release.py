"""A checkpoint with scores and lineage -> GO or NO-GO with a decision page, and on GO the model with licences and card.

A NO-GO writes the page and no model; the failed receipt stops later stages. The stage uploads nothing and measures
nothing: the scores come from `puna evaluate`, the receipts from the stages before.
"""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from puna.data.shards import write_jsonl
from puna.evaluation.release.card import model_card
from puna.evaluation.release.decision import Decision
from puna.evaluation.release.facts import Facts, base_of, hub_name, name_of, open_model_of, read_lineage
from puna.evaluation.release.gate import OVERRIDABLE, gather, judge, run_exams
from puna.evaluation.release.overlap.leaks import find_leaks
from puna.evaluation.release.page.page import write_page
from puna.evaluation.release.settings import GateConfig
from puna.evaluation.release.terms import Node, applying, find_texts, governing_licence, notice, origin, statement, walk
from puna.evaluation.scores import Evaluation, ScoreTable, read_evaluation, score_table
from puna.formats.checkpoint.checkpoint import CONFIG_NAME, GENERATION_NAME, Checkpoint
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.safetensors.header import INDEX_NAME, SINGLE_NAME
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.licence import LICENCES, Licence, read_notices
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ArtifactError, ReleaseError
from puna.pipeline.registry.registry import follow
from puna.pipeline.run import Run
from puna.pipeline.storage.files import link_or_copy

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
# Files of a released checkpoint beside the weights; other files in the folder are not released.
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
    """Settings of `puna release`: checkpoint and name, models to compare with, and contents of the model card.

    Example: in a recipe

        [release]
        checkpoint = "@quantize"
        name = "Llama-Acme-1"
        scores = "@evaluate"
        base = "@import"
    """

    checkpoint: Path = Field(description="Directory of the checkpoint to release")
    name: str = Field(description="Name of the release: letters, digits, '.', '_' and '-', at most 96")
    scores: Path | None = Field(
        default=None, description="Evaluation on the task, of the checkpoint and the models to compare with"
    )
    general: Path | None = Field(default=None, description="Evaluation on a general suite, which measures forgetting")
    base: Path | None = Field(
        default=None, description="Checkpoint of the open model that the release was made from and has to surpass"
    )
    start: Path | None = Field(
        default=None, description="Checkpoint of the same network before training on your data, such as a pruned model"
    )
    teacher: Path | None = Field(
        default=None, description="Checkpoint of the teacher; the release may be worse by at most gate.teacher_margin"
    )
    in_use: Path | None = Field(
        default=None,
        description="Model in production to replace: a checkpoint, or a folder of promoted releases",
    )
    gate: GateConfig = Field(default=GateConfig(), description="Thresholds and limits of the release gate")
    override: dict[str, str] = Field(
        default={}, description="Overridden rules with the reason for each override; reports keep the reasons"
    )
    description: str = Field(default="", description="Purpose of the model in a few sentences, for the card")
    author: str = Field(
        default="", description="Person or organization responsible for the model, with contact, for the card"
    )
    languages: list[str] = Field(default=[], description="Intended languages as ISO 639-1 codes, for the card")
    licence: str = Field(default="", description="Licence of the release, if the inherited licences leave a choice")
    credits: list[str] = Field(
        default=[], description="Lines of the NOTICE file that credit authors, as some licences require"
    )
    base_model: str = Field(
        default="", description="Name of the base model on the Hugging Face hub, if the lineage does not tell"
    )
    datasets: list[str] = Field(
        default=[], description="Names of published training data on the Hugging Face hub, for the card"
    )
    licence_files: Path | None = Field(default=None, description="Folder with licence texts that the lineage lacks")
    accepted_terms: list[str] = Field(
        default=[], description="Names of unknown licence terms that you have read and accept"
    )
    allow_name: bool = Field(default=False, description="Whether to allow a name that an inherited licence forbids")
    allow_noncommercial: bool = Field(
        default=False, description="Whether to release although an inherited licence forbids commercial use"
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or "--" in name or ".." in name:
            raise ValueError("at most 96 letters, digits, and single '.', '_' or '-' between them")
        return name

    @field_validator("override")
    @classmethod
    def _overrides_are_rules_with_reasons(cls, override: dict[str, str]) -> dict[str, str]:
        if not all(rule in OVERRIDABLE and reason.strip() for rule, reason in override.items()):
            raise ValueError(f"a reason in words for a rule of {', '.join(OVERRIDABLE)}")
        return override

    @field_validator("in_use")
    @classmethod
    def _in_use_is_followed(cls, path: Path | None) -> Path | None:
        return follow(path) if path else None

    def stated_licence(self) -> str:
        """Return `licence`."""
        return self.licence

    def made_of(self) -> dict[str, Path]:
        """Return the inputs whose licences the release inherits: the checkpoint, but no scores or compared models."""
        return {"checkpoint": self.checkpoint}

    def requires_receipts(self) -> bool:
        """Return False: the gate judges all receipts of the lineage, and a failed receipt still leads to a page."""
        return False


def run(config: Config, run: Run) -> None:
    """Write decision.md, decision.html and release.json; on GO also the checkpoint, licences and model card."""
    tree = read_lineage(config.checkpoint)
    inherited = licences_of(config.checkpoint)
    exceptions, licence_reasons = _judge_licences(config, inherited, tree)
    governing = governing_licence(inherited, config.licence)
    folders = [Path(step.node["path"]) for step in walk(tree)]
    texts: dict[str, Path] = {}
    try:
        texts = find_texts([*folders, *filter(None, [config.licence_files])], inherited, governing)
    except ReleaseError as error:
        licence_reasons.append(str(error))
    suites = {"task": ("scores", config.scores), "general": ("general", config.general)}
    evaluations = {suite: read_evaluation(path, setting) for suite, (setting, path) in suites.items() if path}
    # NOTE: hashing takes minutes for a large model, and happens only here.
    contents = {role: artifact.content_hash(path) for role, path in _compared(config).items()}
    facts = Facts(
        name=config.name,
        checkpoint=Checkpoint.open(config.checkpoint),
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
        scores=score_table(evaluations.get("task"), contents["candidate"]),
        general=score_table(evaluations.get("general"), contents["candidate"]),
    )
    decision = _decide(config, facts, evaluations, contents, licence_reasons)
    write_page(decision, facts, run.output)
    run.records |= {"decision.md", "decision.html"}  # both contain measured speeds
    if decision.leaks and decision.leaks.report.found:
        write_jsonl(run.output / "overlaps.jsonl", (each._asdict() for each in decision.leaks.report.found))
    facts = replace(facts, exceptions=[*exceptions, *decision.overrides], decision=decision.headline)
    if decision.is_go:
        _write_model(config, facts, texts, run.output)
    decision.receipt.save(run.output)
    artifact.write_text(
        run.output / "release.json", json.dumps(_record(facts, decision), indent=2, ensure_ascii=False) + "\n"
    )
    _report(facts, decision, run)


def _compared(config: Config) -> dict[str, Path]:
    """Return the checkpoints by role, the candidate first."""
    others = {"start": config.start, "base": config.base, "teacher": config.teacher, "in_use": config.in_use}
    return {"candidate": config.checkpoint, **{role: path for role, path in others.items() if path}}


def _decide(
    config: Config,
    facts: Facts,
    evaluations: dict[str, Evaluation],
    contents: dict[str, str],
    licence_reasons: list[str],
) -> Decision:
    open_model = open_model_of(facts.tree)
    open_roles = [role for role, content in contents.items() if open_model and content in open_model.hashes]
    models, comparisons = gather(evaluations, _compared(config), contents, config.gate, open_roles=open_roles)
    rows = [row for answered in (models[0].task, models[0].general) if answered for row in answered.rows]
    settings = config.gate
    leaks = find_leaks(facts.tree, rows, n=settings.overlap_words, share=settings.overlap_share) if rows else None
    decision = judge(
        config.name,
        settings,
        models,
        comparisons,
        suites=list(evaluations),
        exams=run_exams(evaluations, models[0], config.gate),
        receipts=facts.receipts,
        leaks=leaks,
        licence_reasons=licence_reasons,
        overrides=config.override,
        missing_open_model=open_model.name if open_model and not open_roles else "",
    )
    if base := base_of(facts.tree):
        learned = f"the data that {name_of(base['path'])} was trained on before the import"
        unseen = f"Test questions in {learned}."
        return replace(decision, unmeasured=[*decision.unmeasured, unseen])
    return decision


def _judge_licences(config: Config, inherited: set[str], tree: Node) -> tuple[list[str], list[str]]:
    """Return the exceptions that the user allowed, and the obstacles by licences."""
    exceptions: list[str] = []
    refused: list[ReleaseError] = []
    for id in sorted(inherited - LICENCES.keys()):
        if id in config.accepted_terms:
            exceptions.append(f"The terms '{id}' were accepted as read.")
        else:
            refused.append(_unknown_terms(id, tree))
    for each in applying(inherited):
        if not each.allows_name(config.name):
            if config.allow_name:
                exceptions.append(f"The name does not begin with '{each.name_prefix}', as the {each.title} asks.")
            else:
                refused.append(_forbidden_name(config.name, each, tree))
        if each.is_noncommercial and config.allow_noncommercial:
            exceptions.append(f"Material under the {each.title} is in it: no commercial use.")
        elif each.is_noncommercial:
            given = f"the {each.title}, which comes from {origin(tree, each.id)}, forbids commercial use"
            hint = "Train without it, or give --allow-noncommercial to release for other uses"
            refused.append(ReleaseError(given, hint=hint))
    return exceptions, list(map(str, refused))


def _unknown_terms(id: str, tree: Node) -> ReleaseError:
    return ReleaseError(
        f"the terms '{id}' come from {origin(tree, id)}",
        expected=f"terms that are known ({', '.join(LICENCES)})",
        hint="State `licence` at the stage that reads it ('own' for data of your own), add a LICENSE to the "
        "raw folder, or name these terms in accepted_terms once you have read them",
    )


def _forbidden_name(name: str, licence: Licence, tree: Node) -> ReleaseError:
    return ReleaseError(
        f"name = '{name}', but the model inherits the {licence.title} from {origin(tree, licence.id)}",
        expected=f"a name that begins with '{licence.name_prefix}', as in '{licence.name_prefix}-{name}'",
        hint="--allow-name overrides this, and is recorded",
    )


def _write_model(config: Config, facts: Facts, texts: dict[str, Path], output: Path) -> None:
    """Write the checkpoint, the texts that the licences require, and the card."""
    _copy_checkpoint(config.checkpoint, output)
    for name, file in texts.items():
        shutil.copyfile(file, output / name)
    if "LICENSE" not in texts:
        artifact.write_text(output / "LICENSE", statement(config.name, facts.governing, config.author))
    notices = [text for step in walk(facts.tree) for text in read_notices(Path(step.node["path"]))]
    artifact.write_text(output / "NOTICE", notice(config.name, facts.inherited, config.credits, notices))
    artifact.write_text(output / "README.md", model_card(replace(facts, checkpoint=_opened(output))))


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Link or copy the known files of a checkpoint, and the receipts."""
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
    link_or_copy(source, target)
    if not target.samefile(source) and artifact.hash_file(source) != artifact.hash_file(target):
        raise ArtifactError(
            f"{target} differs from {source}", expected="an exact copy", hint="Check the disk, and release again"
        )


def _opened(path: Path) -> Checkpoint:
    """Open the written checkpoint and tokenizer, as a user would."""
    checkpoint = Checkpoint.open(path)
    checkpoint.tokenizer()
    return checkpoint


def _record(facts: Facts, decision: Decision) -> dict[str, Any]:
    """Return the content of release.json: the facts of the card for programs, without paths of this machine."""
    return {
        "name": facts.name,
        "gate": decision.to_json(),
        "licence": facts.governing.id,
        "inherited": sorted(facts.inherited),
        "badges": facts.badges,
        "files": facts.texts if decision.is_go else [],
        "exceptions": facts.exceptions,
        "base_model": facts.base_model,
        "languages": facts.languages,
        "receipts": [{"of": name, **asdict(receipt)} for name, receipt in facts.receipts],
        "scores": _recorded(facts.scores),
        "general": _recorded(facts.general),
        "lineage": _without_paths(facts.tree),
    }


def _recorded(scores: ScoreTable | None) -> dict[str, Any] | None:
    return {"name": scores.name, "tasks": scores.evaluation.tasks, **scores.slices} if scores else None


def _without_paths(node: Node) -> Node:
    fields = {key: node[key] for key in ("kind", "stage", "hash", "licences", "state") if key in node}
    inputs = {role: _without_paths(each) for role, each in node["inputs"].items()}
    return {"name": name_of(node["path"]), **fields, "inputs": inputs}


def _report(facts: Facts, decision: Decision, run: Run) -> None:
    run.log(decision.headline)
    for line in facts.exceptions:
        run.log(f"exception: {line}")
    if not decision.is_go:
        for hint in decision.hints:
            run.log(f"what to do: {hint}")
        run.log("the page is decision.html; no model was written")
        return
    run.log(f"{facts.name}: {facts.governing.title}; with {', '.join(facts.texts)}")
    uncredited = [each.title for each in applying(facts.inherited) if each.needs_credit and not facts.credits]
    for title in uncredited:
        run.log(f"the {title} requires credits: name the authors in the setting `credits`")
    run.log("to deploy: puna promote RELEASE --to FOLDER, then serve the folder")
