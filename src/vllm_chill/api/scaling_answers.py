"""What /proxy/scaling/* takes and answers: what is measured of replicas, a policy and what it decided, and a number of
replicas that is set by hand.

The names of fields are those of vLLMScalingPolicy, so that what is read here and what `kubectl get vsp -o yaml` shows
are the same words. What is not known is null, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from vllm_chill.api.spec_types import Duration
from vllm_chill.api.status import PhaseName
from vllm_chill.core.lifecycle import desired_replicas
from vllm_chill.core.model_status import Condition
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decision import Asked, Decision
from vllm_chill.core.scaling.override import Override, told
from vllm_chill.core.scaling.policy import Fallback, Pace, Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Replica, Target

PERCENTILE, WINDOW_SECONDS = 95.0, 60.0
"""Of the latencies and rates that are shown where no rule says otherwise."""

_LATENCIES = {
    name: Signal(Metric.LATENCY, name, percentile=PERCENTILE, window_seconds=WINDOW_SECONDS)
    for name in (Aggregation.TTFT, Aggregation.E2E, Aggregation.ITL)
}
_OF_REPLICA = {
    Metric.QUEUE_LENGTH: Signal(Metric.QUEUE_LENGTH),
    Metric.RUNNING_REQUESTS: Signal(Metric.RUNNING_REQUESTS),
    Metric.KV_CACHE_USAGE: Signal(Metric.KV_CACHE_USAGE),
    Metric.GPU_UTILIZATION: Signal(Metric.GPU_UTILIZATION),
    Metric.TOKENS_PER_SECOND: Signal(Metric.TOKENS_PER_SECOND, window_seconds=WINDOW_SECONDS),
}
SHOWN: frozenset[Signal] = frozenset({*_LATENCIES.values(), *_OF_REPLICA.values()})
"""What is asked of whoever measures, to be shown."""


class Answer(BaseModel):
    """A part of an answer: its names are as Kubernetes writes them."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class Measured(Answer):
    """A number, and how old it is."""

    value: float
    age_seconds: float


class Latency(Answer):
    """Milliseconds that requests took: `percentile` of those that ended in the last `windowSeconds`."""

    percentile: float = PERCENTILE
    window_seconds: float = WINDOW_SECONDS
    ttft: Measured | None
    """To the first token."""
    e2e: Measured | None = Field(alias="e2e")
    """The whole of a request, in the engine."""
    itl: Measured | None
    """Between two tokens."""


class ReplicaMetrics(Answer):
    """What is measured of one replica; the answer to GET /proxy/scaling/metrics/{pod}."""

    pod: str
    target: str
    model: str | None
    """What requests call it, where there is a catalogue."""
    endpoint: str | None
    ready: bool
    ready_seconds: float | None
    """For how long it has been ready."""
    leaving: bool
    """Whether it is to go, and gets no new request."""
    in_flight: int | None
    """Requests that this proxy has there; null where the replica has no address of its own."""
    queue_length: Measured | None
    """Requests that wait in the engine."""
    running_requests: Measured | None
    """Requests that it works on."""
    kv_cache_usage: Measured | None
    """Percent."""
    gpu_utilization: Measured | None
    """Percent."""
    tokens_per_second: Measured | None
    latency: Latency


class ReplicaCount(Answer):
    """The replicas of a target: asked for now, as last seen; wanted; and ready."""

    current: int | None
    desired: int | None
    ready: int | None


class TargetMetrics(Answer):
    """What is measured of one target."""

    target: str
    model: str | None
    phase: PhaseName
    replicas: ReplicaCount
    held_requests: int
    """Requests that are held in the proxy."""
    latency: Latency
    """Over the requests of all replicas."""
    pods: list[ReplicaMetrics]


class ScalingMetrics(Answer):
    """The answer to GET /proxy/scaling/metrics."""

    timestamp: str
    targets: list[TargetMetrics]


def _whole(value: object) -> object:
    """A whole number, though it be written as 2.0, which is the same one in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class AdjustAsked(BaseModel):
    """The body of POST /proxy/scaling/replicas."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel)

    model: str | None = Field(None, min_length=1, max_length=1024)
    """Any name of a model, or its target's; that of requests which name none if it is not given."""
    target_replicas: Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
    """Within the bounds of its policy; to have none is what operations/stop is for."""
    ttl: Duration | None = None
    """How long it holds, such as 30m; --override-ttl if it is not given."""
    by: str | None = Field(None, min_length=1, max_length=100)
    """Who wants it so, to be shown with it. X-Forwarded-User comes first."""


class OverrideAnswer(Answer):
    """A number of replicas that was set by hand."""

    replicas: int
    by: str
    since: str
    expires: str
    expires_in_seconds: float


class Adjusted(Answer):
    """The answer to POST and DELETE /proxy/scaling/replicas."""

    status: Literal["success"] = "success"
    message: str
    target: str
    model: str | None
    replicas: ReplicaCount
    override: OverrideAnswer | None


class RuleAnswer(Answer):
    """One rule, and what it made of the last readings."""

    name: str
    """What its metric is called in a trail, with what tells it from others."""
    metric: str
    aggregation: str
    percentile: float | None
    window_seconds: float | None
    query: str | None
    threshold: float
    target: float
    current: float | None
    """The metric's value, as the rule compares it; null if it is missing or too old."""
    age_seconds: float | None
    replicas: int | None
    """How many it asks for; null if it has nothing to say."""


class StepAnswer(Answer):
    """How much may change within a period."""

    type: str
    value: int
    period_seconds: float


class PaceAnswer(Answer):
    """How fast one direction may go."""

    stabilization_window_seconds: float
    select_policy: str
    policies: list[StepAnswer]


class BehaviorAnswer(Answer):
    """How fast it may go, as HPA's behavior."""

    scale_up: PaceAnswer
    scale_down: PaceAnswer


class FallbackAnswer(Answer):
    """What to have without any data."""

    replicas: int
    failure_threshold: int


class ScheduleAnswer(Answer):
    """At least so many between two times."""

    start: str
    end: str
    timezone: str
    min_replicas: int


class StepTaken(Answer):
    """One step of a decision."""

    stage: str
    replicas: int
    reason: str


class DecisionAnswer(Answer):
    """The last decision, and how it came about."""

    time: str
    age_seconds: float
    replicas: int
    recommended: int
    """What the rules asked for, before it was held, paced and bounded."""
    limited: str
    """Why it is not what was recommended, as HPA's condition ScalingLimited has it."""
    measured: bool
    """Whether any rule had data."""
    fallen_back: bool
    """Whether the policy's fallback stands in for it."""
    reason: str
    """The step that it rests on, in words."""
    trail: list[StepTaken]


class ConditionAnswer(Answer):
    """Something that is so, or not."""

    type: str
    status: str
    reason: str
    message: str


class PolicyAnswer(Answer):
    """The answer to GET /proxy/scaling/policy/{model}."""

    target: str
    model: str | None
    policy: str
    source: str
    """Where it comes from, in words."""
    paused: bool
    min_replicas: int
    max_replicas: int
    scaling_rules: list[RuleAnswer]
    behavior: BehaviorAnswer
    tolerance: float
    polling_interval_seconds: float
    idle_timeout_seconds: float | None
    """Null: as the model, or the proxy's settings, have it."""
    fallback: FallbackAnswer | None
    schedule: list[ScheduleAnswer]
    replicas: ReplicaCount
    override: OverrideAnswer | None
    conflict: str | None
    """Who else writes the number of replicas, so that this policy keeps its hands off."""
    decision: DecisionAnswer | None
    conditions: list[ConditionAnswer]


class Policies(Answer):
    """The answer to GET /proxy/scaling/policy."""

    policies: list[PolicyAnswer]
    without_policy: list[str]
    """The targets that nothing scales from 1 on."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on both clocks: that of the phases, in seconds, and that on the wall."""

    now: float
    wall: datetime

    def age(self, at: float) -> float:
        """How long ago that was, in seconds."""
        return round(max(0.0, self.now - at), 1)

    def text(self, at: float) -> str:
        """When that was, as RFC 3339 has it, to the second."""
        moment = self.wall + timedelta(seconds=at - self.now)
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def count_of(target: Target) -> ReplicaCount:
    """How many replicas there are, are wanted, and are ready."""
    seen = target.observed
    return ReplicaCount(
        current=None if seen is None else seen.replicas,
        desired=desired_replicas(target),
        ready=None if seen is None else len(seen.serving),
    )


def replica_metrics(
    replica: Replica,
    reading: ReplicaReading | None,
    moment: Moment,
    *,
    target: str,
    model: str | None,
    leaving: bool,
    in_flight: int | None,
) -> ReplicaMetrics:
    """What is measured of a replica; `reading` is None where nothing is."""
    samples = {} if reading is None else reading.samples
    since = None if reading is None else reading.ready_since

    def of(metric: Metric) -> Measured | None:
        return _measured(samples, _OF_REPLICA[metric], moment)

    return ReplicaMetrics(
        pod=replica.name,
        target=target,
        model=model,
        endpoint=None if replica.endpoint is None else str(replica.endpoint),
        ready=replica.ready,
        ready_seconds=None if since is None else moment.age(since),
        leaving=leaving,
        in_flight=in_flight,
        queue_length=of(Metric.QUEUE_LENGTH),
        running_requests=of(Metric.RUNNING_REQUESTS),
        kv_cache_usage=of(Metric.KV_CACHE_USAGE),
        gpu_utilization=of(Metric.GPU_UTILIZATION),
        tokens_per_second=of(Metric.TOKENS_PER_SECOND),
        latency=latency_of(samples, moment),
    )


def latency_of(samples: Mapping[Signal, Sample], moment: Moment) -> Latency:
    """The latencies among these."""
    return Latency(
        ttft=_measured(samples, _LATENCIES[Aggregation.TTFT], moment),
        e2e=_measured(samples, _LATENCIES[Aggregation.E2E], moment),
        itl=_measured(samples, _LATENCIES[Aggregation.ITL], moment),
    )


def _measured(samples: Mapping[Signal, Sample], signal: Signal, moment: Moment) -> Measured | None:
    sample = samples.get(signal)
    return None if sample is None else Measured(value=round(sample.value, 3), age_seconds=moment.age(sample.at))


def override_answer(override: Override | None, moment: Moment) -> OverrideAnswer | None:
    """An override that holds; None for none, and for one that has ended."""
    if override is None or not override.holds(moment.now):
        return None
    left = round(override.until - moment.now, 1)
    return OverrideAnswer(**told(override, moment.now, moment.wall), expires_in_seconds=left)


def policy_answer(
    policy: Policy,
    decision: Decision | None,
    moment: Moment,
    *,
    target: str,
    model: str | None,
    source: str,
    replicas: ReplicaCount,
    override: Override | None,
    conflict: str | None,
    conditions: Iterable[Condition],
) -> PolicyAnswer:
    """A policy and what it has decided."""
    asked = {} if decision is None else {one.rule: one for one in decision.asked}
    return PolicyAnswer(
        target=target,
        model=model,
        policy=policy.name,
        source=source,
        paused=policy.paused,
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas,
        scaling_rules=[_rule(rule, asked.get(rule)) for rule in policy.rules],
        behavior=BehaviorAnswer(scale_up=_pace(policy.up), scale_down=_pace(policy.down)),
        tolerance=policy.tolerance,
        polling_interval_seconds=policy.polling_seconds,
        idle_timeout_seconds=policy.idle_seconds,
        fallback=_fallback(policy.fallback),
        schedule=[
            ScheduleAnswer(start=one.start, end=one.end, timezone=one.timezone, min_replicas=one.min_replicas)
            for one in policy.schedules
        ],
        replicas=replicas,
        override=override_answer(override, moment),
        conflict=conflict,
        decision=None if decision is None else _decision(decision, moment),
        conditions=[
            ConditionAnswer(type=one.type, status=_STATUS[one.status], reason=one.reason, message=one.message)
            for one in conditions
        ],
    )


_STATUS = {True: "True", False: "False", None: "Unknown"}


def _rule(rule: Rule, asked: Asked | None) -> RuleAnswer:
    signal = rule.signal
    return RuleAnswer(
        name=words.name(signal),
        metric=signal.metric.value,
        aggregation=signal.aggregation.value,
        percentile=signal.percentile,
        window_seconds=signal.window_seconds,
        query=signal.query,
        threshold=rule.threshold,
        target=rule.target,
        current=None if asked is None or asked.value is None else round(asked.value, 3),
        age_seconds=None if asked is None or asked.age_seconds is None else round(asked.age_seconds, 1),
        replicas=None if asked is None else asked.replicas,
    )


def _pace(pace: Pace) -> PaceAnswer:
    return PaceAnswer(
        stabilization_window_seconds=pace.stabilization_seconds,
        select_policy=pace.select.value,
        policies=[
            StepAnswer(type=step.unit.value, value=step.value, period_seconds=step.period_seconds)
            for step in pace.steps
        ],
    )


def _fallback(fallback: Fallback | None) -> FallbackAnswer | None:
    if fallback is None:
        return None
    return FallbackAnswer(replicas=fallback.replicas, failure_threshold=fallback.failure_threshold)


def _decision(decision: Decision, moment: Moment) -> DecisionAnswer:
    return DecisionAnswer(
        time=moment.text(decision.at),
        age_seconds=moment.age(decision.at),
        replicas=decision.replicas,
        recommended=decision.recommended,
        limited=decision.limited.value,
        measured=decision.measured,
        fallen_back=decision.fallen_back,
        reason=decision.reason,
        trail=[StepTaken(stage=one.stage, replicas=one.replicas, reason=one.reason) for one in decision.trail],
    )
