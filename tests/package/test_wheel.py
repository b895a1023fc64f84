"""A built wheel works without the repository."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.tenth


def run(*command: object, folder: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    try:
        import hatchling  # noqa: F401

        options.append("--no-build-isolation")
    except ImportError:
        pass  # pip fetches the build backend
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(ROOT)], check=True, cwd=folder)
    (path,) = folder.glob("puna-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the packages of this one without its link to the source tree."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    # A path in a .pth file does not run the .pth files of that path, such as the link to this source tree.
    Path(own, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_all_that_runs(wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT / "src").as_posix() in inside
    suffixes = {Path(name).suffix for name in inside}
    assert {".py", ".cpp", ".h", ".html", ".js", ".css"} <= suffixes and "puna/py.typed" in inside
    assert not [name for name in inside if name.startswith("tests/")]


def test_the_package_comes_from_the_wheel(installed: Path):
    path = run(installed / "venv/bin/python", "-c", "import puna; print(puna.__file__)", folder=installed)
    assert str(installed) in path


def test_the_command_line_and_every_public_name_work(installed: Path):
    assert run(installed / "venv/bin/puna", "--version", folder=installed).strip() == "0.1.0"
    assert "distill" in run(installed / "venv/bin/puna", "--help", folder=installed)
    program = "import puna; print(*(getattr(puna, name).__name__ for name in puna.__all__))"
    assert "Checkpoint" in run(installed / "venv/bin/python", "-c", program, folder=installed)


def test_kernels_compile_and_the_chat_page_is_there(installed: Path):
    program = """
from pathlib import Path
from puna.testing import tiny_checkpoint
from puna.testing.endpoint import ScriptedEndpoint
import puna

tiny_checkpoint.save_quantized(Path("model"))
model = puna.LocalCompleter.open(Path("model"))
question = puna.Conversation((puna.Message("user", "Hello"),))
print("answered", len(model.complete([puna.Prompt(question)], puna.Sampling(max_tokens=4))))

from puna.model.kernels.build import library
print("kernels", library().is_file())
from importlib.resources import files
print("page", "<html" in files("puna.serving.browser").joinpath("page", "index.html").read_text())
"""
    printed = run(installed / "venv/bin/python", "-c", program, folder=installed)
    assert "answered 1" in printed and "kernels True" in printed and "page True" in printed
