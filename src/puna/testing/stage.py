"""Run one stage in this process, as the command line does."""

from pathlib import Path
from typing import Any

from rich.console import Console

from puna.pipeline.config import parse_config
from puna.pipeline.execution.executor import perform
from puna.pipeline.execution.recipe import config_class
from puna.pipeline.stages import STAGES


def perform_stage(verb: str, out: Path, *, ignore_receipts: bool = False, **settings: Any) -> bool:
    """Write the artifact of one stage and print nothing.

    Args:
        verb: Name of the stage in `puna VERB` and in a recipe.
        out: The artifact's directory.
        ignore_receipts: Continue after a failed receipt of an input.
        settings: The stage's settings, as in a table of a recipe.

    Returns:
        False if the directory already held the artifact of the same settings and inputs.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> perform_stage("synthesize", folder / "made", num_worlds=1, seed=1)
        True
    """
    stage = next(stage for stage in STAGES if stage.verb == verb)
    config = parse_config(config_class(stage), settings, where=verb)
    return perform(stage, config, out, Console(quiet=True), ignore_receipts=ignore_receipts)
