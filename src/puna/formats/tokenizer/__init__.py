"""Text <-> token ids."""

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer

__all__ = ["Tokenizer", "train_tokenizer"]
