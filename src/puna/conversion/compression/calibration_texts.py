"""Calibration paths of a compression stage -> token ids, without texts that the stage measures on."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from puna.data.packing import Example
from puna.data.pieces import cut_examples
from puna.formats.tokenizer import Tokenizer
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run


def calibration_texts(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    run: Run,
    *,
    held_out: Iterable[Sequence[int]],
    num_tokens: int,
    max_length: int,
) -> list[Example]:
    """Return up to `num_tokens` tokens of calibration text, in pieces of at most `max_length` tokens.

    A piece with the token ids of a `held_out` text is left out and counted in the log: otherwise the measurement
    would be of text that the calibration has seen.

    Raises:
        ConfigError: Every calibration text is held out.
    """
    measured = set(map(tuple, held_out))
    pieces = list(cut_examples(paths, tokenizer, num_tokens=num_tokens, longest=max_length))
    texts = [piece for piece in pieces if tuple(piece.ids) not in measured]
    if len(texts) < len(pieces):
        run.log(f"{len(pieces) - len(texts):,} of {len(pieces):,} calibration texts are also in data: left out")
    if not texts:
        raise ConfigError("every calibration text is also in data", expected="calibration texts that are not in data")
    run.log(f"calibrating on {sum(len(text.ids) for text in texts):,} tokens of {len(texts):,} texts")
    return texts
