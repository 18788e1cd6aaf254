"""What is measured of replicas, and how many of them there should be, as metrics.

The rule: a series is there while its replica is, and while what it says is fresh; a number that is old is not told, for
an autoscaler would take it for new. Labels are targets and their replicas' names, which nobody who calls can make up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import Histogram
from vllm_chill.core.scaling.figures import ReplicaFigures
from vllm_chill.core.target import TargetRef

STALE_SECONDS = 30.0
_LABELS = ("target", "replica")


def _nothing() -> int | None:
    """How many replicas there should be, where nobody says."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """What is told of one target: its replicas, and how many there should be. `now` is on the clock of the figures.

    `desired` is the number that is asked for or will be, `recommended` the one that the policy comes to; None is none.
    """

    figures: Callable[[], Sequence[ReplicaFigures]]
    now: Callable[[], float]
    desired: Callable[[], int | None] = _nothing
    recommended: Callable[[], int | None] = _nothing


class ReplicaMetrics(Collector):
    """Read off what was measured, at the moment of the scrape; nothing is measured for it."""

    def __init__(self) -> None:
        self._followed: dict[TargetRef, Scaled] = {}

    def follow(self, ref: TargetRef, scaled: Scaled) -> None:
        """Tell of a target from now on."""
        self._followed[ref] = scaled

    def forget(self, ref: TargetRef) -> None:
        """Tell nothing of it any more."""
        self._followed.pop(ref, None)

    def collect(self) -> Iterator[Metric]:
        yield self._numbers(
            "vllm_chill_desired_replicas",
            "Replicas that there are to be: what the proxy asks for, or would ask for if it scaled.",
            lambda scaled: scaled.desired(),
        )
        yield self._numbers(
            "vllm_chill_recommended_replicas",
            "Replicas that the scaling policy comes to; not there without a policy.",
            lambda scaled: scaled.recommended(),
        )
        families = _Families()
        for ref, scaled in self._followed.items():
            now = scaled.now()
            for figures in scaled.figures():
                families.add((str(ref), figures.name), figures, now)
        yield from families.all

    def _numbers(self, name: str, documentation: str, number: Callable[[Scaled], int | None]) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=("target",))
        for ref, scaled in self._followed.items():
            if (replicas := number(scaled)) is not None:
                family.add_metric((str(ref),), replicas)
        return family


class _Families:
    """The families of one scrape, being filled."""

    def __init__(self) -> None:
        self._queue = _gauge("queue_length", "Requests that wait in the engine's own queue.")
        self._running = _gauge("running_requests", "Requests that the engine works on.")
        self._kv_cache = _gauge("kv_cache_usage_ratio", "The part of the engine's KV cache that is in use, 0 to 1.")
        self._gpu = _gauge("gpu_utilization_ratio", "How much the replica's GPUs are used, 0 to 1, the mean of them.")
        self._age = _gauge("scrape_age_seconds", "How old the replica's figures are; those over 30 s are left out.")
        # A histogram and no percentiles: those of several replicas cannot be put together, and buckets can.
        self._latency = HistogramMetricFamily(
            "vllm_chill_replica_inference_latency_seconds",
            "Latencies as the engine counts them: ttft to the first token, itl between two tokens, e2e of requests.",
            labels=(*_LABELS, "kind"),
        )
        self._tokens = CounterMetricFamily(
            "vllm_chill_replica_tokens",
            "Tokens as the engine counts them: of prompts, and generated.",
            labels=(*_LABELS, "kind"),
        )

    @property
    def all(self) -> tuple[Metric, ...]:
        return (self._queue, self._running, self._kv_cache, self._gpu, self._latency, self._tokens, self._age)

    def add(self, labels: tuple[str, str], figures: ReplicaFigures, now: float) -> None:
        """Take one replica."""
        gpu, looked = figures.gpu_percent, figures.looked
        if gpu is not None and now - gpu.at <= STALE_SECONDS:
            self._gpu.add_metric(labels, gpu.value / 100)
        if looked is not None:
            self._age.add_metric(labels, now - looked.at)
            if now - looked.at <= STALE_SECONDS:
                self._add_sample(labels, looked.sample)

    def _add_sample(self, labels: tuple[str, str], sample: EngineSample) -> None:
        for family, value in (
            (self._queue, sample.waiting),
            (self._running, sample.running),
            (self._kv_cache, None if sample.kv_cache_percent is None else sample.kv_cache_percent / 100),
        ):
            if value is not None:
                family.add_metric(labels, value)
        for kind, histogram in (("ttft", sample.ttft), ("itl", sample.itl), ("e2e", sample.e2e)):
            if histogram is not None:
                self._latency.add_metric((*labels, kind), _buckets(histogram), histogram.sum)
        for kind, count in (("prompt", sample.prompt_tokens), ("generation", sample.generation_tokens)):
            if count is not None:
                self._tokens.add_metric((*labels, kind), count)


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"vllm_chill_replica_{name}", documentation, labels=_LABELS)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    counted = zip(histogram.bounds, histogram.counts, strict=True)
    return [*((str(bound), count) for bound, count in counted), ("+Inf", histogram.count)]
