"""Tokens, log-probabilities and token counts -> the spellings of OpenAI's `logprobs` and `usage` objects."""

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


def usage(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """Return the `usage` object."""
    total = num_prompt_tokens + num_new_tokens
    return {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_new_tokens, "total_tokens": total}
