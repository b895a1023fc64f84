"""Tokens and log-probabilities -> the spellings of OpenAI's `logprobs` objects."""

from puna.formats.tokenizer.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token; a part of a character is written as by OpenAI: `bytes:\\xe2\\x80`."""
    spelled = tokenizer.decode_bytes([token])
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def logprob_value(logprob: float) -> float:
    """Return a finite log-probability: JSON has no -inf."""
    return max(logprob, LEAST_LOGPROB)
