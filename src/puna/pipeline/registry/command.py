"""The verbs `puna promote` and `puna rollback`: which release is in use. What they change is on the shelf alone."""

from pathlib import Path

from puna.pipeline.registry import registry as registries


def promote(release: Path, /, *, to: Path) -> None:
    """Put a release that passed the gate into use.

    Parameters
    ----------
    release
        What 'puna release' wrote.
    to
        The folder that keeps the releases and says which is in use; `puna serve` takes it in place of a checkpoint.
    """
    before = registries.read_history(to)
    change = registries.promote(release, to)
    if before and before[-1] == change:
        print(f"{change.release} is in use already")
        return
    print(f"{change.release} is in use" + (f", in place of {before[-1].release}" if before else ""))
    if before:
        print(f"The way back: puna rollback {to}")


def rollback(shelf: Path, /, *, to: str = "") -> None:
    """Put the release before back into use, once it is verified.

    Parameters
    ----------
    shelf
        The folder that releases were promoted into.
    to
        An earlier release by its name, instead of the one before.
    """
    before = registries.read_history(shelf)
    change = registries.roll_back(shelf, to)
    print(f"{change.release} is in use again, in place of {before[-1].release}")
    print("A server that runs goes on with what it has loaded: start it again.")
