"""How the answers of /proxy/scaling/* are made from what is known: readings, policies, decisions, overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vllm_chill.api.scaling_answers import (
    PERCENTILE,
    WINDOW_SECONDS,
    BehaviorAnswer,
    ConditionAnswer,
    DecisionAnswer,
    FallbackAnswer,
    Latency,
    Measured,
    OverrideAnswer,
    PaceAnswer,
    PolicyAnswer,
    ReplicaCount,
    ReplicaMetrics,
    RuleAnswer,
    ScheduleAnswer,
    StepAnswer,
    StepTaken,
)
from vllm_chill.core.lifecycle import desired_replicas
from vllm_chill.core.model_status import Condition
from vllm_chill.core.phrases import timestamp
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decision import Asked, Decision
from vllm_chill.core.scaling.override import Override, told
from vllm_chill.core.scaling.policy import Fallback, Pace, Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Replica, Target

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
        return timestamp(self.wall + timedelta(seconds=at - self.now))


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
