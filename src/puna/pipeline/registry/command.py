"""The verbs `puna promote` and `puna rollback`: change the release in use of a registry."""

from pathlib import Path

from puna.pipeline.registry import registry as registries


def promote(release: Path, /, *, to: Path) -> None:
    """Put a release with a passed gate into use.

    Parameters
    ----------
    release
        Artifact of 'puna release' with a passed gate.
    to
        Folder of the registry, created if missing; 'puna serve' takes the folder in place of a checkpoint.
    """
    before = registries.read_history(to)
    change = registries.promote(release, to)
    if before and before[-1] == change:
        print(f"{change.release} is in use already")
        return
    print(f"{change.release} is in use" + (f", in place of {before[-1].release}" if before else ""))
    if before:
        print(f"The way back: puna rollback {to}")


def rollback(registry: Path, /, *, to: str = "") -> None:
    """Put the previous release back into use, after verifying every file.

    Parameters
    ----------
    registry
        Folder that releases were promoted into.
    to
        Name of an earlier release; default: the release before the current one.
    """
    before = registries.read_history(registry)
    change = registries.roll_back(registry, to)
    print(f"{change.release} is in use again, in place of {before[-1].release}")
    print("A running server keeps the loaded release: restart the server.")
