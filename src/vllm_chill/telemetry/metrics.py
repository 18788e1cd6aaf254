"""Every metric, declared once, on a registry that is passed in.

The rule: labels are bounded (a route, a method, a status, a target or a model of the catalogue; never a path, a user
or a name that a caller gives) and a target that is gone leaves no series. Units are in the names, and what is a state
is read off the target when somebody asks, so that a request pays for counts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from vllm_chill.core.routing import Route
from vllm_chill.core.target import Asleep, Draining, Failed, Queued, Ready, Target, TargetRef, Unknown, Waking
from vllm_chill.telemetry.gpu_seconds import GpuSeconds
from vllm_chill.telemetry.replica_metrics import ReplicaMetrics
from vllm_chill.telemetry.request_counts import RequestCounts

WAKE_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 180, 240, 300, 420, 600, 900, 1200, 1800)

# From a container that is there at once to a large model's download: 0.1 s to 30 min.
START_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1200, 1800)

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody reads

_STATES: dict[type, int] = {Unknown: 0, Asleep: 0, Failed: 0, Queued: 0, Waking: 1, Ready: 2, Draining: 3}


def vllm_state(target: Target) -> int:
    """The target's phase as a number: 0 stopped, 1 starting, 2 running, 3 stopping."""
    return _STATES[type(target.phase)]


@dataclass(frozen=True, slots=True)
class _Followed:
    target: Callable[[], Target]
    now: Callable[[], float]
    model: str | None
    sees: Callable[[], bool] | None


class _TargetGauges(Collector):
    """Gauges read off each target at the moment of the scrape."""

    def __init__(self) -> None:
        self.followed: dict[TargetRef, _Followed] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, documentation, value in _GAUGES:
            family = GaugeMetricFamily(name, documentation, labels=("target",))
            for ref, one in self.followed.items():
                family.add_metric((str(ref),), value(one.target(), one.now()))
            yield family
        current = GaugeMetricFamily(
            "vllm_chill_current_model", "1 for each model of the catalogue that is ready.", labels=("model_name",)
        )
        for one in self.followed.values():
            if one.model is not None and isinstance(one.target().phase, Ready):
                current.add_metric((one.model,), 1)
        yield current
        seen = GaugeMetricFamily(
            "vllm_chill_backend_up",
            "1 while the backend tells how the target is, 0 while it does not: mostly the API server.",
            labels=("target",),
        )
        for ref, one in self.followed.items():
            if one.sees is not None:
                seen.add_metric((str(ref),), one.sees())
        yield seen


def _idle_seconds(target: Target, now: float) -> float:
    if isinstance(target.phase, Ready) and not target.waiting and not target.in_flight:
        return now - target.phase.idle_since
    return 0.0


_GAUGES: tuple[tuple[str, str, Callable[[Target, float], float]], ...] = (
    (
        "vllm_chill_requests_waiting",
        "Requests that are held until the target is ready.",
        lambda target, _: target.waiting,
    ),
    ("vllm_chill_requests_in_flight", "Requests that the target is answering.", lambda target, _: target.in_flight),
    (
        "vllm_chill_current_replicas",
        "Replicas that the target was last seen to be asked for.",
        lambda target, _: target.observed.replicas if target.observed is not None else 0,
    ),
    (
        "vllm_chill_idle_time_seconds",
        "For how long the target has been ready and unused; 0 in use.",
        _idle_seconds,
    ),
    (
        "vllm_chill_vllm_state",
        "Phase of the target: 0 stopped, 1 starting, 2 running, 3 stopping.",
        lambda target, _: vllm_state(target),
    ),
)


class Metrics:
    """All metrics of one proxy, and their exposition."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        self.registry = registry
        self.requests = RequestCounts()
        registry.register(self.requests)
        self.wake_duration = Histogram(
            "vllm_chill_wake_duration_seconds",
            "Time from the wish for a replica to the target's being ready.",
            ("target",),
            buckets=WAKE_BUCKETS,
            registry=registry,
        )
        self.wake_failures = Counter(
            "vllm_chill_wake_failures_total",
            "Wakes that failed: the target would not have become ready by waiting.",
            ("target",),
            registry=registry,
        )
        self.cold_start_phases = Histogram(
            "vllm_chill_cold_start_phase_seconds",
            "Time that a start which became ready spent in each of its phases; they add up to its whole time.",
            ("target", "phase"),
            buckets=START_BUCKETS,
            registry=registry,
        )
        self.hold_duration = Histogram(
            "vllm_chill_hold_duration_seconds",
            "Time for which a request was held, whatever came of it; requests to a ready target are not held.",
            ("target",),
            buckets=WAKE_BUCKETS,
            registry=registry,
        )
        self.scale_operations = Counter(
            "vllm_chill_scale_operations_total",
            "Writes of a number of replicas to the backend.",
            ("target", "direction", "outcome"),
            registry=registry,
        )
        self.switches = Counter(
            "vllm_chill_managed_operations_total",
            "Models that were woken in the place of another one, which had to sleep for that.",
            ("from_model", "to_model", "status"),
            registry=registry,
        )
        self.switch_duration = Histogram(
            "vllm_chill_managed_operation_duration_seconds",
            "Time from when the other model was told to make room until the one in its place was ready.",
            ("from_model", "to_model"),
            buckets=WAKE_BUCKETS,
            registry=registry,
        )
        self.replays = Counter(
            "vllm_chill_replays_total",
            "Requests that were sent a second time because the upstream died before its first response byte.",
            registry=registry,
        )
        self.replica_ejections = Counter(
            "vllm_chill_replica_ejections_total",
            "Replicas that got no more requests for a while, as they refused, reset or failed them.",
            ("target",),
            registry=registry,
        )
        self.responses_cut = Counter(
            "vllm_chill_responses_cut_total",
            "Responses that ended early because the upstream died within them.",
            registry=registry,
        )
        self.responses_aborted = Counter(
            "vllm_chill_responses_aborted_total",
            'Answers that the engine gave up, with finish_reason "abort": vLLM does when it is told to end.',
            registry=registry,
        )
        self.refused = Counter(
            "vllm_chill_requests_refused_total",
            "Requests that were refused before they were any: bytes that are no HTTP, heads that are too large or too "
            "slow, connections beyond the limit. They are in no other metric.",
            ("code",),
            registry=registry,
        )
        Gauge("vllm_chill_build_info", "The version that runs; always 1.", ("version",), registry=registry).labels(
            version
        ).set(1)
        self._leader = Gauge(
            "vllm_chill_leader",
            "1 if this proxy is the one of several that puts targets to sleep, as one that is alone always is.",
            registry=registry,
        )
        self._leader.set(1)
        self._peers = Gauge(
            "vllm_chill_peers", "Other proxies that have reported lately who they serve.", registry=registry
        )
        self._reload_successful = Gauge(
            "vllm_chill_config_last_reload_successful",
            "1 if the configuration that was read last is in force, 0 if the one before it holds on.",
            registry=registry,
        )
        self._reload_successful.set(1)
        self._reload_time = Gauge(
            "vllm_chill_config_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was read, in seconds since 1970.",
            registry=registry,
        )
        ProcessCollector(registry=registry)
        self._gauges = _TargetGauges()
        registry.register(self._gauges)
        self.replicas = ReplicaMetrics()
        registry.register(self.replicas)
        self.gpu_seconds = GpuSeconds()
        registry.register(self.gpu_seconds)

    def follow(
        self,
        target: Callable[[], Target],
        now: Callable[[], float],
        model: str | None = None,
        sees: Callable[[], bool] | None = None,
    ) -> None:
        """Expose the state of a target; `now` is on the clock of its phases, `model` its name in the catalogue, and
        `sees` whether its backend tells how it is.

        What counts is there from the beginning, at 0: a Prometheus takes no first sample for an increase.
        """
        ref = target().ref
        self._gauges.followed[ref] = _Followed(target, now, model, sees)
        for counted in (self.replica_ejections, self.wake_failures, self.wake_duration, self.hold_duration):
            counted.labels(str(ref))
        for direction in ("up", "down"):
            for outcome in ("success", "failure"):
                self.scale_operations.labels(str(ref), direction, outcome)

    def follow_peers(self, leads: Callable[[], bool], others: Callable[[], int]) -> None:
        """Expose how this proxy stands to others that serve the same targets."""
        self._leader.set_function(leads)
        self._peers.set_function(others)

    def follow_configuration(self, successful: Callable[[], bool], loaded: Callable[[], float]) -> None:
        """Expose whether the configuration that was read last is in force, and when one was read that is."""
        self._reload_successful.set_function(successful)
        self._reload_time.set_function(loaded)

    def forget(self, ref: TargetRef) -> None:
        """Expose nothing of a target any more. To be called once its controller has ended: what would be counted after
        that would be there again.
        """
        followed = self._gauges.followed.pop(ref, None)
        self.replicas.forget(ref)
        for metric in (
            self.wake_duration,
            self.wake_failures,
            self.hold_duration,
            self.scale_operations,
            self.cold_start_phases,
            self.replica_ejections,
        ):
            metric.remove_by_labels({"target": str(ref)})
        if followed is not None and followed.model is not None:
            for metric in (self.switches, self.switch_duration):
                metric.remove_by_labels({"from_model": followed.model})
                metric.remove_by_labels({"to_model": followed.model})

    def switched(self, from_: str, to: str, seconds: float, ok: bool) -> None:
        """Count a switch between two models of the catalogue, by the names that they are followed by."""
        self.switches.labels(from_, to, "success" if ok else "failure").inc()
        if ok:
            self.switch_duration.labels(from_, to).observe(seconds)

    def request_ended(self, method: str, route: Route, status: int, seconds: float) -> None:
        """Count one request and its time."""
        self.requests.routes[route].count(method, status, seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The page for a scraper that accepts `accept`, and its content type: Prometheus text or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
