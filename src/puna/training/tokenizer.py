"""Documents and conversations -> a new tokenizer with Llama 3's split pattern and special tokens."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.data.preference import Preference
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import message_body, opening
from puna.formats.tokenizer.train import train_tokenizer
from puna.pipeline.config import StageConfig
from puna.pipeline.run import Run


class Config(StageConfig):
    """Train a byte-level BPE tokenizer.

    Example: a recipe's table.

        [tokenizer]
        data = ["build/ingest"]
        vocab_size = 8192
    """

    data: list[Path] = Field(description="Datasets to train on, concatenated in this order")
    vocab_size: int = Field(
        default=4096, ge=512, le=1_000_000, description="Vocabulary size in tokens, including the 256 special tokens"
    )
    split_digits: bool = Field(
        default=True, description="Whether every digit is a token, which helps small models to copy numbers"
    )
    max_rows: int = Field(
        default=200_000, ge=1, description="Largest number of rows to train on, spaced evenly over the data"
    )


def run(config: Config, run: Run) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    dataset = Dataset(config.data)
    stride = -(-len(dataset) // config.max_rows)
    texts = (text for index in range(0, len(dataset), stride) for text in _texts(dataset[index]))
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, split_digits=config.split_digits)
    tokenizer.save(run.output)
    run.log(f"{tokenizer.vocab_size:,} tokens, learned from {-(-len(dataset) // stride):,} rows")


def _texts(row: Document | Conversation | Preference) -> Iterator[str]:
    """Yield the texts of a row in the units of encoding: a whole document, or headers and bodies of messages."""
    if isinstance(row, Document):
        yield row.text
        return
    assert isinstance(row, Conversation)
    for header, text in opening(row):
        yield from (header, text)
    for message in row.messages:
        body = message_body(message, set(), row.environment)
        yield from ("ipython" if message.role == "tool" else message.role, body.content, body.marked or "")
