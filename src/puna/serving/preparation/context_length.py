"""Context length: HttpError for too long texts, before the whole prompt is tokenized."""

from collections.abc import Iterable

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.serving.errors import HttpError

COUNTED_CHARS = 1 << 16


def require_room(tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int, *, param: str) -> None:
    """Raise HttpError (400) for texts with certainly more than `max_tokens` tokens in total.

    The number of bytes gives a lower bound; then pieces are tokenized up to the limit. A cut between pieces can add
    tokens, so texts up to an eighth above the limit pass: `sampling_params` checks the exact number.
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
                problem = f"The prompt has {num_bytes:,} bytes, and a part of them is {counted:,} tokens"
                raise _too_long(problem, max_tokens, param)


def _too_long(problem: str, max_tokens: int, param: str) -> HttpError:
    return HttpError(400, f"{problem}; at most {max_tokens:,} fit.", param=param, code="context_length_exceeded")
