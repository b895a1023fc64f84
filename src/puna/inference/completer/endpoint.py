"""Conversations -> replies of a model behind an OpenAI-compatible endpoint, several requests at a time.

A rejected prompt fails only the prompt's own reply. An error common to all prompts, for example a wrong key, ends the
run; the same command resumes the run.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Prompt, Reply, ReplyToken, Sampling, ignore
from puna.inference.completer.http import EndpointClient, RejectedError, UnreadableAnswerError
from puna.pipeline.errors import ChatError, ConfigError

# Rejections that concern the address, not one prompt: redirects, an unknown path or method.
ADDRESS_STATUSES = {*range(300, 400), 404, 405}
CUT_OFF, FILTERED = "length", "content_filter"


@dataclass(frozen=True)
class EndpointCompleter:
    """A model behind /chat/completions.

    Example:
        >>> config = EndpointConfig(url="http://localhost:8000/v1", model="own-llama")
        >>> model = EndpointCompleter(EndpointClient(config, key=""))
        >>> model.complete([Prompt(conversation)], Sampling())[0].message.content
        'We open at nine.'
    """

    client: EndpointClient

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, tell: Callable[[int], None] = ignore
    ) -> list[Reply]:
        """Answer every prompt.

        Raises:
            ConfigError: The endpoint rejects every request, for example because of a wrong key.
            RequestError: The endpoint does not answer after all retries.
        """
        replies: list[Reply] = []
        for reply in self.replies(prompts, sampling):
            replies.append(reply)
            tell(len(replies))
        return replies

    def replies(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        """Yield the replies in the order of the prompts; errors as `complete`."""
        return self.client.map(partial(self._ask, sampling=sampling), prompts)

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Reply:
        try:
            return _read(self.client.post("/chat/completions", _body(prompt, sampling)))
        except UnreadableAnswerError as error:
            return Reply(failure=f"the endpoint's answer cannot be read: {error.given}")
        except RejectedError as error:
            if error.status in ADDRESS_STATUSES:
                given = f"{self.client.config.url} answers {error}"
                raise ConfigError(
                    given, expected="a chat completion", hint="Check the endpoint, the model and the key"
                ) from None
            return Reply(failure=f"the endpoint refuses: {error}")


def _body(prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    conversation = prompt.conversation
    body: dict[str, Any] = {
        "messages": _openai_messages(conversation),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": prompt.seed,
    }
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _openai_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return messages in OpenAI's layout: call arguments as JSON text, ids to link results to calls."""
    rows: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for index, message in enumerate(conversation.messages):
        row = replace(message, weight=1).to_json()
        if message.tool_calls:
            open_calls = [call.id or f"call_{index}_{number}" for number, call in enumerate(message.tool_calls)]
            row["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                for id_, c in zip(open_calls, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            row["tool_call_id"] = message.tool_call_id or (open_calls.pop(0) if open_calls else f"call_{index}")
        rows.append(row)
    return rows


def _read(answer: dict[str, Any]) -> Reply:
    try:
        choice = answer["choices"][0]
        fields = {name: choice["message"].get(name) for name in ("content", "tool_calls")}
        (message,) = Conversation.from_json({"messages": [{"role": "assistant", **fields}]}).messages
        usage = answer.get("usage") or {}
        num_tokens, num_prompt_tokens = (int(usage.get(f"{name}_tokens") or 0) for name in ("completion", "prompt"))
        finish_reason = choice.get("finish_reason")
        finish_reason = finish_reason if finish_reason in (CUT_OFF, FILTERED) else "stop"
        return Reply(message, num_tokens, "", finish_reason, num_prompt_tokens, _read_logprobs(choice))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, ChatError) as error:
        return Reply(failure=f"the endpoint's answer cannot be read: {error}")


def _read_logprobs(choice: dict[str, Any]) -> tuple[ReplyToken, ...] | None:
    entries = (choice.get("logprobs") or {}).get("content")
    if not isinstance(entries, list):
        return None
    return tuple(
        ReplyToken(
            _token_bytes(entry),
            float(entry["logprob"]),
            tuple((_token_bytes(other), float(other["logprob"])) for other in entry.get("top_logprobs") or ()),
        )
        for entry in entries
    )


def _token_bytes(entry: dict[str, Any]) -> bytes:
    """Return the bytes of a token; servers without `bytes` send text alone."""
    values = entry.get("bytes")
    return bytes(values) if isinstance(values, list) else str(entry.get("token", "")).encode()
