"""Walk an artifact back to the raw documents it was made from, and say what has changed since."""

from pathlib import Path

from rich.console import Console
from rich.tree import Tree

from puna import artifact
from puna.errors import ArtifactError


def trace(path: Path) -> dict[str, object]:
    """Nest an artifact's origins: {path, kind, stage, key, hash, licences, state, inputs: {role: ...}}.

    `state` is "held" (content as recorded), "changed" or "missing", seen from the artifact that read it.
    """
    manifest = artifact.read_manifest(path)
    return {
        "path": str(path),
        "kind": manifest.kind,
        "stage": manifest.stage,
        "key": manifest.key,
        "hash": manifest.content_hash,
        "licences": manifest.licences,
        "created": manifest.created,
        "state": "held",
        "receipts": [{"claim": r.claim, "value": r.value, "held": r.held} for r in artifact.read_receipts(path)],
        "inputs": {role: _origin(path, entry) for role, entry in manifest.inputs.items()},
    }


def print_lineage(path: Path, console: Console) -> None:
    """Print the origins of `path` as a tree, the artifact first, raw files as leaves."""
    node = trace(path)
    console.print(_grow(Tree(_label("", node)), node))


def _origin(artifact_path: Path, entry: dict[str, str]) -> dict[str, object]:
    source = (artifact_path / entry["path"]).resolve()
    shown = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source
    try:
        found = artifact.content_hash(source)
    except ArtifactError:
        return {
            "path": str(shown),
            "kind": entry["kind"],
            "hash": entry["hash"],
            "state": "missing",
            "inputs": {},
        }
    state = "held" if found == entry["hash"] else "changed"
    if artifact.is_artifact(source):
        return {**trace(shown), "hash": entry["hash"], "state": state}
    return {"path": str(shown), "kind": "raw", "hash": entry["hash"], "state": state, "inputs": {}}


def _label(role: str, node: dict[str, object]) -> str:
    mark = {"held": "", "changed": " [red]changed since[/red]", "missing": " [red]missing[/red]"}[str(node["state"])]
    made = f" by {node['stage']}" if "stage" in node else ""
    name = f"{role}: " if role else ""
    return f"{name}[bold]{node['path']}[/bold] ({node['kind']}{made}, {str(node['hash'])[:12]}){mark}"


def _grow(tree: Tree, node: dict[str, object]) -> Tree:
    inputs = node["inputs"]
    assert isinstance(inputs, dict)
    for role, child in inputs.items():
        _grow(tree.add(_label(role, child)), child)
    return tree
