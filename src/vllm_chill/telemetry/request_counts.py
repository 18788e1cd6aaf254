"""Requests that ended, and how long they took: numbers that a request adds to, and the metrics made of them.

Every request pays for them, so counting one is two additions; the families are put together when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from vllm_chill.core.routing import Route

# From a cached answer of a small model to a cold start of a large one: 5 ms to 30 min.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800)
_BOUNDS = (*(str(float(bound)) for bound in REQUEST_BUCKETS), "+Inf")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RouteCounts:
    """One route's requests. `by_answer` counts them by method and status; `in_bucket` by duration, one more bucket
    than there are bounds; `seconds` is the sum of their durations.
    """

    __slots__ = ("by_answer", "in_bucket", "seconds")

    def __init__(self) -> None:
        self.by_answer: dict[tuple[str, int], int] = {}
        self.in_bucket = [0] * (len(REQUEST_BUCKETS) + 1)
        self.seconds = 0.0

    def count(self, method: str, status: int, seconds: float) -> None:
        """Take that a request has ended, after so many seconds."""
        answer = (method if method in _METHODS else "OTHER", status)
        self.by_answer[answer] = self.by_answer.get(answer, 0) + 1
        self.in_bucket[bisect_left(REQUEST_BUCKETS, seconds)] += 1
        self.seconds += seconds


class RequestCounts(Collector):
    """All routes' requests. `proxied` are those of the route that most of them take."""

    def __init__(self) -> None:
        self.routes = {route: RouteCounts() for route in Route}
        self.proxied = self.routes[Route.PROXIED]

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        ended = CounterMetricFamily(
            "vllm_chill_requests",
            "Requests that ended. status is what the caller got, or 499 if the caller left first.",
            labels=("method", "route", "status"),
        )
        durations = HistogramMetricFamily(
            "vllm_chill_request_duration_seconds",
            "Time from a request's head to the last byte of its answer, the hold included.",
            labels=("route",),
        )
        for route, counts in self.routes.items():
            for (method, status), count in counts.by_answer.items():
                ended.add_metric((method, route.value, str(status)), count)
            if counts.by_answer:
                durations.add_metric((route.value,), list(_cumulative(counts.in_bucket)), counts.seconds)
        yield ended
        yield durations


def _cumulative(in_bucket: list[int]) -> Iterator[tuple[str, float]]:
    so_far = 0
    for bound, count in zip(_BOUNDS, in_bucket, strict=True):
        so_far += count
        yield bound, so_far
