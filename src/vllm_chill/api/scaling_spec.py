"""The spec of a vLLMScalingPolicy: every field, declared once, with what it does, its default and the reason.

The rule: what is left out has the value that HPA or a VLLMModel gives it, so that nobody has to learn another. The CRD
and the reference page are made from these fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from vllm_chill.api.resource import Checked, Conflict
from vllm_chill.api.scale_target import API_VERSION, APPS, KIND, ApiVersion, KindName, ScaleTargetRef
from vllm_chill.api.spec_parts import NAME, Part, declared
from vllm_chill.api.spec_types import Count, CountOrZero, Interval, Name, Number, Switch, interval_seconds
from vllm_chill.core.scaling.policy import Select, Unit
from vllm_chill.core.scaling.schedules import check_schedule
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal

_MANY = 100
_MOST_REPLICAS = 1000
_INTERVAL = "a number of seconds, or a duration such as 90s, 5m or 1h30m"
_REPLICAS = "a number of replicas, at least 1"
_REPLICAS_OR_ZERO = "a number of replicas, 0 or more"
_ABOVE_ZERO = "a number above 0"
_CRON = 'a cron expression of five fields, such as "0 8 * * mon-fri"'

Replicas = Annotated[Count, Field(le=_MOST_REPLICAS)]
ReplicasOrZero = Annotated[CountOrZero, Field(le=_MOST_REPLICAS)]
AboveZero = Annotated[Number, Field(gt=0, le=10**12)]
CronText = Annotated[str, Field(min_length=9, max_length=200, pattern=r"^\S+( +\S+){4}$")]

OF_TARGET = (Aggregation.AVERAGE, Aggregation.SUM)
OF_REPLICAS = (Aggregation.AVERAGE, Aggregation.MAX, Aggregation.SUM)
OF_LATENCY = (Aggregation.TTFT, Aggregation.E2E, Aggregation.ITL)
AGGREGATIONS: dict[Metric, tuple[Aggregation, ...]] = {
    Metric.QUEUE_LENGTH: OF_REPLICAS,
    Metric.LATENCY: OF_LATENCY,
    Metric.GPU_UTILIZATION: (Aggregation.AVERAGE, Aggregation.MAX),
    Metric.KV_CACHE_USAGE: (Aggregation.AVERAGE, Aggregation.MAX),
    Metric.RUNNING_REQUESTS: OF_REPLICAS,
    Metric.HELD_REQUESTS: OF_TARGET,
    Metric.TOKENS_PER_SECOND: OF_REPLICAS,
    Metric.PROMQL: OF_TARGET,
}
"""What may be said of each metric, the default first."""
_PERCENTAGES = (Metric.GPU_UTILIZATION, Metric.KV_CACHE_USAGE)
_WINDOWED = (Metric.LATENCY, Metric.TOKENS_PER_SECOND)
_PERCENTILE = 95.0
_WINDOW_SECONDS = 60.0

MODEL_API_VERSION = "vllm.sir-alfred.io/v1alpha1"


class ScaleTarget(ScaleTargetRef):
    """What is scaled, as Kubernetes' ObjectReference."""

    STAND_INS: ClassVar = {"name": "unknown"}
    KNOWN: ClassVar = {**APPS, "VLLMModel": MODEL_API_VERSION}

    kind: KindName = declared(
        "Deployment", KIND, "Deployment, StatefulSet, VLLMModel, or anything that has a scale subresource.",
    )  # fmt: skip
    name: Name = declared(
        ..., NAME,
        "Name of the object, in the policy's namespace; or of a model that vllm-chill serves, by any of its names.",
    )  # fmt: skip
    api_version: ApiVersion | None = declared(
        None, API_VERSION,
        "Group and version of the kind. Not set: apps/v1, or a VLLMModel's own; other kinds need it.",
    )  # fmt: skip
    namespace: Annotated[str, Field(max_length=63)] | None = declared(
        None, "the policy's own namespace",
        "The policy's own namespace, or nothing: a policy scales nothing elsewhere.",
    )  # fmt: skip
    uid: str | None = declared(None, "a text", "Ignored, as the name says which one it is.")
    resource_version: str | None = declared(None, "a text", "Ignored.")
    field_path: str | None = declared(None, "a text", "Ignored.")

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        yield from super().conflicts()
        if self.kind == "VLLMModel" and self.namespace:
            yield Conflict("namespace", "a VLLMModel is in no namespace; leave it out", ("namespace", "kind"))


class ScalingRule(Checked):
    """One thing to scale by."""

    STAND_INS: ClassVar = {"metric": "queue_length", "threshold": 1}

    metric: Metric = declared(
        ..., f"one of {', '.join(Metric)}",
        "What is looked at. queue_length, running_requests and held_requests count requests; latency is in "
        "milliseconds; gpu_utilization and kv_cache_usage are percentages; promql is whatever the query gives.",
    )  # fmt: skip
    threshold: AboveZero = declared(..., _ABOVE_ZERO, "Scale up when the metric is above this.")
    target: AboveZero | None = declared(
        None, _ABOVE_ZERO,
        "Scale so that it comes to this. Not set: the threshold. A lower one leaves a band between the two in which "
        "nothing is scaled up.",
    )  # fmt: skip
    aggregation: Aggregation | None = declared(
        None, f"one of {', '.join(OF_REPLICAS)}; for latency, one of {', '.join(OF_LATENCY)}",
        "Of a latency, which one: to the first token, of the whole request, or between two tokens; not set: ttft, as "
        "another replica shortens the wait in the queue before anything else. Of any other metric, what the threshold "
        "is compared with: average, what each replica has; max, the highest of them; sum, all of them together, or "
        "what a query gives as it is. Not set: average, as HPA's AverageValue.",
    )  # fmt: skip
    percentile: Annotated[Number, Field(ge=0, le=100)] | None = declared(
        None, "a number from 0 to 100", "Of a latency. Not set: 95, as an average does not show those who wait.",
    )  # fmt: skip
    window: Interval | None = declared(
        None, _INTERVAL, "Over how long a latency, or tokens_per_second, is measured. Not set: 60 seconds.",
    )  # fmt: skip
    query: Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"\S")] | None = declared(
        None, "an expression in PromQL", "What Prometheus is asked, with promql.",
    )  # fmt: skip

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        known = AGGREGATIONS[self.metric]
        if self.aggregation is not None and self.aggregation not in known:
            yield Conflict(
                "aggregation",
                f'"{self.aggregation}" has no meaning for {self.metric}; give one of {", ".join(known)}',
                ("aggregation", "metric"),
            )
        if self.percentile is not None and self.metric is not Metric.LATENCY:
            yield Conflict("percentile", f"it has no meaning for {self.metric}; leave it out", ("percentile", "metric"))
        if self.window is not None and self.metric not in _WINDOWED:
            yield Conflict("window", f"it has no meaning for {self.metric}; leave it out", ("window", "metric"))
        if self.metric is Metric.PROMQL and self.query is None:
            yield Conflict(
                "query", "promql needs it; give the expression that Prometheus is asked", ("query", "metric")
            )
        if self.metric is not Metric.PROMQL and self.query is not None:
            yield Conflict("query", f"it has no meaning for {self.metric}; leave it out", ("query", "metric"))
        if self.metric in _PERCENTAGES and self.threshold > 100:
            yield Conflict(
                "threshold", f"{self.threshold:g} percent is never reached; give at most 100", ("threshold", "metric")
            )
        if self.target is not None and self.target > self.threshold:
            yield Conflict(
                "target",
                f"{self.target:g} is more than the {self.threshold:g} of threshold; give at most that",
                ("target", "threshold"),
            )

    @property
    def signal(self) -> Signal:
        """What has to be measured for it."""
        percentile = _PERCENTILE if self.percentile is None else self.percentile
        window = _WINDOW_SECONDS if self.window is None else interval_seconds(self.window)
        return Signal(
            self.metric,
            self.aggregation or AGGREGATIONS[self.metric][0],
            float(percentile) if self.metric is Metric.LATENCY else None,
            window if self.metric in _WINDOWED else None,
            self.query,
        )


class ScalingStep(Part):
    """How much may change within a period, as HPA's HPAScalingPolicy."""

    type: Unit = declared(..., "Pods or Percent", "Whether value is a number of replicas, or a percentage of them.")
    value: Count = declared(..., "a whole number, at least 1", "How many may be added, or removed, within the period.")
    period_seconds: Annotated[Count, Field(le=1800)] = declared(
        ..., "a number of seconds from 1 to 1800", "The period."
    )


class Direction(Part):
    """How fast one direction may go, as HPA's HPAScalingRules."""

    stabilization_window_seconds: Annotated[CountOrZero, Field(le=3600)] | None = declared(
        None, "a number of seconds from 0 to 3600",
        "Of the recommendations within this time the one that changes least is taken. Not set: 300 down, 0 up.",
    )  # fmt: skip
    select_policy: Select | None = declared(
        None, "Max, Min or Disabled",
        "Whether the policy that allows the most counts, or the least; Disabled: it never goes this way. Not set: Max.",
    )  # fmt: skip
    policies: Annotated[tuple[ScalingStep, ...], Field(min_length=1, max_length=_MANY)] | None = declared(
        None, "a list of at least one {type: Pods or Percent, value: NUMBER, periodSeconds: SECONDS}",
        "How much may change within a period. Not set: up by 4 replicas or by 100 percent in 15 seconds, whichever is "
        "more; down by 100 percent.",
    )  # fmt: skip


class Behavior(Part):
    """How fast it may go, as HPA's behavior."""

    scale_up: Direction | None = declared(
        None, "{stabilizationWindowSeconds: …, policies: […], selectPolicy: …}", "Up."
    )
    scale_down: Direction | None = declared(
        None, "{stabilizationWindowSeconds: …, policies: […], selectPolicy: …}", "Down."
    )


class FallbackSpec(Part):
    """What to do without data."""

    replicas: Replicas = declared(..., _REPLICAS, "So many replicas, within minReplicas and maxReplicas.")
    failure_threshold: Count = declared(
        3, "a whole number, at least 1", "After so many decisions in a row without any data. Not set: 3."
    )


class ScheduleSpec(Checked):
    """A time in which more replicas are there."""

    STAND_INS: ClassVar = {"start": "0 8 * * *", "end": "0 18 * * *", "minReplicas": 1}

    start: CronText = declared(..., _CRON, "When it begins.")
    end: CronText = declared(..., _CRON, "When it ends.")
    timezone: Annotated[str, Field(min_length=1, max_length=100)] = declared(
        "UTC", "a time zone, such as Europe/Berlin", "The time zone of both, by its IANA name. Not set: UTC."
    )
    min_replicas: Replicas = declared(..., _REPLICAS, "At least so many replicas in between.")

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        problem = check_schedule(self.start, self.end, self.timezone)
        if problem is not None:
            yield Conflict("", problem, ("start", "end", "timezone"))


class ScalingPolicySpec(Checked):
    """What is scaled, within which bounds, and by what."""

    STAND_INS: ClassVar = {"scaleTargetRef": {"name": "unknown"}, "maxReplicas": _MOST_REPLICAS}

    scale_target_ref: ScaleTarget = declared(..., "{kind: Deployment, name: NAME}", "What is scaled.")
    min_replicas: ReplicasOrZero = declared(
        0, _REPLICAS_OR_ZERO,
        "The fewest replicas. Not set: 0, as of a VLLMModel, and as a program in Go leaves a number out: it sleeps "
        "when it is idle. At 1 or more it never sleeps.",
    )  # fmt: skip
    max_replicas: Replicas = declared(..., _REPLICAS, "The most replicas.")
    scaling_rules: Annotated[tuple[ScalingRule, ...], Field(max_length=_MANY)] | None = declared(
        None, "a list of {metric: NAME, threshold: NUMBER}, none twice",
        "What it is scaled by; the rule that asks for the most replicas counts. Not set: queue_length above 5. An "
        "empty list: nothing, so that minReplicas and the schedule alone say how many there are.",
    )  # fmt: skip
    behavior: Behavior | None = declared(
        None, "HPA's behavior: {scaleUp: {…}, scaleDown: {…}}", "How fast it may go. Not set: HPA's defaults.",
    )  # fmt: skip
    tolerance: Annotated[Number, Field(ge=0, le=1)] = declared(
        0.1, "a number from 0 to 1, such as 0.1",
        "By what part a metric may be off its target before anything is scaled. Not set: 0.1, as HPA has it.",
    )  # fmt: skip
    polling_interval: Interval = declared(15, _INTERVAL, "How often it is decided. Not set: 15 seconds, as HPA does.")
    idle_timeout: Interval | None = declared(
        None, _INTERVAL,
        "With minReplicas 0: put it to sleep when it has been unused for this long. Not set: the model's idleTimeout, "
        "or the proxy's --idle-timeout.",
    )  # fmt: skip
    fallback: FallbackSpec | None = declared(
        None, "{replicas: NUMBER, failureThreshold: NUMBER}",
        "What to do when no metric can be had for some time. Not set: the number of replicas stays.",
    )  # fmt: skip
    schedule: Annotated[tuple[ScheduleSpec, ...], Field(max_length=_MANY)] = declared(
        (), "a list of {start: CRON, end: CRON, timezone: ZONE, minReplicas: NUMBER}",
        "Times in which more replicas are there, whatever is measured.",
    )  # fmt: skip
    paused: Switch = declared(False, "true or false", "Decide nothing: the number of replicas stays as it is.")

    def conflicts(self) -> tuple[Conflict, ...]:
        """Everything that no field can know by itself."""
        return (*_bounds(self), *_twice(self), *_schedule(self))


def _bounds(spec: ScalingPolicySpec) -> Iterator[Conflict]:
    least, most = spec.min_replicas, spec.max_replicas
    if least > most:
        yield Conflict(
            "minReplicas",
            f"{least} is more than the {most} of maxReplicas; give at most that",
            ("minReplicas", "maxReplicas"),
        )
    elif spec.fallback is not None and not max(1, least) <= spec.fallback.replicas <= most:
        yield Conflict(
            "fallback.replicas",
            f"{spec.fallback.replicas} is not within minReplicas and maxReplicas; give {max(1, least)} to {most}",
            ("fallback", "minReplicas", "maxReplicas"),
        )
    if interval_seconds(spec.polling_interval) < 1:
        yield Conflict(
            "pollingInterval", f'"{spec.polling_interval}" is too often; give at least 1s', ("pollingInterval",)
        )


def _twice(spec: ScalingPolicySpec) -> Iterator[Conflict]:
    count = Counter(rule.signal for rule in spec.scaling_rules or ())
    for signal in (signal for signal, times in count.items() if times > 1):
        yield Conflict("scalingRules", f"{signal.metric} is there more than once; give it once", ("scalingRules",))


def _schedule(spec: ScalingPolicySpec) -> Iterator[Conflict]:
    for index, one in enumerate(spec.schedule):
        if one.min_replicas > spec.max_replicas:
            yield Conflict(
                f"schedule[{index}].minReplicas",
                f"{one.min_replicas} is more than the {spec.max_replicas} of maxReplicas; give at most that",
                ("schedule", "maxReplicas"),
            )
