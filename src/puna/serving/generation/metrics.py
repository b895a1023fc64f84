"""Counters of the server -> Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).

Tenants appear by number, never by key.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from puna.inference.engine.outputs import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("stop", "length", "abort", "error", "invalid", "refused", "lost")


class Histogram:
    """Observed seconds in buckets; the last bucket has no bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count an observation."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Counters since the server's start; `usage` is the engine's latest report, None before the first report.

    Outcomes of continuations: the engine's (stop, length, abort, error), `invalid` for a request that the engine
    refused, `refused` for a 503 without an attempt, `lost` for a death of the engine.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.outcomes = Counter[str](dict.fromkeys(OUTCOMES, 0))
        self.num_prompt_tokens = self.num_cached_tokens = self.num_generated_tokens = self.num_restarts = 0
        self.queue_seconds, self.first_token_seconds = Histogram(), Histogram()

    def count_ended(self, outcome: str, size: int) -> None:
        """Count ended continuations by outcome."""
        self.outcomes[outcome] += size

    def take_usage(self, usage: Usage) -> None:
        """Add the figures of a report of the engine."""
        self.usage = usage
        self.num_cached_tokens += usage.num_cached_tokens
        for seconds in usage.queue_seconds:
            self.queue_seconds.observe(seconds)

    def text(self, held: Mapping[str, int], *, is_up: bool) -> str:
        """Return all metrics in Prometheus' format; `held` counts continuations by tenant."""
        lines = [*self._gauges(held, is_up), *self._counters()]
        lines += _histogram("queue_seconds", "Seconds from submission to the start.", self.queue_seconds)
        lines += _histogram(
            "time_to_first_token_seconds", "Seconds from submission to the first token.", self.first_token_seconds
        )
        return "\n".join(lines) + "\n"

    def _gauges(self, held: Mapping[str, int], is_up: bool) -> Iterator[str]:
        yield from _family("engine_up", "gauge", "1 while requests are answered.", [("", int(is_up))])
        if self.usage and is_up:
            pages = {
                "free": self.usage.num_free_pages,
                "used": self.usage.num_used_pages,
                "cached": self.usage.num_cached_pages,
            }
            running, waiting = self.usage.running, self.usage.waiting
            yield from _family("kv_cache_pages", "gauge", "Pages of the KV cache.", _labelled("state", pages))
            yield from _family(
                "running_requests", "gauge", "Continuations in the batch.", [("", sum(running.values()))]
            )
            yield from _family(
                "waiting_requests", "gauge", "Continuations in the queue.", [("", sum(waiting.values()))]
            )
            for name, counts in (("running", running), ("waiting", waiting)):
                help_text = f"Continuations that are {name}, by tenant."
                yield from _family(f"tenant_{name}_requests", "gauge", help_text, _labelled("tenant", counts))
        yield from _family(
            "tenant_held_requests", "gauge", "Continuations held by the server, by tenant.", _labelled("tenant", held)
        )

    def _counters(self) -> Iterator[str]:
        counters = (
            ("prompt_tokens_total", "Prompt tokens taken.", self.num_prompt_tokens),
            ("cached_prompt_tokens_total", "Prompt tokens found in the KV cache.", self.num_cached_tokens),
            ("generated_tokens_total", "Tokens generated.", self.num_generated_tokens),
            ("engine_restarts_total", "Restarts of the engine after its death.", self.num_restarts),
        )
        for name, help_text, value in counters:
            yield from _family(name, "counter", help_text, [("", value)])
        yield from _family(
            "requests_total", "counter", "Continuations that ended, by outcome.", _labelled("outcome", self.outcomes)
        )


def _labelled(label: str, values: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(f'{{{label}="{name}"}}', value) for name, value in sorted(values.items())]


def _family(name: str, kind: str, help_text: str, samples: Sequence[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP puna_{name} {help_text}"
    yield f"# TYPE puna_{name} {kind}"
    for labels, value in samples:
        yield f"puna_{name}{labels} {value}"


def _histogram(name: str, help_text: str, histogram: Histogram) -> Iterator[str]:
    yield f"# HELP puna_{name} {help_text}"
    yield f"# TYPE puna_{name} histogram"
    count = 0
    for bound, number in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
        count += number
        yield f'puna_{name}_bucket{{le="{bound}"}} {count}'
    yield f"puna_{name}_sum {histogram.total}"
    yield f"puna_{name}_count {count}"
