"""Completers: one interface for local models and endpoints, one retry policy."""

from datetime import UTC, datetime, timedelta
from email.message import Message as Headers
from email.utils import format_datetime
from urllib.error import HTTPError

import pytest
from test_serve import serving

from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Prompt, Sampling
from puna.inference.completer.endpoint import EndpointCompleter
from puna.inference.completer.http import EndpointClient, RetryPolicy, _retry_after
from puna.inference.completer.local import LocalCompleter
from puna.inference.completer.settings import EndpointConfig
from puna.serving.middleware.rules import Rules
from puna.serving.serve import open_served

PROMPTS = [Prompt(Conversation((Message("user", text),)), seed) for seed, text in enumerate(("Open?", "Where?"))]


def test_delays_double_up_to_a_limit_with_jitter_and_a_longer_retry_after_wins():
    policy = RetryPolicy(first_delay=0.5, max_delay=4.0, max_retry_after=10.0)
    for attempt, longest in enumerate((0.5, 1.0, 2.0, 4.0, 4.0), 1):
        delays = {policy.delay(attempt, 0.0) for _ in range(50)}
        assert len(delays) > 1 and longest / 2 <= min(delays) <= max(delays) <= longest
    assert policy.delay(1, 7.0) == 7.0 and policy.delay(1, 999.0) == 10.0


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("", 0.0), ("soon", 0.0), (30, 30.0), (-30, 0.0)]
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | int, seconds: float):
    headers = Headers()
    headers["Retry-After"] = (
        format_datetime(datetime.now(UTC) + timedelta(seconds=value), usegmt=True) if isinstance(value, int) else value
    )
    error = HTTPError("http://x", 503, "busy", headers, None)
    assert abs(_retry_after(error) - seconds) < 2


def test_an_endpoint_returns_the_log_probabilities_of_the_model_itself(checkpoint_path):
    sampling = Sampling(max_tokens=6, top_logprobs=2)
    local = LocalCompleter.open(checkpoint_path, device="cpu").complete(PROMPTS, sampling)
    with serving(open_served(checkpoint_path), Rules()) as url:
        config = EndpointConfig(url=f"{url}/v1", model=checkpoint_path.name)
        remote = EndpointCompleter(EndpointClient(config, key="")).complete(PROMPTS, sampling)
    for mine, theirs in zip(local, remote, strict=True):
        assert mine.message.content == theirs.message.content and mine.logprobs and theirs.logprobs
        for here, there in zip(mine.logprobs, theirs.logprobs, strict=False):
            assert here.token == there.token and abs(here.logprob - there.logprob) < 1e-3
            assert [token for token, _ in here.alternatives] == [token for token, _ in there.alternatives]
    assert all(reply.logprobs is None for reply in LocalCompleter.open(checkpoint_path).complete(PROMPTS, Sampling()))
