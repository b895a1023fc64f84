"""Text <-> token ids."""

from puna.tokenizer.tokenizer import Tokenizer
from puna.tokenizer.train import train_tokenizer

__all__ = ["Tokenizer", "train_tokenizer"]
