"""Numbers of tokens -> the `usage` object of OpenAI's responses."""


def usage(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """Return the `usage` object."""
    total = num_prompt_tokens + num_new_tokens
    return {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_new_tokens, "total_tokens": total}
