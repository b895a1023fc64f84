"""The plan of the house, held by reading the source: floors, sizes, names, settings that nobody reads."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from floors import FLOORS, STAGE_FOLDERS

from puna.pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
PUNA = ROOT / "src" / "puna"

HEAVY = {"torch", "numpy", "tokenizers", "safetensors", "transformers", "pyarrow"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILES_IN_FOLDER = 12
MAX_ENTRIES_IN_FOLDER = 15  # files and folders, without `__init__.py`
MAX_CONFIG_FIELDS = 25
MAX_COMMENT_SHARE = 0.08
FORBIDDEN_NAMES = {"utils", "helpers", "common", "core", "misc", "base", "experiments"}
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}

# What breaks a limit, and why it may: {"room/file.py": "reason"}.
EXCEPTIONS: dict[str, str] = {}
# Folders whose entries import one another in a circle, and why they may.
CIRCLES: dict[str, str] = {}

# Fields of requests to the server that nothing reads, and why they are taken nevertheless.
UNREAD = {"add_generation_prompt": "the opposite of continue_final_message, and checked against it"}


@cache
def sources() -> dict[str, ast.Module]:
    """Parse every file of the package: {"training/sft.py": tree}."""
    return {path.relative_to(PUNA).as_posix(): ast.parse(path.read_text()) for path in sorted(PUNA.rglob("*.py"))}


def module_path(name: str) -> tuple[str, ...]:
    """Return the path of a module within the package: "training/sft.py" -> ("training", "sft")."""
    return tuple(part for part in name.removesuffix(".py").split("/") if part != "__init__")


@cache
def arrows() -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return every import within the package as (importing module, imported name)."""
    return {
        (module_path(name), tuple(imported.split(".")[1:]))
        for name, tree in sources().items()
        if name not in ("__init__.py", "__main__.py")
        for imported in imports(tree)
        if imported.startswith("puna.")
    }


def arrows_within(folder: tuple[str, ...]) -> dict[str, set[str]]:
    """Return which entries of a folder import which others: {"sft": {"loop"}}."""
    depth = len(folder)
    found: dict[str, set[str]] = {}
    for here, there in arrows():
        if here[:depth] == folder == there[:depth] and len(here) > depth < len(there) and here[depth] != there[depth]:
            found.setdefault(here[depth], set()).add(there[depth])
    return found


def folders() -> list[tuple[str, ...]]:
    """Return the folders of the package, the package itself first."""
    return sorted({module_path(name)[:depth] for name in sources() for depth in range(len(module_path(name)))})


def entries(folder: tuple[str, ...]) -> set[str]:
    paths = PUNA.joinpath(*folder).iterdir()
    return {path.stem for path in paths if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__main__",
        "__pycache__",
    }


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports in dotted names, wherever the import stands; none is relative."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def num_lines(name: str) -> int:
    return len((PUNA / name).read_text().splitlines())


def test_every_entry_of_a_room_has_a_floor():
    rooms = [entry for entry in entries(()) if (PUNA / entry).is_dir()]
    assert set(FLOORS) >= {"", *rooms}
    for folder, floors in FLOORS.items():
        listed = [entry for floor in floors for entry in floor]
        assert sorted(listed) == sorted(entries(tuple(filter(None, folder.split("/"))))), folder or "puna"


@pytest.mark.parametrize("folder", FLOORS, ids=lambda folder: folder or "puna")
def test_imports_point_only_downward(folder: str):
    floor_of = {entry: level for level, floor in enumerate(FLOORS[folder]) for entry in floor}
    wrong = [
        f"{here} imports {there}"
        for here, others in arrows_within(tuple(filter(None, folder.split("/")))).items()
        for there in others
        if floor_of.get(there, -1) >= floor_of[here]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: "/".join(folder) or "puna")
def test_no_circle_within_a_folder(folder: tuple[str, ...]):
    left = {entry: arrows_within(folder).get(entry, set()) & entries(folder) for entry in entries(folder)}
    while lowest := {entry for entry, others in left.items() if not others & left.keys()}:
        left = {entry: others for entry, others in left.items() if entry not in lowest}
    assert bool(left) == ("/".join(folder) in CIRCLES), f"a circle: {left}"


def test_stages_meet_only_through_artifacts():
    homes = {stage.module.removeprefix("puna.").rpartition(".")[0].replace(".", "/") for stage in STAGES}
    assert homes <= set(STAGE_FOLDERS)

    def home(path: tuple[str, ...]) -> str:
        return next((each for each in STAGE_FOLDERS if path[: each.count("/") + 1] == tuple(each.split("/"))), "")

    wrong = [
        f"{'.'.join(here)} imports {'.'.join(there)}"
        for here, there in arrows()
        if home(here) and home(there) and home(here) != home(there)
    ]
    assert not wrong


def test_the_ground_needs_no_torch():
    wrong = [
        f"{name} imports {imported}"
        for name, tree in sources().items()
        if name == "cli.py" or name.startswith("pipeline/")
        for imported in imports(tree)
        if imported.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_files_functions_and_folders_stay_small():
    too_long = [name for name in sources() if num_lines(name) > MAX_FILE_LINES]
    too_long += [
        f"{name}:{function.name}"
        for name, tree in sources().items()
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    for folder in folders():
        num_files = len(list(PUNA.joinpath(*folder).glob("*.py")))
        if num_files > MAX_FILES_IN_FOLDER or len(entries(folder)) > MAX_ENTRIES_IN_FOLDER:
            too_long.append("/".join(folder) or "puna")
    assert set(too_long) == set(EXCEPTIONS)
    assert all(EXCEPTIONS.values()), "an exception has a reason"


def test_no_name_says_nothing():
    paths = [path.relative_to(ROOT) for folder in ("src", "tests", "recipes") for path in (ROOT / folder).rglob("*")]
    assert not [path for path in paths if path.stem in FORBIDDEN_NAMES and "__pycache__" not in path.parts]


# Tests that use torch's own pickles, and why.
PICKLING_TESTS = {
    "tests/formats/test_meta_format.py": "torch's reader and writer are the reference for Meta's .pth files",
    "tests/formats/test_meta_refusals.py": "torch's reader shows that a hostile pickle would have run",
    "tests/formats/meta_directory.py": "torch's writer makes Meta's .pth files",
}


def test_nothing_is_unpickled():
    paths = [*PUNA.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *ROOT.glob("benchmarks/**/*.py")]
    for path in paths:
        if path.relative_to(ROOT).as_posix() in PICKLING_TESTS:
            continue
        tree = ast.parse(path.read_text())
        modules = {part for name in imports(tree) for part in (name.split(".")[0], name)}
        assert not modules & (UNSAFE_MODULES | {"torch.load", "torch.save"}), path
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "numpy.load", "np.load", "eval", "exec"}, path


def test_nothing_is_left_to_be_done():
    for path in PUNA.rglob("*.py"):
        assert not re.search(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b", path.read_text()), path


def test_comments_stay_few():
    lines = comments = 0
    for path in PUNA.rglob("*.py"):
        text = path.read_text()
        lines += len(text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})
    assert comments / lines <= MAX_COMMENT_SHARE


def test_every_module_says_what_it_turns_into_what():
    missing = [name for name, tree in sources().items() if not ast.get_docstring(tree)]
    assert not missing


@cache
def classes_below(root: str) -> dict[str, ast.ClassDef]:
    """Find the classes that inherit from `root`, directly or not: {"training/sft.py:Config": definition}."""
    classes = {
        f"{name}:{node.name}": node
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    parents, found = {root}, dict[str, ast.ClassDef]()
    while more := {
        key: node for key, node in classes.items() - found.items() if parents & set(map(ast.unparse, node.bases))
    }:
        found |= more
        parents |= {node.name for node in more.values()}
    return found


def settings(definition: ast.ClassDef) -> dict[str, ast.expr]:
    """Return a model's fields with their annotations."""
    nodes = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    named = {ast.unparse(node.target): node.annotation for node in nodes}
    return {name: annotation for name, annotation in named.items() if "ClassVar" not in ast.unparse(annotation)}


def attributes_read(node: ast.AST) -> Iterator[str]:
    """Yield the attributes that code reads, validators left out: to check a setting is not to use it."""
    if any("validator" in ast.unparse(each) for each in getattr(node, "decorator_list", [])):
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    for child in ast.iter_child_nodes(node):
        yield from attributes_read(child)


def allows_only_what_changes_nothing(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.BinOp):
        return allows_only_what_changes_nothing(annotation.left) and allows_only_what_changes_nothing(annotation.right)
    text = ast.unparse(annotation)
    return text in {"None", "One"} or "Literal[" in text or "max_length=0" in text


def test_every_setting_is_read():
    read = {attribute for tree in sources().values() for attribute in attributes_read(tree)}
    # What models of answers declare is written, not read.
    models = {key: node for key, node in classes_below("BaseModel").items() if key not in classes_below("Answer")}
    stages = classes_below("StageConfig")
    assert stages
    dead = [
        f"{key}: {field}"
        for key, definition in models.items()
        for field, annotation in settings(definition).items()
        if field not in read
        and (key in stages or not (field in UNREAD or allows_only_what_changes_nothing(annotation)))
    ]
    assert not dead
    assert not set(UNREAD) & read, "an exception that is none any more"


def test_a_stage_has_few_settings():
    stages = classes_below("StageConfig")
    for key, definition in stages.items():
        bases = map(ast.unparse, definition.bases)
        above = [other for base in bases for name, other in stages.items() if name.endswith(f":{base}")]
        # A field that a stage narrows is one with its parent's.
        assert len(set().union(*(settings(each) for each in (definition, *above)))) <= MAX_CONFIG_FIELDS, key


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_verb_is_module_test_page_and_table(stage):
    assert stage.module.split(".")[-1] in (stage.verb, f"{stage.verb}_model")  # `import` is a word of Python
    module = PUNA.joinpath(*stage.module.split(".")[1:]).with_suffix(".py")
    tree = sources()[module.relative_to(PUNA).as_posix()]
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {"Config", "run"} <= names
    assert list((ROOT / "tests").rglob(f"test_{stage.verb}.py"))
    assert list((ROOT / "docs").rglob(f"{stage.verb}.md"))
    assert any(stage.verb in tomllib.loads(path.read_text()) for path in (ROOT / "recipes").glob("*.toml"))


def test_help_imports_neither_torch_nor_numpy():
    program = (
        "import sys; sys.argv = ['puna', '--help']\n"
        "from puna.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('heavy:', sorted({HEAVY | {'pydantic'}!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert all(stage.verb in done.stdout for stage in STAGES)
