"""Counts queries and measures their time, in the form that Prometheus reads."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from search.pictures import Status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


class Counts:
    """Counts the queries of one server."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "camp_query_seconds", "Queries and the time that they took", ("query", "outcome"), buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        for name, value in (
            ("total", lambda: status().total),
            ("ready", lambda: status().ready),
            ("rejected", lambda: status().rejected_count),
        ):
            gauge = Gauge(f"camp_pictures_{name}", f"Pictures of the collection: {name}", registry=self._registry)
            gauge.set_function(value)

    @contextmanager
    def timed(self, query: str) -> Iterator[None]:
        """Count and time the body under the name `query`, even if it raises."""
        begun = time.perf_counter()
        outcome = "refused"
        try:
            yield
            outcome = "answered"
        finally:
            self._seconds.labels(query, outcome).observe(time.perf_counter() - begun)

    def text(self) -> bytes:
        """All counts in Prometheus's text form."""
        return generate_latest(self._registry)
