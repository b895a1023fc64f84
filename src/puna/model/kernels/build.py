"""C++ sources -> a shared library for the machine, compiled at first use and cached in the home directory.

Errors tell why there is no library; callers then use the torch versions.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from puna.pipeline.errors import KernelError

SOURCES = Path(__file__).parent
MAIN = SOURCES / "llama.cpp"
COMPILERS = ("c++", "g++", "clang++")
# NOTE: no -ffast-math: a NaN must stay a NaN, or a broken request would get tokens. fp-contract rounds a * b + c once
# everywhere, so that single-token and multi-token steps give equal results.
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
TIMEOUT = 300


@cache
def library(flags: tuple[str, ...] = (NATIVE,), folder: Path | None = None) -> Path:
    """Return the path of the compiled library.

    Raises:
        KernelError: There is no compiler, or compiling failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise KernelError("no C++ compiler", expected=f"one of {', '.join(COMPILERS)} on the PATH")
    folder = folder or _writable_cache()
    target = folder / f"kernels-{_key(compiler, flags)}.so"
    if not target.exists():
        _compile(compiler, flags, target)
    return target


def find_compiler() -> str | None:
    """Return the path of the C++ compiler."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """Hash all dependencies of the library: sources, flags, compiler, and the processor behind `native`."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCES.glob("*.h"), MAIN)):
        digest.update(path.read_bytes())
    digest.update("\n".join((*FLAGS, *flags, _output(compiler, "--version"), platform.machine())).encode())
    digest.update(_output(compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull).encode())
    return digest.hexdigest()[:20]


def _output(compiler: str, *arguments: str) -> str:
    try:
        return subprocess.run((compiler, *arguments), capture_output=True, text=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{compiler}: {error}", expected="a working C++ compiler") from error


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    # NOTE: renamed at the end, so that no concurrent process loads a partial file.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = (compiler, *FLAGS, *flags, str(MAIN), "-o", str(made))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            raise KernelError(f"{compiler}: {error}", expected="a working C++ compiler") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
            raise KernelError(f"{compiler} failed: {first}", expected="GCC 11 or clang 14, or newer")
        made.replace(target)


def _writable_cache() -> Path:
    """Return the user's cache folder, or a private temporary folder if there is none."""
    for parent in (Path.home() / ".cache", Path(tempfile.gettempdir()) / f"puna-{os.getuid()}"):
        folder = parent / "puna"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        # NOTE: code is loaded from this folder, so no other user may own it.
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise KernelError("no folder of one's own for compiled kernels", expected="a writable home or temporary folder")
