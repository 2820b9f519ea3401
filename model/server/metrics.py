"""Counters for Prometheus. Each server has its own registry, so that one process can run several servers.

Source of the names and units: https://prometheus.io/docs/practices/naming, and vLLM where it counts the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from bpe_llama.model.server.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The server's counters.

    Args:
        scheduler: The figures of its `Scheduler.stats` are rendered too.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("bpe_llama_requests", "Answered requests.", ("path", "status"), registry=self.registry)
        self._prompt = Counter("bpe_llama_prompt_tokens", "Tokens of prompts.", ("model",), registry=self.registry)
        self._cached = Counter(
            "bpe_llama_cached_prompt_tokens",
            "Prompt tokens that the prefix cache held.",
            ("model",),
            registry=self.registry,
        )
        self._generated = Counter(
            "bpe_llama_generation_tokens", "Generated tokens.", ("model",), registry=self.registry
        )
        self._first = Histogram(
            "bpe_llama_time_to_first_token_seconds",
            "Seconds from a request to its first token, time in the queue included.",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "bpe_llama_request_duration_seconds",
            "Seconds from a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_SchedulerStats(scheduler))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._duration.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """Note the time to the first token of a request."""
        self._first.labels(model).observe(seconds)

    def prompt_tokens(self, model: str, count: int) -> None:
        """Count tokens of prompts."""
        self._prompt.labels(model).inc(count)

    def cached_tokens(self, model: str, count: int) -> None:
        """Count prompt tokens that the prefix cache held."""
        self._cached.labels(model).inc(count)

    def completion_tokens(self, model: str, count: int) -> None:
        """Count generated tokens."""
        self._generated.labels(model).inc(count)

    def render(self) -> bytes:
        """Return all counters in Prometheus' text format."""
        return generate_latest(self.registry)


_GAUGES = ("running", "waiting", "unfinished", "cache_bytes", "max_cache_bytes", "slot_bytes")
"""The figures of `Scheduler.stats` that are gauges; the others are counters."""


class _SchedulerStats(Collector):
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterable[Metric]:
        """Yield the scheduler's figures as they are now."""
        for name, value in self.scheduler.stats().items():
            kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            yield kind(f"bpe_llama_scheduler_{name}", f"The scheduler's {name.replace('_', ' ')}.", value=value)
