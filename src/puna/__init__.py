"""Puna raises your own Llama: private documents and an open teacher become a small, proven model of your own.

The public Python API is `__all__`. Names are imported at the first use, so `import puna` loads no torch.

Example:
    >>> import puna
    >>> model = puna.LocalCompleter.open(Path("build/model"))
    >>> question = puna.Conversation((puna.Message("user", "When do you open?"),))
    >>> model.complete([puna.Prompt(question)], puna.Sampling(max_tokens=64))[0].message.content
    'We open at nine.'
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.data.dataset import Dataset
    from puna.evaluation.tasks.task import Task
    from puna.formats.chat.conversation import Conversation, Message
    from puna.formats.chat.format import ChatFormat
    from puna.formats.checkpoint.checkpoint import Checkpoint
    from puna.formats.tokenizer.tokenizer import Tokenizer
    from puna.inference.completer.completer import Prompt, Sampling
    from puna.inference.completer.endpoint import EndpointCompleter
    from puna.inference.completer.local import LocalCompleter
    from puna.pipeline.artifacts.artifact import verify
    from puna.pipeline.artifacts.lineage import trace
    from puna.pipeline.errors import PunaError
    from puna.pipeline.execution.recipe import Recipe
    from puna.pipeline.execution.walk import run_recipe

__version__ = "0.1.0"

__all__ = [
    "ChatFormat",
    "Checkpoint",
    "Conversation",
    "Dataset",
    "EndpointCompleter",
    "LocalCompleter",
    "Message",
    "Prompt",
    "PunaError",
    "Recipe",
    "Sampling",
    "Task",
    "Tokenizer",
    "run_recipe",
    "trace",
    "verify",
]

_MODULES = {
    "ChatFormat": "puna.formats.chat.format",
    "Checkpoint": "puna.formats.checkpoint.checkpoint",
    "Conversation": "puna.formats.chat.conversation",
    "Dataset": "puna.data.dataset",
    "EndpointCompleter": "puna.inference.completer.endpoint",
    "LocalCompleter": "puna.inference.completer.local",
    "Message": "puna.formats.chat.conversation",
    "Prompt": "puna.inference.completer.completer",
    "PunaError": "puna.pipeline.errors",
    "Recipe": "puna.pipeline.execution.recipe",
    "Sampling": "puna.inference.completer.completer",
    "Task": "puna.evaluation.tasks.task",
    "Tokenizer": "puna.formats.tokenizer.tokenizer",
    "run_recipe": "puna.pipeline.execution.walk",
    "trace": "puna.pipeline.artifacts.lineage",
    "verify": "puna.pipeline.artifacts.artifact",
}

# Hidden from type checkers, which would otherwise accept every misspelled name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name at its first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module 'puna' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the public names without importing the modules behind them."""
        return sorted({*globals(), *__all__})
