"""Texts -> a new tokenizer: Llama 3's split, a vocabulary learned from the texts, 256 special tokens.

Does not choose or clean texts, and does not extend an existing tokenizer's vocabulary.
"""

from collections.abc import Iterable

from tokenizers import models, trainers

from puna.formats.tokenizer.added import special_tokens
from puna.formats.tokenizer.files import BYTE_CHARACTERS, SPECIAL_TEXTS, SPLIT_PATTERN, build_encoder
from puna.formats.tokenizer.tokenizer import Tokenizer, split_text
from puna.pipeline.errors import TokenizerError

MIN_VOCAB_SIZE = len(BYTE_CHARACTERS) + len(SPECIAL_TEXTS)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, split_digits: bool) -> Tokenizer:
    """Learn a byte-level BPE. The same texts in the same order give the same tokenizer.

    `vocab_size` counts the 256 special tokens, placed behind the vocabulary. With `split_digits` no merge
    contains a digit, and a number is spelled digit by digit and can be copied digit by digit.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerError(f"vocab_size {vocab_size}", expected=f"at least {MIN_VOCAB_SIZE} (bytes + specials)")
    # Merges are learned inside pieces of the split, so single digits are never merged. The trained tokenizer keeps
    # Llama 3's pattern, which other programs expect.
    pattern = SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}") if split_digits else SPLIT_PATTERN
    learner = build_encoder(models.BPE(), pattern)
    num_regular = vocab_size - len(SPECIAL_TEXTS)
    trainer = trainers.BpeTrainer(
        vocab_size=num_regular,
        initial_alphabet=BYTE_CHARACTERS,
        show_progress=False,
        special_tokens=[],
    )
    learner.train_from_iterator((piece for text in texts for piece in split_text(text)), trainer)
    learned = learner.get_vocab_size()
    if learned < num_regular:
        raise TokenizerError(
            f"vocab_size {vocab_size:,}, but the texts hold pairs for {learned + len(SPECIAL_TEXTS):,} only",
            hint=f"Give more text, or a vocab_size of at most {learned + len(SPECIAL_TEXTS)}",
        )
    encoder = build_encoder(learner.model)
    ids = {text: num_regular + index for index, text in enumerate(SPECIAL_TEXTS)}
    return Tokenizer(encoder, special_tokens(ids))
