"""The command line: a verb -> the stage, tool or server behind it. Only the module of the verb is imported."""

import argparse
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from puna import __version__
from puna.pipeline import offline
from puna.pipeline.errors import ConfigError, PunaError
from puna.pipeline.progress import printable
from puna.pipeline.run import ranks
from puna.pipeline.stages import STAGES, Stage
from puna.pipeline.storage.faults import explain

FACES = (
    ("chat", "puna.agents.command:chat", "Talk with a checkpoint in the terminal"),
    ("serve", "puna.serving.serve:serve", "Serve a checkpoint through an OpenAI-compatible API, with a chat page"),
    (
        "review",
        "puna.evaluation.review.review:review",
        "Judge answers of an evaluation by hand, blind and side by side",
    ),
    ("plan", "puna.planning.plan.plan:plan", "Compute memory, speed and cost of a run in advance"),
    ("promote", "puna.pipeline.registry.command:promote", "Put a release with a passed gate into use"),
    ("rollback", "puna.pipeline.registry.command:rollback", "Put the previous release back into use"),
    ("doctor", "puna.planning.doctor.command:doctor", "Find faults in the files of a model, with remedies"),
)

OFFLINE = "--offline"  # with any verb
APP_FLAGS = ("--help", "-h", "--version")
INTERRUPTED = 130  # what shells expect after Ctrl-C


def main() -> None:
    """Run the command line; errors of the user or the system become a message and exit status 1."""
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default torch's idle threads spin for milliseconds, where the kernels should run: decoding lost 15 %.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Torch's large tensors in large pages: a training step takes 10 to 25 % less processor time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.formatwarning = lambda message, *_, **__: f"puna: {message}\n"
    arguments = [argument for argument in sys.argv[1:] if argument != OFFLINE]
    try:
        if OFFLINE in sys.argv:
            offline.enforce()
        app = build_app(arguments)
        app(_current_flags(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        sys.exit(f"puna: {_usage_error(error, arguments[0])}")
    except PunaError as error:
        message = printable(str(error))
        sys.exit(f"puna: {message}" if ranks()[0] == 0 else f"puna, process {ranks()[0]}: {message}")
    except KeyboardInterrupt:
        print("puna: interrupted; the same command resumes where this one stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        sys.exit(1)
    except OSError as error:
        sys.exit(f"puna: {explain(error)}")


def build_app(arguments: list[str]) -> App:
    """Build the parser for these arguments; only the stage named by the arguments is imported."""
    app = App(
        name="puna",
        help="Raise your own Llama, from documents to a served model. --offline blocks the network for any verb.",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    app.command(raise_, name="raise")
    for verb, target, summary in FACES:
        app.command(target, name=verb, help=summary)
    app.command(lineage)
    verb = arguments[0] if arguments else ""
    verbs = ["raise", "lineage", *(face[0] for face in FACES), *(stage.verb for stage in STAGES)]
    if verb.startswith("-") and verb not in APP_FLAGS:
        known = ", ".join((*APP_FLAGS, OFFLINE))
        hint = _suggestion(verb, [OFFLINE]) or f"What belongs to a verb stands after it: puna VERB {verb}"
        raise ConfigError(f"'{verb}' before the verb", expected=f"a verb, or {known}", hint=hint)
    if verb and verb not in verbs and verb not in APP_FLAGS:
        raise ConfigError(f"unknown verb '{verb}'", expected=", ".join(verbs), hint=_suggestion(verb, verbs))
    for stage in STAGES:
        if stage.verb == verb:
            app.command(_stage_command(stage), name=verb, help=_stage_help(stage))
            app.config = (_file_values(stage, arguments[1:]),)
        else:
            app.command(_not_imported, name=stage.verb, help=stage.summary)
    return app


def raise_(
    recipe: Path,
    /,
    *settings: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    until: str = "",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    ignore_receipts: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Run all steps of a recipe in order; reuse up-to-date artifacts and resume interrupted steps.

    Parameters
    ----------
    recipe
        TOML file with one table per step.
    out
        Directory for the artifacts; overrides `out` of the recipe.
    until
        Name of the last step to run: distill, or sft.teacher.
    dry_run
        Run and write nothing: print the steps to run, time, memory, and settings that do not fit the data.
    as_json
        Print the dry run as JSON.
    ignore_receipts
        Continue after a failed receipt.
    settings
        Settings of steps, as --STEP.KEY VALUE (--ingest.source DIR); flags override the file.
    """
    from dataclasses import replace

    from rich.console import Console

    from puna.pipeline.execution import walk
    from puna.pipeline.execution.recipe import Recipe, override

    plan = override(Recipe.read(recipe), dict(_pairs(settings)))
    plan = replace(plan, out=out) if out else plan
    if as_json and not dry_run:
        raise ConfigError(
            "--json without --dry-run", expected="--dry-run beside --json", hint="Only the dry run prints JSON"
        )
    if dry_run:
        walk.dry_run(plan, Console(), until=until, is_json=as_json)
        return
    walk.raise_recipe(plan, Console(quiet=ranks()[0] > 0), ignore_receipts=ignore_receipts, until=until)


def lineage(path: Path, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Print the lineage of an artifact, back to the raw documents.

    Parameters
    ----------
    path
        Directory of an artifact, or of a registry: then the release in use.
    as_json
        Print JSON instead of a tree.
    """
    from rich.console import Console

    from puna.pipeline.artifacts.lineage import print_lineage, trace
    from puna.pipeline.registry.registry import follow

    if as_json:
        print(json.dumps(trace(follow(path)), indent=2))
    else:
        print_lineage(follow(path), Console())


def _stage_help(stage: Stage) -> str:
    reads = f" Reads: {', '.join(dict.fromkeys(stage.reads))}." if stage.reads else ""
    return f"{stage.summary}.{reads} Writes: {' or '.join(stage.writes)}."


def _stage_command(stage: Stage) -> Callable[..., None]:
    from puna.pipeline.config import parse_config
    from puna.pipeline.execution.recipe import config_class

    settings_class = config_class(stage)

    def command(
        *,
        out: Path,
        settings: Any = None,
        config: Path | None = None,
        table: str = stage.verb,
        ignore_receipts: bool = False,
        preview_only: bool = False,
    ) -> None:
        from rich.console import Console

        from puna.pipeline.execution.executor import perform, preview

        chosen = settings or parse_config(settings_class, {}, where=stage.verb)
        if preview_only:
            print(f"{preview(stage, chosen, out, Console())} holds this preview; nothing was trained")
            return
        done = perform(stage, chosen, out, Console(), ignore_receipts=ignore_receipts)
        if ranks()[0] == 0:
            print(out if done else f"{out} is up to date: made from the same settings and inputs")

    command.__annotations__["settings"] = Annotated[settings_class | None, Parameter(name="*")]
    command.__annotations__["ignore_receipts"] = Annotated[
        bool, Parameter(negative="", help="Continue after a failed receipt.")
    ]
    shows = "Print the training data, memory and time of the run, without training."
    command.__annotations__["preview_only"] = Annotated[
        bool, Parameter(negative="", help=shows) if settings_class.has_preview else Parameter(parse=False)
    ]
    command.__annotations__["out"] = Annotated[Path, Parameter(help="Directory of the new artifact.")]
    command.__annotations__["config"] = Annotated[
        Path | None, Parameter(help="Recipe with a table of settings for this stage; flags override the table.")
    ]
    command.__annotations__["table"] = Annotated[
        str, Parameter(help="Name of the table in the recipe, such as sft.teacher.")
    ]
    return command


def _file_values(stage: Stage, arguments: list[str]) -> cyclopts.config.Dict:
    """Read the recipe table named by --config and --table; flags override the values."""
    from puna.pipeline.execution.recipe import Recipe, resolve

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--table", default=stage.verb)
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    if known.config is None:
        return cyclopts.config.Dict({})
    recipe = Recipe.read(known.config)
    steps = {step.name: step for step in recipe.steps if step.stage == stage}
    if known.table not in steps:
        raise ConfigError(
            f"{known.config} has no table [{known.table}]", expected=", ".join(steps) or f"[{stage.verb}]"
        )
    values = resolve(steps[known.table], recipe)
    return cyclopts.config.Dict({stage.verb: values}, source=f"{known.config} [{known.table}]")


def _current_flags(arguments: list[str]) -> list[str]:
    """Replace former names of settings among the flags of a stage: `--context 512` becomes `--max-length 512`."""
    stage = next((stage for stage in STAGES if stage.verb == arguments[0]), None) if arguments else None
    if stage is None:
        return arguments
    from puna.pipeline.config import former_names, warn_of_former_name
    from puna.pipeline.execution.recipe import config_class

    flags = {f"--{old}": f"--{new.replace('_', '-')}" for old, new in former_names(config_class(stage)).items()}
    current: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in flags:
            warn_of_former_name(flag, flags[flag])
        current.append(f"{flags.get(flag, flag)}{equals}{value}")
    return current


def _usage_error(error: CycloptsError, verb: str) -> str:
    """Describe invalid flags of a verb with the messages for recipe tables."""
    from pydantic import ValidationError

    from puna.pipeline.config import explain
    from puna.pipeline.execution.recipe import config_class

    for stage in STAGES:
        if stage.verb == verb and isinstance(error.__cause__, ValidationError):
            return str(explain(error.__cause__, config_class(stage), where=verb))
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"'{error.unused_tokens[0]}' after {verb}; expected flags, each with its value. See puna {verb} --help"
    text = str(error).rstrip(".").removesuffix("?.")
    return f"{text}{'' if text.endswith('?') else '.'} See puna {verb} --help"


def _not_imported() -> None:
    raise AssertionError("the verb that runs is always imported")


def _suggestion(verb: str, verbs: list[str]) -> str:
    from puna.pipeline.config import suggestion

    return suggestion(verb, verbs)


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of --STEP.KEY VALUE and --STEP.KEY=VALUE; the parser does not know the keys of recipes."""
    rest = iter(tokens)
    for token in rest:
        flag, equals, text = token.partition("=")
        if not flag.startswith("--") or "." not in flag:
            raise ConfigError(f"'{token}' after the recipe", expected="--STEP.KEY VALUE")
        value = text if equals else next(rest, "--")
        if not equals and value.startswith("--"):
            raise ConfigError(f"{flag} without a value", expected=f"{flag} VALUE")
        yield flag.removeprefix("--"), _toml_value(value)


def _toml_value(text: str) -> Any:
    """Parse the value of a flag as TOML (number, boolean, list); dates and invalid TOML stay strings."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | list | dict) else text
