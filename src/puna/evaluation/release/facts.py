"""Directory, lineage and scores of a checkpoint -> facts for the model card and release.json. The gate decides."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from puna.evaluation.release.terms import Node, Step, walk
from puna.evaluation.scores import ScoreTable
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.artifacts.licence import Licence, badges
from puna.pipeline.artifacts.lineage import trace
from puna.pipeline.errors import ArtifactError
from puna.pipeline.storage.records import read_record

MODELS = ("checkpoint", "release")
BASE_ROLES = ("checkpoint", "start", "base", "source")  # merge: the adapter is the source, the changed model the base
DATASETS = ("dataset", "labels")
DATA_ROLES = ("data", "validation", "calibration", "labels")  # roles of raw files that a stage reads as a dataset
# Inputs of a release that only the gate reads: they are no part of the model.
JUDGED_BY = ("scores", "general", "base", "start", "teacher", "in_use")


@dataclass(frozen=True)
class Facts:
    """All facts about a release.

    Attributes:
        name: Name of the release.
        checkpoint: The released checkpoint.
        tree: Lineage of the checkpoint.
        inherited: Ids of the inherited licences.
        governing: Licence of the release.
        description, author, languages, datasets, credits, base_model: Settings for the card.
        texts: Names of the licence files in the release.
        exceptions: Sentences about allowed exceptions and overrides.
        scores: Scores on the task; None without an evaluation.
        general: Scores on the general suite; None without an evaluation.
        decision: Headline of the decision.

    Example: see `model_card`.
    """

    name: str
    checkpoint: Checkpoint
    tree: Node
    inherited: set[str]
    governing: Licence
    description: str = ""
    author: str = ""
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    credits: list[str] = field(default_factory=list)
    base_model: str = ""
    texts: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    scores: ScoreTable | None = None
    general: ScoreTable | None = None
    decision: str = ""

    @property
    def badges(self) -> list[str]:
        """Texts that licences require on a prominent place: "Built with Llama"."""
        return badges(self.inherited)

    @cached_property
    def receipts(self) -> list[tuple[str, Receipt]]:
        """Receipts of the whole lineage, with the name of the artifact."""
        paths = dict.fromkeys(Path(step.node["path"]) for step in walk(self.tree) if "stage" in step.node)
        return [(path.name, receipt) for path in paths for receipt in artifact.read_receipts(path)]

    @property
    def not_held(self) -> list[str]:
        """Names of changed or missing inputs in the lineage."""
        paths = {step.node["path"]: step.node["state"] for step in walk(self.tree)}
        return [name_of(path) for path, state in paths.items() if state != "held"]


def read_lineage(checkpoint: Path) -> Node:
    """Trace a checkpoint to its origins; a folder without a manifest is a raw leaf."""
    if artifact.is_artifact(checkpoint):
        return _without_judges(trace(checkpoint))
    kind, key = "raw", artifact.content_hash(checkpoint)
    return {"path": str(checkpoint), "kind": kind, "hash": key, "state": "held", "inputs": {}}


def _without_judges(node: Node) -> Node:
    judges = JUDGED_BY if node.get("stage") == "release" else ()
    inputs = {role: _without_judges(each) for role, each in node["inputs"].items() if role not in judges}
    return {**node, "inputs": inputs}


def _parent_of(node: Node) -> Node | None:
    """Return the input that the weights of a node come from; None for a model from scratch."""
    below = (node["inputs"].get(role) for role in BASE_ROLES)
    return next((each for each in below if each and each["kind"] in (*MODELS, "raw")), None)


def base_of(tree: Node) -> Node | None:
    """Follow the weights of a checkpoint back to the raw base model; None for a model from scratch."""
    node = tree
    while node["kind"] in MODELS:
        parent = _parent_of(node)
        if parent is None:
            return node if hub_origin(node).name else None
        node = parent
    return node


class HubOrigin(NamedTuple):
    """A repository of the Hugging Face hub, "ORG/NAME", with the commit; both "" for other origins.

    Example:
        >>> HubOrigin("meta-llama/Llama-3.2-1B", "0a1b2c").name
        'meta-llama/Llama-3.2-1B'
    """

    name: str = ""
    commit: str = ""


@dataclass(frozen=True)
class _Origin:
    """Fields of origin.json in a release."""

    hub: str
    commit: str


def hub_origin(node: Node) -> HubOrigin:
    """Return the hub repository of an imported model; ArtifactError for an unreadable origin.json."""
    if node.get("stage") != "import":
        return HubOrigin()
    path, expected = Path(node["path"]) / "origin.json", "the origin as 'import' writes it"
    try:
        origin = read_record(path, _Origin, expected=expected)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist", expected=expected) from None
    return HubOrigin(origin.hub, origin.commit)


def hub_name(node: Node | None) -> str:
    """Return "ORG/NAME" of a model from the hub or from the hub's cache; "" for other models."""
    if node and (name := hub_origin(node).name):
        return name
    for part in Path(node["path"]).parts if node else ():
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    return ""


class OpenModel(NamedTuple):
    """The published model that a candidate was made from; `hashes` are the content hashes of all forms in the lineage.

    Example:
        >>> OpenModel("meta-llama/Llama-3.2-1B", frozenset({"sha256:0a1b"})).name
        'meta-llama/Llama-3.2-1B'
    """

    name: str
    hashes: frozenset[str]


def open_model_of(tree: Node) -> OpenModel | None:
    """Return the published model at the root of a lineage; None for a model from scratch.

    An imported model has two forms in the lineage, the original files and the imported checkpoint.
    """
    node = tree
    while node["kind"] in MODELS:
        if is_border(node):
            origins = list(node["inputs"].values())
            name = hub_name(node) or name_of(origins[0]["path"])
            return OpenModel(name, frozenset(each["hash"] for each in (node, *origins)))
        parent = _parent_of(node)
        if parent is None:
            return None
        node = parent
    return None if node is tree else OpenModel(hub_name(node) or name_of(node["path"]), frozenset([node["hash"]]))


def is_border(node: Node) -> bool:
    """Tell whether a node imports a model from outside: published files or a release, not a stage's own output.

    Example:
        >>> is_border({"stage": "import", "inputs": {"source": {"stage": None}}})
        True
    """
    origins = node["inputs"].values()
    return node.get("stage") == "import" and all(each.get("stage") in (None, "release") for each in origins)


def datasets_read(tree: Node) -> dict[str, list[Step]]:
    """Group the edges of a lineage that lead to data, by the path of the data: {path: steps with reader and role}."""
    steps: dict[str, list[Step]] = {}
    for step in walk(tree):
        is_raw_data = step.node["kind"] == "raw" and step.role.split(".")[0] in DATA_ROLES
        if step.node["kind"] in DATASETS or is_raw_data:
            steps.setdefault(step.node["path"], []).append(step)
    return steps


def count_rows(path: Path) -> dict[str, int]:
    """Count the lines of a dataset's JSONL shards: {"documents": 38}; Parquet and missing files do not count."""
    counts: dict[str, int] = {}
    for kind in ("documents", "conversations"):
        for file in path.glob(f"{kind}*.jsonl") if path.is_dir() else ():
            with file.open("rb") as lines:
                counts[kind] = counts.get(kind, 0) + sum(1 for _ in lines)
    return counts


def receipt_rows(facts: Facts) -> list[list[str]]:
    """Return a row per receipt: step, claim, value, limit, and "yes" or "no" for held."""
    return [
        [name, receipt.claim, f"{receipt.value:.4g}", receipt.limit, "yes" if receipt.held else "no"]
        for name, receipt in facts.receipts
    ]


def data_rows(tree: Node) -> list[list[str]]:
    """Return a row per dataset: name, documents, conversations, licences, readers with roles, hash."""
    rows: list[list[str]] = []
    for path, steps in datasets_read(tree).items():
        node = steps[0].node
        counts = count_rows(Path(path))
        readers = {f"{name_of(step.reader['path'])} ({step.role.split('.')[0]})": None for step in steps if step.reader}
        numbers = [f"{counts[kind]:,}" if kind in counts else "" for kind in ("documents", "conversations")]
        terms = ", ".join(node.get("licences", [])) or ("unknown" if node["kind"] == "raw" else "none of others")
        rows.append([name_of(path), *numbers, terms, ", ".join(readers), node["hash"][:12]])
    return rows


def tree_lines(tree: Node) -> list[str]:
    """Draw a lineage as a tree, the artifact first; a repeated artifact has branches only once."""
    return list(_tree_lines("", tree, set()))


def _tree_lines(role: str, node: Node, seen: set[str]) -> Iterator[str]:
    mark = {"held": "", "changed": ", changed since", "missing": ", gone since"}[node["state"]]
    made = f" by {node['stage']}" if "stage" in node else ""
    is_known = node["path"] in seen and bool(node["inputs"])
    seen.add(node["path"])
    name = f"{role}: " if role else ""
    yield f"{name}{name_of(node['path'])} ({node['kind']}{made}, {node['hash'][:12]}{mark}{', as above' * is_known})"
    inputs = {} if is_known else node["inputs"]
    for number, (child_role, child) in enumerate(inputs.items(), start=1):
        corner, edge = ("└── ", "    ") if number == len(inputs) else ("├── ", "│   ")
        first, *rest = _tree_lines(child_role, child, seen)
        yield corner + first
        yield from (edge + line for line in rest)


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings of an artifact, without paths, lists and empty settings: {"optim.lr": 0.001}."""
    manifest = artifact.read_manifest(path)
    flat: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, item)
        elif not (value is None or isinstance(value, list) or prefix in manifest.inputs):
            flat[prefix] = value

    flatten("", manifest.config)
    return flat


def name_of(path: str) -> str:
    """Return the last part of a path; reports reveal no folders of the machine."""
    return Path(path).name
