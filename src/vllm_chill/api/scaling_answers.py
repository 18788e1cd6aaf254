"""What /proxy/scaling/* takes and answers: what is measured of replicas, a policy and what it decided, and a number of
replicas that is set by hand.

The names of fields are those of vLLMScalingPolicy, so that what is read here and what `kubectl get vsp -o yaml` shows
are the same words. What is not known is null, never 0.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from vllm_chill.api.choice import Name
from vllm_chill.api.status import PhaseName

PERCENTILE, WINDOW_SECONDS = 95.0, 60.0
"""Of the latencies and rates that are shown where no rule says otherwise."""


class Answer(Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an answer: its names are as Kubernetes writes them."""


class Measured(Answer, frozen=True, kw_only=True):
    """A number, and how old it is."""

    value: float
    age_seconds: float


class Latency(Answer, frozen=True, kw_only=True):
    """Milliseconds that requests took: `percentile` of those that ended in the last `windowSeconds`."""

    percentile: float = PERCENTILE
    window_seconds: float = WINDOW_SECONDS
    ttft: Measured | None
    """To the first token."""
    e2e: Measured | None
    """The whole of a request, in the engine."""
    itl: Measured | None
    """Between two tokens."""


class ReplicaMetrics(Answer, frozen=True, kw_only=True):
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


class ReplicaCount(Answer, frozen=True, kw_only=True):
    """The replicas of a target: asked for now, as last seen; wanted; and ready."""

    current: int | None
    desired: int | None
    ready: int | None


class TargetMetrics(Answer, frozen=True, kw_only=True):
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


class ScalingMetrics(Answer, frozen=True, kw_only=True):
    """The answer to GET /proxy/scaling/metrics."""

    timestamp: str
    targets: list[TargetMetrics]


_TTL = r"^([1-9][0-9]?d|[1-9][0-9]{0,2}[hms]|[1-9][0-9]{3,4}[ms]){1,3}$"


class AdjustAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The body of POST /proxy/scaling/replicas."""

    model: Name | None = None
    """Any name of a model, or its target's; that of requests which name none if it is not given."""
    target_replicas: Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1)]
    """Within the bounds of its policy; to have none is what operations/stop is for. 2.0 is 2, as JSON has it."""
    ttl: Annotated[str, Meta(extra_json_schema={"pattern": _TTL})] | None = None
    """How long it holds, such as 30m; --override-ttl if it is not given."""
    by: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    """Who wants it so, to be shown with it. X-Forwarded-User comes first."""

    def __post_init__(self) -> None:
        if self.ttl is not None and not re.fullmatch(_TTL, self.ttl):
            raise ValueError("ttl: it is not a duration; give one such as 30m or 1h30m")


class OverrideAnswer(Answer, frozen=True, kw_only=True):
    """A number of replicas that was set by hand."""

    replicas: int
    by: str
    since: str
    expires: str
    expires_in_seconds: float


class Adjusted(Answer, frozen=True, kw_only=True):
    """The answer to POST and DELETE /proxy/scaling/replicas."""

    status: Literal["success"] = "success"
    message: str
    target: str
    model: str | None
    replicas: ReplicaCount
    override: OverrideAnswer | None


class RuleAnswer(Answer, frozen=True, kw_only=True):
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


class StepAnswer(Answer, frozen=True, kw_only=True):
    """How much may change within a period."""

    type: str
    value: int
    period_seconds: float


class PaceAnswer(Answer, frozen=True, kw_only=True):
    """How fast one direction may go."""

    stabilization_window_seconds: float
    select_policy: str
    policies: list[StepAnswer]


class BehaviorAnswer(Answer, frozen=True, kw_only=True):
    """How fast it may go, as HPA's behavior."""

    scale_up: PaceAnswer
    scale_down: PaceAnswer


class FallbackAnswer(Answer, frozen=True, kw_only=True):
    """What to have without any data."""

    replicas: int
    failure_threshold: int


class ScheduleAnswer(Answer, frozen=True, kw_only=True):
    """At least so many between two times."""

    start: str
    end: str
    timezone: str
    min_replicas: int


class StepTaken(Answer, frozen=True, kw_only=True):
    """One step of a decision."""

    stage: str
    replicas: int
    reason: str


class DecisionAnswer(Answer, frozen=True, kw_only=True):
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


class ConditionAnswer(Answer, frozen=True, kw_only=True):
    """Something that is so, or not."""

    type: str
    status: str
    reason: str
    message: str


class PolicyAnswer(Answer, frozen=True, kw_only=True):
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


class Policies(Answer, frozen=True, kw_only=True):
    """The answer to GET /proxy/scaling/policy."""

    policies: list[PolicyAnswer]
    without_policy: list[str]
    """The targets that nothing scales from 1 on."""
