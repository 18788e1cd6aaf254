"""What is decided for variants, and how the controller of them does, as metrics: `wva_*` for autoscalers to go by, and
those that controllers of Kubernetes have, under the names that controller-runtime and client-go gave them.

The rule: a series is there while its variant is. What was decided last stays told while nothing can be measured, as an
autoscaler that found nothing would do something else; but only by who leads, as the sum of two is what nobody wants.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vllm_chill.core.saturation.decision import Direction, Reason

_CONTROLLER = "variantautoscaling"
_RECONCILE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
_CALL_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What is told of one variant: `decided_at` is in seconds since 1970, `saturation` from 0 to 1 or not known."""

    name: str
    namespace: str
    accelerator: str
    current: int
    desired: int
    saturation: float | None
    decided_at: float

    @property
    def ratio(self) -> float:
        """The replicas that there are to be for each that there is; without any, how many there are to be."""
        return float(self.desired) if not self.current else self.desired / self.current


@dataclass(slots=True)
class _Told:
    figures: VariantFigures
    scalings: dict[tuple[Direction, Reason], int] = field(default_factory=dict)


class VariantMetrics(Collector):
    """Those of all variants, by the keys of their objects. `instance` is the controller's, "" if it has none."""

    def __init__(self, instance: str = "") -> None:
        self._told: dict[str, _Told] = {}
        self._names: tuple[str, ...] = ("variant", "variant_name", "namespace", "accelerator_type")
        self._more: tuple[str, ...] = ()
        if instance:
            self._names += ("controller_instance",)
            self._more = (instance,)

    def tell(self, key: str, figures: VariantFigures) -> None:
        """Have this be what is told of a variant from now on."""
        told = self._told.get(key)
        if told is None or told.figures.accelerator != figures.accelerator:
            self._told[key] = _Told(figures, {} if told is None else told.scalings)
        else:
            told.figures = figures

    @property
    def told(self) -> KeysView[str]:
        """The keys of those that are told of."""
        return self._told.keys()

    def desired(self, key: str) -> int | None:
        """What is told of a variant's replicas that there are to be; None if nothing is told of it."""
        told = self._told.get(key)
        return None if told is None else told.figures.desired

    def scaled(self, key: str, direction: Direction, reason: Reason) -> None:
        """Take that it was decided that a variant, which is told of, is to have more or fewer replicas."""
        scalings = self._told[key].scalings
        scalings[direction, reason] = scalings.get((direction, reason), 0) + 1

    def forget(self, key: str) -> None:
        """Tell nothing of it any more."""
        self._told.pop(key, None)

    def clear(self) -> None:
        """Tell nothing of any."""
        self._told.clear()

    def collect(self) -> Iterator[Metric]:
        desired = self._gauge("desired_replicas", "Replicas that the variant is to have.")
        current = self._gauge("current_replicas", "Replicas that the variant's target is asked to have.")
        ratio = self._gauge(
            "desired_ratio", "Desired replicas for each current one; the desired ones if there is none."
        )
        saturation = self._gauge("saturation_level", "How saturated the variant's replicas are, 0 to 1, the mean.")
        decided = self._gauge("last_scaling_decision_timestamp", "When it was decided last, in seconds since 1970.")
        scalings = CounterMetricFamily(
            "wva_replica_scaling",
            "Decisions that a variant is to have more or fewer replicas.",
            labels=(*self._names, "direction", "reason"),
        )
        for told in self._told.values():
            one = told.figures
            labels = (one.name, one.name, one.namespace, one.accelerator, *self._more)
            desired.add_metric(labels, one.desired)
            current.add_metric(labels, one.current)
            ratio.add_metric(labels, one.ratio)
            if one.saturation is not None:
                saturation.add_metric(labels, one.saturation)
            decided.add_metric(labels, one.decided_at)
            for (direction, reason), count in told.scalings.items():
                scalings.add_metric((*labels, direction.value, reason.value), count)
        yield from (desired, current, ratio, saturation, decided, scalings)

    def _gauge(self, name: str, documentation: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"wva_{name}", documentation, labels=self._names)


class ControllerMetrics:
    """How the controller does, together with what it says of variants; on a registry of its own, or a proxy's."""

    def __init__(self, version: str, instance: str = "", registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.variants = VariantMetrics(instance)
        self.registry.register(self.variants)
        self._reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Visits of a model, by how they ended: success, or error, after which it is tried again.",
            ("controller", "result"),
            registry=self.registry,
        )
        self._errors = Counter(
            "controller_runtime_reconcile_errors_total",
            "Visits of a model that failed.",
            ("controller",),
            registry=self.registry,
        ).labels(_CONTROLLER)
        self._seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "How long a visit of a model took.",
            ("controller",),
            buckets=_RECONCILE_BUCKETS,
            registry=self.registry,
        ).labels(_CONTROLLER)
        self.depth = Gauge(
            "workqueue_depth", "Models that are due to be visited.", ("name",), registry=self.registry
        ).labels(_CONTROLLER)
        self._calls = Histogram(
            "rest_client_request_duration_seconds",
            "How long a call of the API server took.",
            ("verb",),
            buckets=_CALL_BUCKETS,
            registry=self.registry,
        )
        self._answers = Counter(
            "rest_client_requests_total",
            "Calls of the API server, by what came of them: 2xx to 5xx, or unreachable.",
            ("method", "code"),
            registry=self.registry,
        )
        self._leads = Gauge(
            "leader_election_master_status",
            "1 while this replica of the controller leads.",
            ("name",),
            registry=self.registry,
        ).labels(_CONTROLLER)
        self._misses = Counter(
            "wva_pod_mapping_miss_total",
            "How often a pod of an engine was found that belongs to no variant that is known.",
            registry=self.registry,
        )
        if registry is None:
            Gauge(
                "vllm_chill_build_info", "The version that runs; always 1.", ("version",), registry=self.registry
            ).labels(version).set(1)

    def visited(self, seconds: float, failed: bool) -> None:
        """Take that a model was visited."""
        self._seconds.observe(seconds)
        self._reconciles.labels(_CONTROLLER, "error" if failed else "success").inc()
        if failed:
            self._errors.inc()

    def missed(self, pods: int) -> None:
        """Take that so many pods of engines were found that belong to no variant that is known."""
        self._misses.inc(pods)

    def called(self, verb: str, outcome: str, seconds: float) -> None:
        """Take that the API server was called: the outcome is 2xx to 5xx, or unreachable."""
        self._calls.labels(verb).observe(seconds)
        self._answers.labels(verb, outcome).inc()

    def leads(self, leading: bool) -> None:
        """Take that this replica of the controller leads, or no longer does, from which on it tells of no variant."""
        self._leads.set(leading)
        if not leading:
            self.variants.clear()
