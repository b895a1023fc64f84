"""Exceptions for mistakes of users: an error states the faulty value, the expected value and a remedy.

    PunaError
    ├── ConfigError       a recipe or a flag
    ├── ArtifactError     an artifact: a directory with a manifest
    │   └── ReceiptError  a measured value outside the tolerance
    ├── DataError         a data file, or a row of a data file
    ├── TokenizerError    a tokenizer file, a token id
    ├── ChatError         a conversation without tokens or without a loss mask
    ├── CheckpointError   weights, shapes, model configuration
    ├── KernelError       compiled kernels unfit for the machine or the network
    ├── TrainError        a training run forced to stop
    ├── ReleaseError      a model barred from release by name or licence
    └── RequestError      a request to the engine or the server

Asserts guard impossible states, reached only through a bug.
"""


class PunaError(Exception):
    """A mistake for the user to fix; the parent of all errors raised by Puna on purpose.

    Args:
        given: Phrase for the faulty value: "--until sftt names no step of shop.toml".
        expected: Noun phrase for a valid value: "ingest.train, sft".
        hint: Sentence with the remedy: "Did you mean 'sft'?".

    Example:
        >>> str(PunaError("lr = -1.0", expected="a positive number", hint="Try 1e-4"))
        'lr = -1.0; expected a positive number. Try 1e-4'
    """

    def __init__(self, given: str, *, expected: str = "", hint: str = ""):
        self.given, self.expected, self.hint = given, expected, hint
        parts = [given + (f"; expected {expected}" if expected else ""), hint]
        super().__init__(". ".join(part.rstrip(".") for part in parts if part))


class ConfigError(PunaError):
    """An invalid recipe or command-line flag."""


class ArtifactError(PunaError):
    """A missing, incomplete or altered artifact."""


class ReceiptError(ArtifactError):
    """A measured value outside the tolerance."""


class DataError(PunaError):
    """An unreadable data file, or an invalid row."""


class TokenizerError(PunaError):
    """An invalid tokenizer file or token id."""


class ChatError(PunaError):
    """A conversation without a rendering in the prompt format, or without tokens to train on."""


class CheckpointError(PunaError):
    """Weights, shapes or a model configuration in conflict."""


class KernelError(PunaError):
    """Compiled kernels unfit for the machine or the network; callers use the torch versions instead."""


class TrainError(PunaError):
    """A training run forced to stop, for example by a loss of NaN."""


class ReleaseError(PunaError):
    """A release forbidden by the model's name, a missing licence text or licence terms."""


class RequestError(PunaError):
    """An invalid request to the engine or the server; `param` names the invalid field."""

    def __init__(self, given: str, *, expected: str = "", hint: str = "", param: str | None = None):
        super().__init__(given, expected=expected, hint=hint)
        self.param = param
