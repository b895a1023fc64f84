"""An evaluation's answers -> labels of a person: the verb `puna review`, a page in the browser on this machine."""

import getpass
import os
import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from puna.evaluation.review.label_file import LabelFile
from puna.evaluation.review.pairs import Pair, choose_names, read_pairs
from puna.evaluation.review.sample import draw_sample, plan_sample
from puna.evaluation.review.server import ReviewServer
from puna.evaluation.review.session import Session
from puna.evaluation.review.summary import describe, describe_blind, next_command
from puna.evaluation.scores import read_evaluation
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError
from puna.pipeline.progress import printable


def review(
    evaluation: Path,
    /,
    *,
    checkpoints: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    margin: float = 0.05,
    max_pairs: int | None = None,
    unjudged_only: Annotated[bool, Parameter(negative="")] = False,
    reviewer: str = "",
    out: Path = Path("labels.jsonl"),
    port: int = 8322,
    browser: bool = True,
    seed: int = 0,
) -> None:
    """Judge answers of an evaluation by hand: blind, two side by side, with the keyboard alone.

    Parameters
    ----------
    evaluation
        The directory that 'puna evaluate' wrote.
    checkpoints
        Names of the two checkpoints to compare, or of one to judge alone; by default the evaluation's first and last.
    margin
        Wanted half-width of the 95 % interval of the difference, 0 to 1. Smaller margins take more pairs; 0 takes all.
    max_pairs
        Largest number of pairs to judge; the margin is then wider.
    unjudged_only
        Leave out the questions whose answers a rule judged.
    reviewer
        Name that the labels carry; by default the name of this account.
    out
        File of labels. An existing file is continued.
    port
        Port on 127.0.0.1; 0 takes a free one.
    browser
        Open the page in the browser.
    seed
        Seed of the sample and of the left-right order.
    """
    _require_bounds(margin, max_pairs, port, out)
    names = choose_names(list(read_evaluation(evaluation, "review").checkpoints), checkpoints or [])
    pairs = _read(evaluation, names, unjudged_only=unjudged_only)
    plan = plan_sample(pairs, margin, max_pairs)
    file = LabelFile(out)
    try:
        session = Session(draw_sample(pairs, plan.num_pairs, seed), file, reviewer or _account(), seed)
        print(printable(_opening(session, names, len(pairs), plan.margin)))
        _serve(ReviewServer(session, partial(describe_blind, session, names, len(pairs)), port=port), browser)
    finally:
        file.close()
    command = next_command(evaluation, artifact.read_manifest(evaluation), out)
    print("", *describe(session, pairs, names), f"Labels: {out}", f"Next: {command}", sep="\n")


def _require_bounds(margin: float, max_pairs: int | None, port: int, out: Path) -> None:
    if not 0 <= margin < 1:
        raise ConfigError(f"--margin {margin}", expected="a share from 0 to below 1: 0.05 is 5 points")
    if max_pairs is not None and max_pairs < 1:
        raise ConfigError(f"--max-pairs {max_pairs}", expected="1 or more")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}", expected="0 to 65535")
    if any(artifact.is_artifact(folder) for folder in out.absolute().parents):
        raise ConfigError(
            f"--out {out} lies in an artifact", expected="a file outside of artifacts, which never change"
        )


def _read(evaluation: Path, names: tuple[str, ...], *, unjudged_only: bool) -> list[Pair]:
    """Read the pairs to judge; ConfigError without any."""
    pairs = read_pairs(evaluation, names)
    if unjudged_only:
        pairs = [pair for pair in pairs if not pair.is_judged_by_rule]
        if not pairs:
            hint = "Leave --unjudged-only out to check the rules themselves"
            raise ConfigError(f"--unjudged-only: rules judged all answers of {evaluation}", hint=hint)
    if len(names) == 2 and all(len(pair.answers) == 1 for pair in pairs):
        hint = f"--checkpoints {names[1]} judges the answers of one checkpoint"
        raise ConfigError(f"{names[0]} and {names[1]} gave the same {len(pairs):,} answers", hint=hint)
    return pairs


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigError("this account has no name", expected="--reviewer NAME") from None


def _opening(session: Session, names: tuple[str, ...], total: int, margin: float) -> str:
    what = f"answers of {names[0]}" if len(names) == 1 else f"{names[0]} against {names[1]}"
    minutes = max(1, round(session.seconds_left / 60))
    resumed = f", {session.num_resumed} of them judged before" if session.num_resumed else ""
    margin_told = f", for a margin of {100 * margin:.2g} points" if margin else ""
    size = f"{len(session.sample):,} of {total:,} pairs{margin_told}{resumed}"
    return f"{what}, judged by {session.reviewer}\n{size}, about {minutes} minute{'' if minutes == 1 else 's'}"


def _serve(server: ReviewServer, is_opened: bool) -> None:
    """Serve until the reviewer ends the review in the page, or with Ctrl-C."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"Open {server.url} and press ? for the keys; Ctrl-C ends", flush=True)
    # Without a display the module would start a text browser in this terminal.
    has_display = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if is_opened and has_display:
        webbrowser.open(server.url)
    try:
        server.finished.wait()
    except KeyboardInterrupt:
        print()
    finally:
        server.end()
