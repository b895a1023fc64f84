"""An artifact -> its lineage back to the raw documents, with changes since."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from puna.pipeline.artifacts import artifact, licence
from puna.pipeline.errors import ArtifactError

# A resolved path -> hash of the present content, or None for damaged content.
Hashes = Callable[[Path], str | None]


def trace(path: Path) -> dict[str, object]:
    """Return the origins of an artifact as nested dicts: {path, kind, stage, key, hash, licences, state, inputs}.

    `inputs` maps roles to the dicts of the inputs. `state` compares the content with the hash in the manifest of the
    artifact above: "held", "changed" or "missing". Every file is hashed again, once per call.

    Example:
        >>> origins = trace(Path("build/shop/sft"))
        >>> origins["stage"], list(origins["inputs"])
        ('sft', ['data.0', 'start'])
    """
    return _trace(path, cache(_hash_now), ())


def _trace(path: Path, hashes: Hashes, above: tuple[Path, ...], recorded: str = "") -> dict[str, object]:
    """Trace an artifact; `above` lists the artifacts made from it, to stop at a forged circle of manifests."""
    above = (*above, path.resolve())
    manifest = artifact.read_manifest(path)
    recorded = recorded or manifest.content_hash
    return {
        "path": str(path),
        "kind": manifest.kind,
        "stage": manifest.stage,
        "key": manifest.key,
        "hash": recorded,
        "licences": manifest.licences,
        "created": manifest.created,
        "state": _state(path, recorded, hashes),
        "receipts": [{"claim": r.claim, "value": r.value, "held": r.held} for r in artifact.read_receipts(path)],
        "inputs": {role: _origin(path, entry, hashes, above) for role, entry in manifest.inputs.items()},
    }


def licences_of(source: Path) -> set[str]:
    """Return the licences that a product of `source` inherits: from a manifest, or from files beside raw data.

    Raw files without a licence are "unknown".
    """
    parent = artifact.find_artifact(source)
    if parent is not None:
        return {licence.identify(name) for name in artifact.read_manifest(parent).licences}
    return licence.recognize(source) or {licence.UNKNOWN}


def print_lineage(path: Path, console: Console) -> None:
    """Print the origins of `path` as a tree: the artifact first, raw files as leaves."""
    for line in _lines("", trace(path)):
        console.print(line, soft_wrap=True)  # keeps paths in one piece on narrow terminals


def _origin(artifact_path: Path, entry: dict[str, str], hashes: Hashes, above: tuple[Path, ...]) -> dict[str, object]:
    source = (artifact_path / entry["path"]).resolve()
    shown = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source
    state = _state(source, entry["hash"], hashes)
    node = {"path": str(shown), "kind": entry["kind"], "hash": entry["hash"], "state": state}
    try:
        parent = artifact.find_artifact(shown)
        if parent and parent.resolve() in above:
            return {**node, "state": "changed", "inputs": {}}
        if parent == shown:
            return _trace(shown, hashes, above, entry["hash"])
        return {**node, "inputs": {"part of": _trace(parent, hashes, above)} if parent else {}}
    except ArtifactError:  # without a readable manifest the origins are unknown
        return {**node, "inputs": {}}


def _state(source: Path, recorded: str, hashes: Hashes) -> str:
    if not source.exists():
        return "missing"
    return "held" if hashes(source.resolve()) == recorded else "changed"


def _hash_now(source: Path) -> str | None:
    try:
        if artifact.is_artifact(source):
            artifact.verify(source)
        return artifact.content_hash(source)
    except ArtifactError:
        return None


def _label(role: str, node: dict[str, object]) -> str:
    mark = {"held": "", "changed": " [red]changed since[/red]", "missing": " [red]missing[/red]"}[str(node["state"])]
    made = f" by {node['stage']}" if "stage" in node else ""
    name = f"{role}: " if role else ""
    return f"{name}[bold]{escape(str(node['path']))}[/bold] ({node['kind']}{made}, {str(node['hash'])[:12]}){mark}"


def _lines(role: str, node: dict[str, object]) -> Iterator[str]:
    yield _label(role, node)
    inputs = node["inputs"]
    assert isinstance(inputs, dict)
    for number, (name, child) in enumerate(inputs.items(), start=1):
        corner, edge = ("└── ", "    ") if number == len(inputs) else ("├── ", "│   ")
        first, *rest = _lines(name, child)
        yield corner + first
        yield from (edge + line for line in rest)
