"""Settings of a teacher behind an endpoint."""

from pathlib import Path

from pydantic import Field

from puna.inference.completer.settings import EndpointConfig


class TeacherEndpoint(EndpointConfig):
    """An endpoint with log-probabilities, which scores texts or writes answers.

    Example: a recipe's table.

        [label.endpoint]
        url = "http://127.0.0.1:8000/v1"
        model = "llama-70b"
        tokenizer = "build/teacher"
    """

    tokenizer: Path = Field(description="Tokenizer of the model: a tokenizer file, or a directory that holds one")
    answers: bool = Field(
        default=False, description="Whether to label answers of the model in place of the texts in the data"
    )
    max_tokens: int = Field(default=512, ge=1, description="Longest answer in tokens, if the model writes answers")
    answer_temperature: float = Field(
        default=1.0, ge=0, le=2, description="Sampling temperature of answers, 0 to 2; 0 takes the most likely token"
    )
