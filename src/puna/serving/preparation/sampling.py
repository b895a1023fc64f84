"""Fields of a request -> sampling parameters for the engine; the checkpoint's defaults fill the gaps."""

from dataclasses import replace

from puna.inference.engine.grammar.grammar import Grammar
from puna.inference.engine.sampling.params import SamplingParams
from puna.serving.errors import HttpError
from puna.serving.requests.body import Body
from puna.serving.served_model import ServedModel

SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def sampling_params(
    served: ServedModel,
    body: Body,
    prompt: list[int],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    echo_logprobs: bool = False,
    banned_ids: tuple[int, ...] = (),
    grammar: Grammar | None = None,
) -> list[SamplingParams]:
    """Return sampling parameters for the `n` continuations of a prompt; continuation i has the seed `seed` + i.

    Args:
        max_tokens: Limit on new tokens; None for the rest of the context.

    Raises:
        HttpError: Status 400. Prompt and new tokens exceed the context.
    """
    room = served.max_context - len(prompt)
    num_tokens = max(room, 1) if max_tokens is None else max_tokens
    if num_tokens > room:
        message = f"{len(prompt):,} prompt tokens and {num_tokens:,} new tokens; at most {served.max_context:,} fit."
        raise HttpError(400, message, param="max_tokens", code="context_length_exceeded")
    values = {name: getattr(body, name) for name in SAMPLING_FIELDS}
    first = replace(
        served.defaults,
        **{name: value for name, value in values.items() if value is not None},
        max_tokens=num_tokens,
        stop_ids=(*served.stop_ids, *(body.stop_token_ids or ())),
        stop_strings=body.stop_strings,
        logprobs=logprobs,
        echo_logprobs=echo_logprobs,
        logit_bias=body.biases,
        banned_ids=banned_ids,
        grammar=grammar,
    )
    seeds = [None if body.seed is None else _wrap(body.seed + index) for index in range(body.n or 1)]
    return [replace(first, seed=seed) for seed in seeds]


def _wrap(seed: int) -> int:
    """Wrap around at 64 bits, signed: seed + i of the largest seed stays in range."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
