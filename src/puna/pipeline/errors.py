"""The exceptions a user can meet: each says what was given, what was expected and what to do.

    PunaError
    ├── ConfigError       a recipe or a flag
    ├── ArtifactError     a directory that a stage wrote or reads
    │   └── ReceiptError  a measured claim that does not hold
    ├── DataError         a document, a record, a data file
    ├── TokenizerError    a tokenizer file, a token id
    ├── ChatError         a conversation that cannot be rendered or trained on
    ├── CheckpointError   weights, shapes, model configuration
    ├── KernelError       compiled kernels that this machine cannot have
    ├── TrainError        a training run that cannot go on
    ├── ReleaseError      a model that may not be let out as told
    └── RequestError      a request to the engine or the server

Impossible states are asserts, not errors of this tree.
"""


class PunaError(Exception):
    """A mistake that the user can mend. `given` and `expected` are phrases, `hint` a sentence."""

    def __init__(self, given: str, *, expected: str = "", hint: str = ""):
        self.given, self.expected, self.hint = given, expected, hint
        parts = [given + (f"; expected {expected}" if expected else ""), hint]
        super().__init__(". ".join(part.rstrip(".") for part in parts if part))


class ConfigError(PunaError):
    """A recipe table or a flag that does not fit."""


class ArtifactError(PunaError):
    """A missing, incomplete or altered artifact."""


class ReceiptError(ArtifactError):
    """A measured value outside its tolerance."""


class DataError(PunaError):
    """A data file or record that cannot be read."""


class TokenizerError(PunaError):
    """A tokenizer file or token id that cannot be used."""


class ChatError(PunaError):
    """A conversation that cannot be rendered or trained on."""


class CheckpointError(PunaError):
    """Weights, shapes or a model configuration that do not fit."""


class KernelError(PunaError):
    """Kernels that cannot be compiled or do not fit a network; the torch versions serve instead."""


class TrainError(PunaError):
    """A training run that cannot go on."""


class ReleaseError(PunaError):
    """A name, a missing text or terms under which a model may not be released."""


class RequestError(PunaError):
    """A request that cannot be served. `param` names the field that is wrong."""

    def __init__(self, given: str, *, expected: str = "", hint: str = "", param: str | None = None):
        super().__init__(given, expected=expected, hint=hint)
        self.param = param
