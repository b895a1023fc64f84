"""Small fakes for tests of programs that use Puna: a tiny checkpoint, a tiny dataset, a scripted endpoint, one stage.

Puna's own tests use the same fakes. Everything runs on a CPU within seconds and needs no test framework and no network.

Example:
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from puna.testing import tiny_checkpoint
    >>> from puna.testing.endpoint import ScriptedEndpoint, serving
    >>> path = Path(mkdtemp()) / "model"
    >>> model = tiny_checkpoint.save(path)
    >>> with serving(ScriptedEndpoint(path, answer="At nine.")) as url:
    ...     pass  # point a client of OpenAI's API at `url`
"""
