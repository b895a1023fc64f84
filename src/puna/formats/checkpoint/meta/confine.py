"""A Python program and a file -> the program's output, run without network, environment or write access.

Uses bubblewrap if available, else an empty network namespace, else resource limits of the program itself; the result
names the mechanism. Kernel exploits are out of scope. Confinement suits Puna's own child.py, not model-generated code.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import which
from typing import BinaryIO, NamedTuple

import puna
from puna.pipeline.errors import CheckpointError

PACKAGE = Path(puna.__file__).resolve().parent
INTERPRETER = Path(sys.executable).resolve()
START = "import sys; sys.path.append({root!r}); {program}"


class Confinement(NamedTuple):
    """A confinement mechanism: description, and the command prefix."""

    name: str
    command: tuple[str, ...]


@cache
def confinement() -> Confinement:
    """Return the strongest mechanism that can start Python on this machine."""
    return next(candidate for candidate in _candidates() if not candidate.command or _starts(candidate))


def run_confined(program: str, file: BinaryIO, *, max_bytes: int, max_seconds: float = 120.0) -> bytes:
    """Run the Python program with `file` as standard input, and return the output.

    Args:
        max_bytes: Largest size of the output.
        max_seconds: Time limit in seconds.

    Raises:
        CheckpointError: The program failed, or exceeded a limit.
    """
    with _start(confinement(), program, file) as process:
        assert process.stdout is not None
        timer = threading.Timer(max_seconds, process.kill)
        timer.start()
        try:
            output = process.stdout.read(max_bytes + 1)
            if len(output) > max_bytes:
                process.kill()
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if len(output) > max_bytes or status:
        raise CheckpointError(
            f"{file.name}: the parsing process printed {len(output):,} bytes and ended with status {status}",
            expected=f"a result of at most {max_bytes:,} bytes within {max_seconds:.0f} s",
            hint="The file is damaged or malicious",
        )
    return output


def _start(chosen: Confinement, program: str, file: BinaryIO | int) -> subprocess.Popen[bytes]:
    # NOTE: -S skips .pth files of site-packages, which are code. The environment is already empty here, because the
    # sandbox's own process outside shows its environment in /proc.
    python = (str(INTERPRETER), "-I", "-S", "-B", "-c", START.format(root=str(PACKAGE.parent), program=program))
    return subprocess.Popen(
        (*chosen.command, *python),
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )


def _starts(chosen: Confinement) -> bool:
    try:
        with _start(chosen, "import puna.formats.checkpoint.meta.child; print('ready')", subprocess.DEVNULL) as process:
            return process.communicate(timeout=20)[0] == b"ready\n"
    except (OSError, subprocess.TimeoutExpired):
        return False


def _candidates() -> Iterator[Confinement]:
    if bubblewrap := which("bwrap"):
        for more in (("--disable-userns",), ()):  # Unknown to bubblewrap before 0.8.
            yield Confinement("bubblewrap", (bubblewrap, *_bubblewrap_options(), *more, "--"))
    if unshare := which("unshare"):
        yield Confinement("own network namespace, no sandbox", (unshare, "--user", "--net", "--ipc", "--"))
    yield Confinement("limits only, neither sandbox nor network namespace", ())


def _bubblewrap_options() -> Iterator[str]:
    yield from ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    yield "--clearenv"
    for name in ("usr", "lib", "lib64", "nix/store"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for folder in (Path(sys.base_prefix).resolve(), PACKAGE):
        yield from ("--ro-bind", str(folder), str(folder))
    yield from ("--remount-ro", "/")
