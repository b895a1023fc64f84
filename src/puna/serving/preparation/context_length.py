"""Texts of a prompt -> refused beyond the context's length, long before the whole prompt is tokenized."""

from collections.abc import Iterable

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.serving.errors import HttpError

COUNTED_CHARS = 1 << 16


def require_room(tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int, *, param: str) -> None:
    """Raise HttpError (400) for texts that together have certainly more than `max_tokens` tokens.

    First by their bytes, then by tokenizing pieces until there are too many. A cut between two pieces can add tokens,
    so that texts within an eighth of the bound are let through: their exact number is judged later.
    """
    texts = list(texts)
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    least = tokenizer.least_tokens(num_bytes)
    if least > max_tokens:
        raise _too_long(f"The prompt has {num_bytes:,} bytes, which are at least {least:,} tokens", max_tokens, param)
    counted, most = 0, max_tokens + max_tokens // 8 + 64
    if num_bytes <= most:
        return
    for text in texts:
        for start in range(0, len(text), COUNTED_CHARS):
            counted += len(tokenizer.encode(text[start : start + COUNTED_CHARS]))
            if counted > most:
                given = f"The prompt has {num_bytes:,} bytes, and a part of them is {counted:,} tokens"
                raise _too_long(given, max_tokens, param)


def _too_long(given: str, max_tokens: int, param: str) -> HttpError:
    return HttpError(400, f"{given}; at most {max_tokens:,} fit.", param=param, code="context_length_exceeded")
