"""What a user types and what the terminal says: flags win over file over defaults, mistakes get one plain message."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna import __version__, cli
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError
from puna.pipeline.execution import executor
from puna.pipeline.execution.recipe import Recipe, override
from puna.pipeline.stages import STAGES

PAGE = "We open at nine and we close at six. " * 2
SFT = """
[sft.teacher]
data = ["a", "b"]
size = {dim = 16, hidden_dim = 16, num_layers = 1, num_heads = 2, num_kv_heads = 1}
tokenizer = "t"
steps = 5
fresh_identifiers = true
optim.lr = 0.5
optim.clip = 2

[sft.student]
data = ["a"]
init_from = "@sft.teacher"
epochs = 2
"""

PUNA = Path(sys.executable).with_name("puna")

Puna = Callable[..., str]


@pytest.fixture
def puna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Puna:
    """Return a function that runs a command line here and gives its output, or the message it ends with."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["puna", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        print(output.err, end="", file=sys.stderr)
        return str(ended.value.code) if ended.value.code else output.out

    return run


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "one.md").write_text(PAGE)
    return tmp_path / "pages"


@pytest.fixture
def settings_of_sft(puna: Puna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that gives the settings with which `puna sft` would train."""
    (tmp_path / "my.toml").write_text(SFT)
    seen: list[Any] = []
    monkeypatch.setattr(executor, "perform", lambda stage, config, *rest, **options: bool(seen.append(config)) or True)

    def settings(*arguments: object) -> Any:
        output = puna("sft", "--config", tmp_path / "my.toml", "--out", "x", *arguments)
        return seen.pop() if seen else output

    return settings


def test_help_takes_less_than_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([PUNA, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(stage.verb in done.stdout and stage.summary[:20] in done.stdout for stage in STAGES)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_help_of_a_face_imports_neither_torch_nor_transformers():
    faces = [face[0] for face in cli.FACES]
    program = (
        "import contextlib, io, sys\n"
        "from puna.cli import main\n"
        f"for verb in {faces!r}:\n"
        "    sys.argv, shown = ['puna', verb, '--help'], io.StringIO()\n"
        "    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit): main()\n"
        "    assert f'Usage: puna {verb}' in shown.getvalue(), verb\n"
        "    print(verb, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{verb} []" for verb in faces]


def test_no_verb_loads_torchs_compiler_before_it_compiles():
    program = (
        "import sys, puna.agents.terminal, puna.evaluation.evaluate.evaluate, puna.training.sft\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_help_of_a_verb_describes_every_setting(puna: Puna):
    text = re.sub(r"[│\s]+", " ", puna("sft", "--help"))
    assert "--optim.warmup-steps INT Number of steps of linear warm-up to the peak learning rate" in text
    assert "have none [default: 0.1]" in text


def test_settings_come_from_the_file_where_no_flag_is_given(settings_of_sft: Callable[..., Any]):
    config = settings_of_sft("--table", "sft.teacher")
    assert (config.steps, config.optim.lr, config.optim.clip, config.fresh_identifiers) == (5, 0.5, 2.0, True)
    assert config.data == [Path("a"), Path("b")] and config.size.dim == 16 and config.optim.beta1 == 0.9


def test_flags_win_over_the_file(settings_of_sft: Callable[..., Any]):
    flags = ["--optim.lr", "1e-4", "--no-fresh-identifiers", "--size.dim", "32", "--data", "c", "--data=d", "--steps=6"]
    config = settings_of_sft("--table", "sft.teacher", *flags)
    assert (config.steps, config.optim.lr, config.optim.clip, config.fresh_identifiers) == (6, 1e-4, 2.0, False)
    assert config.data == [Path("c"), Path("d")] and (config.size.dim, config.size.hidden_dim) == (32, 16)
    assert settings_of_sft("--table", "sft.teacher", "--size", "demo-student").size == "demo-student"


@pytest.mark.parametrize("flags", [["--context", "64"], ["--context=64"], ["--max-length", "64"]], ids=" ".join)
def test_former_names_of_settings_are_read_with_a_warning(
    settings_of_sft: Callable[..., Any], tmp_path: Path, flags: list[str]
):
    (tmp_path / "my.toml").write_text(SFT.replace("steps = 5", "accumulate = 2\ncontext = 32\nsteps = 5"))
    with pytest.warns(FutureWarning, match="'accumulate' is called 'grad_accumulation' now"):
        config = settings_of_sft("--table", "sft.teacher", *flags)
    assert (config.grad_accumulation, config.max_length) == (2, 64)


def test_both_names_of_a_setting_in_a_recipe_are_a_message_and_no_traceback(tmp_path: Path):
    (tmp_path / "my.toml").write_text(SFT.replace("steps = 5", "max_length = 32\ncontext = 32\nsteps = 5"))
    with pytest.raises(ConfigError, match=r"in \[sft.teacher\]; expected one of 'max_length' and 'context'"):
        Recipe.read(tmp_path / "my.toml")


def test_former_names_override_settings_of_a_recipe_with_a_warning(tmp_path: Path):
    (tmp_path / "my.toml").write_text(SFT)
    recipe = Recipe.read(tmp_path / "my.toml")
    with pytest.warns(FutureWarning, match="'context' is called 'max_length' now"):
        changed = override(recipe, {"sft.teacher.context": 64})
    assert changed.steps[0].table["max_length"] == 64
    with pytest.warns(FutureWarning), pytest.raises(ConfigError, match="two names of a setting"):
        override(recipe, {"sft.teacher.max_length": 32, "sft.teacher.context": 64})


def test_a_reference_in_the_file_is_a_path_for_one_stage_too(settings_of_sft: Callable[..., Any]):
    assert settings_of_sft("--table=sft.student").init_from == Path("build/my/sft.teacher")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "five"], "[sft] steps = 'five'; expected a valid integer"),
        (["--steps", "1.5"], "[sft] steps = '1.5'; expected a valid integer"),
        (["--optim.lr", "nan"], "[sft] optim.lr = 'nan'; expected a finite number"),
        (["--optim.lr", "2"], "[sft] optim.lr = '2'; expected less than or equal to 1"),
        (["--epochs", "2"], "expected exactly one of 'steps' and 'epochs'"),
        (["--init-from", "x"], "expected exactly one of 'init_from' (a checkpoint) and 'size' (from scratch)"),
        (["--max-length", "8192", "--batch-tokens", "4096"], "batch_tokens (4096) of at least max_length (8192)"),
        (["--optim.lrr", "1"], "Did you mean --optim.lr?"),
        (["--size.dimm", "1"], "Did you mean --size.dim?"),
        (["--steps"], "requires an argument"),
        (["more"], "more"),
    ],
    ids=" ".join,
)
def test_a_flag_that_does_not_fit_is_refused(settings_of_sft: Callable[..., Any], flags: list[str], message: str):
    text = settings_of_sft("--table", "sft.teacher", *flags)
    assert text.startswith("puna: ") and message in text and "\n" not in text


def test_a_table_that_is_not_there_is_refused(settings_of_sft: Callable[..., Any]):
    assert "has no table [sft.third]; expected sft.teacher, sft.student" in settings_of_sft("--table", "sft.third")
    assert "has no table [sft]; expected sft.teacher, sft.student" in settings_of_sft()


def test_a_key_of_the_file_that_is_unknown_is_refused(settings_of_sft: Callable[..., Any], tmp_path: Path):
    (tmp_path / "my.toml").write_text(SFT.replace("steps = 5", "stepps = 5"))
    text = settings_of_sft("--table", "sft.teacher")
    assert "stepps" in text and "Did you mean --steps?" in text and "my.toml" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stf", "unknown verb 'stf'; expected raise, lineage,"),
        ("sft", "[sft]|--out"),
        ("sft --out x", "[sft] lacks 'data'"),
        ("sft --config", "--config"),
        ("sft --config none.toml --out x", "recipe none.toml cannot be read"),
        ("ingest --out x --source none", "none does not exist"),
        ("ingest --out pages/one.md --source other", "other does not exist"),
        ("ingest --out pages/one.md/x --source pages/one.md", "overlap"),
        ("ingest --out {out}/one.md/x --source {pages}", "overlap"),
        ("tokenizer --out x --data {pages}", "no rows in"),
        ("lineage", "requires an argument"),
        ("lineage {pages}", "is not a finished artifact"),
        ("raise", "requires an argument"),
        ("raise none.toml", "recipe none.toml cannot be read"),
        ("--nothing", "--nothing"),
    ],
)
def test_a_mistake_gets_one_line_and_status_1(puna: Puna, pages: Path, tmp_path: Path, arguments: str, message: str):
    text = puna(*arguments.format(pages=pages, out=pages).split())
    assert text.startswith("puna: ") and any(word in text for word in message.split("|")) and "\n" not in text


def test_a_mistake_in_a_process_has_no_traceback(tmp_path: Path):
    command = [PUNA, "lineage", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("puna: ") and len(done.stderr.splitlines()) == 1


def test_what_the_system_refuses_gets_one_line(puna: Puna, pages: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    text = puna("ingest", "--source", pages, "--out", tmp_path / "file" / "out")
    assert text.startswith("puna: ") and "Not a directory" in text


def test_an_interrupted_command_says_how_to_go_on(
    puna: Puna, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "perform", interrupt)
    assert puna("ingest", "--source", pages, "--out", tmp_path / "out") == "130"
    assert capsys.readouterr().err.startswith("puna: interrupted; the same command resumes")


def test_nobody_reading_the_output_is_no_crash(tmp_path: Path, pages: Path, perform_stage: Any):
    perform_stage("ingest", tmp_path / "out", source=str(pages))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([PUNA, "lineage", str(tmp_path / "out")], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and not done.stderr


def test_a_stage_runs_once_for_the_same_settings(puna: Puna, pages: Path, tmp_path: Path):
    assert str(tmp_path / "out") in puna("ingest", "--source", pages, "--out", tmp_path / "out")
    assert "is up to date" in puna("ingest", "--source", pages, "--out", tmp_path / "out")
    assert "is up to date" not in puna("ingest", "--source", pages, "--out", tmp_path / "out", "--licence", "CC0")


def test_raise_takes_settings_of_any_step(puna: Puna, pages: Path, tmp_path: Path):
    (tmp_path / "my.toml").write_text(
        '[ingest.pages]\nsource = "nowhere"\n[tokenizer]\ndata = ["@ingest.pages"]\nvocab_size = 5000'
    )
    text = puna(
        *("raise", tmp_path / "my.toml", "--ingest.pages.source", pages, "--ingest.pages.licence", "2024-05-01"),
        *("--tokenizer.vocab_size=520", "--out", tmp_path / "here", "--tokenizer.split_digits", "false"),
    )
    assert "tokenizer" in text and "in all" in text
    manifest = artifact.read_manifest(tmp_path / "here" / "tokenizer")
    assert manifest.config["vocab_size"] == 520 and manifest.config["split_digits"] is False
    assert manifest.licences == ["2024-05-01"]
    words = json.loads((tmp_path / "here" / "ingest.pages" / "documents.jsonl").read_text())
    assert words["text"] == PAGE.strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tokenizer.vocab_sise 3", "Did you mean 'vocab_size'?"),
        ("--tokeniser.vocab_size 3", "names no step"),
        ("--tokenizer.vocab_size many", "[tokenizer] vocab_size = 'many'"),
        ("--tokenizer.vocab_size", "without a value"),
        ("--tokenizer.split_digits --tokenizer.vocab_size 3", "without a value"),
        ("more", "'more' after the recipe"),
    ],
)
def test_a_setting_of_no_step_is_refused(puna: Puna, pages: Path, tmp_path: Path, flags: str, message: str):
    (tmp_path / "my.toml").write_text(f'[tokenizer]\ndata = ["{pages}"]')
    text = puna("raise", tmp_path / "my.toml", *flags.split())
    assert text.startswith("puna: ") and message in text


def test_a_flag_of_few_numbers_is_read_as_a_number(puna: Puna, tmp_path: Path) -> None:
    start = ("export", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out", "--format", "meta", "--num-shards")
    assert "none does not exist" in puna(*start, 8)
    assert "num_shards = 3; expected 1, 2, 4, 8 or 16" in puna(*start, 3)


def test_a_verb_without_any_setting_says_what_it_needs(puna: Puna, tmp_path: Path) -> None:
    assert "[import] with no settings; expected exactly one of source and hub" in puna(
        "import", "--out", tmp_path / "out"
    )


def test_a_flag_before_the_verb_is_named_with_its_place(puna: Puna) -> None:
    assert "'--json' before the verb; expected a verb" in (message := puna("--json", "doctor", "x"))
    assert message.endswith("puna VERB --json")
    assert "Did you mean '--offline'?" in puna("--ofline", "doctor", "x")


def test_a_path_without_its_flag_is_named(puna: Puna) -> None:
    assert "'models/x' after import; expected flags, each with its value" in puna("import", "models/x", "--out", "y")


def test_a_misspelt_flag_gets_one_question_mark(puna: Puna) -> None:
    assert "Did you mean --hardware? See puna plan --help" in puna("plan", "8b", "--hardwre", "h100")


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "puna", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__
