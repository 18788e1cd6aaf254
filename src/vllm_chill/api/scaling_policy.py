"""The vLLMScalingPolicy resource: how one target is scaled, as an object of the cluster, read into a Policy.

A target's annotations, and a VLLMModel's minReplicas and maxReplicas, are policies too, and are read here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vllm_chill.api.kinds import ANNOTATIONS, AUTOSCALE, POLICY
from vllm_chill.api.resource import Condition, Resource, problems_of, read_resource, shown, unknown_fields
from vllm_chill.api.scaling_spec import Behavior, Direction, ScaleTarget, ScalingPolicySpec, ScalingRule
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import interval_seconds
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.objects import Json
from vllm_chill.core.scaling.policy import DOWN, UP, Fallback, Pace, Policy, Rule, Schedule, Select, Step, Unit
from vllm_chill.core.scaling.signals import Metric, Signal
from vllm_chill.errors import InvalidPolicy

__all__ = ["ScaleTarget", "ScalingPolicy", "ScalingPolicySpec", "ScalingPolicyStatus", "parse_policy", "policy_of"]

KIND, PLURAL, API_VERSION = POLICY.kind, POLICY.plural, POLICY.api_version

DEFAULT_RULES = (Rule(Signal(Metric.QUEUE_LENGTH), 5.0, 5.0),)
"""Those of a policy that gives none: callers that wait in an engine are what another replica helps."""

_BACKLOGS = {Metric.QUEUE_LENGTH, Metric.HELD_REQUESTS}
_STEP_BY_STEP = Pace(DOWN.stabilization_seconds, (Step(Unit.PODS, 1, 300.0),))
_SEATS_ABOVE, _SEATS_TARGET = 0.8, 0.6


class MetricStatus(Part):
    """What one rule made of what was measured."""

    metric: str = declared(..., "a text", "What is looked at, with how, such as latency (ttft, p95).")
    current: float | None = declared(None, "a number", "What it is, as it is compared; not set if it is not known.")
    target: float | None = declared(None, "a number", "What it should come to.")
    age_seconds: float | None = declared(None, "a number", "How old the oldest measurement in it is.")
    replicas: int | None = declared(None, "a number", "How many replicas it asks for.")


class TrailStatus(Part):
    """One step of a decision."""

    stage: str = declared(..., "a word", "Which step: recommend, hold, pace or bound.")
    replicas: int = declared(..., "a number", "The number of replicas after it.")
    reason: str = declared(..., "a text", "Why, in words.")


class OverrideStatus(Part):
    """A number of replicas that somebody asked for by hand."""

    replicas: int = declared(..., "a number", "How many.")
    by: str = declared("", "a text", "Who asked.")
    expires: str | None = declared(None, "a time", "Until when it holds.")


class ScalingPolicyStatus(Part):
    """How the policy does, written by vllm-chill."""

    current_replicas: int | None = declared(None, "a number", "Replicas that are there.")
    desired_replicas: int | None = declared(None, "a number", "Replicas that were last decided on.")
    last_scale_time: str | None = declared(None, "a time", "When the number of replicas was last changed.")
    observed_generation: int | None = declared(None, "a number", "The generation of the spec that this is about.")
    metrics: tuple[MetricStatus, ...] = declared((), "a list", "What each rule made of what was measured.")
    trail: tuple[TrailStatus, ...] = declared((), "a list", "How the last decision came about, step by step.")
    override: OverrideStatus | None = declared(None, "nothing", "The manual adjustment that is in effect.")
    conditions: tuple[Condition, ...] = declared(
        (),
        "a list of conditions",
        "What is so and what is not: Active, AbleToScale, ScalingLimited, MetricsAvailable and Conflict.",
        schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class ScalingPolicy(Resource):
    """A scaling policy: what it asks for, and how it does."""

    API_VERSION = API_VERSION
    KIND = KIND
    INVALID = InvalidPolicy

    spec: ScalingPolicySpec = declared(
        ...,
        "at least {scaleTargetRef: {name: NAME}, maxReplicas: NUMBER}",
        "What is scaled, within which bounds, and by what.",
    )
    status: ScalingPolicyStatus = declared(
        ScalingPolicyStatus.model_construct(), "nothing", "How it does; vllm-chill writes it."
    )


def parse_policy(obj: Mapping[str, Any]) -> ScalingPolicy:
    """The policy of an object, as the API server or a file has it. `apiVersion` and `kind` may be left out.

    Raises InvalidPolicy with a sentence for everything that is wrong with it. Fields that are not known are let go, as
    the API server does; `policy_warnings` tells of them.
    """
    return read_resource(ScalingPolicy, obj, _elsewhere(obj))


def _elsewhere(obj: Mapping[str, Any]) -> Iterator[str]:
    # Who may write a policy in one namespace may not scale what is in another.
    match obj:
        case {
            "metadata": {"namespace": str(own)},
            "spec": {"scaleTargetRef": {"namespace": str(namespace)}},
        } if namespace not in (own, ""):
            place = "spec.scaleTargetRef.namespace"
            yield f"{place}: {shown(namespace)} is not the policy's own; leave it out, or give {own}"
        case _:
            pass


def policy_warnings(policy: ScalingPolicy, obj: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A sentence for everything that is allowed and may not be what was meant.

    `obj` is what the policy was parsed from, where it did not come through an API server: its unknown fields are told.
    """
    found = () if obj is None else (*unknown_fields(obj, ScalingPolicy),)
    return (*found, *_without_effect(policy.spec))


def _without_effect(spec: ScalingPolicySpec) -> Iterator[str]:
    if spec.min_replicas and spec.idle_timeout is not None:
        yield "spec.idleTimeout: it is without effect, as minReplicas keeps the target awake"
    if spec.scaling_rules and spec.max_replicas == max(1, spec.min_replicas):
        yield "spec.scalingRules: they are without effect, as maxReplicas leaves nothing to choose"
    for index, one in enumerate(spec.schedule):
        if one.min_replicas <= spec.min_replicas:
            yield f"spec.schedule[{index}]: it is without effect, as minReplicas asks for as many at any time"


def policy_of(policy: ScalingPolicy) -> Policy:
    """What the policy asks for."""
    return _policy(policy.name, policy.spec)


def _policy(name: str, spec: ScalingPolicySpec) -> Policy:
    behavior, fallback = spec.behavior or Behavior(), spec.fallback
    rules = DEFAULT_RULES if spec.scaling_rules is None else tuple(map(_rule, spec.scaling_rules))
    return Policy(
        name=name,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        rules=rules,
        up=_pace(behavior.scale_up, UP),
        down=_pace(behavior.scale_down, _down(rules)),
        tolerance=float(spec.tolerance),
        polling_seconds=interval_seconds(spec.polling_interval),
        idle_seconds=None if spec.idle_timeout is None else interval_seconds(spec.idle_timeout),
        fallback=None if fallback is None else Fallback(fallback.replicas, fallback.failure_threshold),
        schedules=tuple(Schedule(one.start, one.end, one.timezone, one.min_replicas) for one in spec.schedule),
        paused=spec.paused,
    )


def _down(rules: Sequence[Rule]) -> Pace:
    """How replicas are taken back where a policy does not say: HPA's way; but one at a time if all that is looked at
    is a queue, as one that is empty does not tell how many fewer would do.
    """
    return _STEP_BY_STEP if rules and all(rule.signal.metric in _BACKLOGS for rule in rules) else DOWN


def _rule(rule: ScalingRule) -> Rule:
    return Rule(rule.signal, float(rule.threshold), float(rule.threshold if rule.target is None else rule.target))


def _pace(given: Direction | None, default: Pace) -> Pace:
    """A direction's pace; each part that is left out is as HPA fills it in."""
    if given is None:
        return default
    window, steps = given.stabilization_window_seconds, given.policies
    return Pace(
        default.stabilization_seconds if window is None else float(window),
        default.steps if steps is None else tuple(Step(s.type, s.value, float(s.period_seconds)) for s in steps),
        given.select_policy or Select.MAX,
    )


# --- policies that are no objects ---


def policy_of_model(entry: ModelEntry) -> Policy | None:
    """What a model's own minReplicas and maxReplicas ask for; None if that is but to sleep and to wake."""
    if entry.max_replicas <= 1 and entry.min_replicas <= 1:
        return None
    rules: tuple[Rule, ...] = DEFAULT_RULES
    if entry.max_num_seqs is not None:
        seats = Signal(Metric.RUNNING_REQUESTS)
        rules += (Rule(seats, _SEATS_ABOVE * entry.max_num_seqs, _SEATS_TARGET * entry.max_num_seqs),)
    return Policy(entry.name, entry.min_replicas, entry.max_replicas, rules, down=_down(rules))


_METRIC = f"{ANNOTATIONS}metric."
_QUERY = f"{ANNOTATIONS}promql-query"
_METRIC_NAME = re.compile(
    r"(?P<metric>[^.]+)(\.(?P<aggregation>(?!p[0-9])[^.]+))?(\.p(?P<percentile>[0-9]+(\.[0-9]+)?))?"
)
_FIELDS = {
    field: ANNOTATIONS + name
    for field, name in (
        ("minReplicas", "min-replicas"),
        ("maxReplicas", "max-replicas"),
        ("pollingInterval", "polling-interval"),
        ("idleTimeout", "idle-timeout"),
        ("tolerance", "tolerance"),
        ("paused", "paused"),
    )
}


def policy_of_annotations(name: str, annotations: Mapping[str, str]) -> Policy | None:
    """What a target's annotations ask for; None if they do not ask to be scaled. `name` is the target's.

    Raises InvalidPolicy with a sentence for everything that is wrong, each of which names its annotation.
    """
    match annotations.get(AUTOSCALE):
        case None | "false":
            return None
        case "true":
            pass
        case other:
            raise InvalidPolicy(name, (f'{AUTOSCALE}: {shown(other)} is not accepted; give "true" or "false"',))
    problems: list[str] = []
    given: dict[str, Any] = {
        field: _value(annotations[annotation]) for field, annotation in _FIELDS.items() if annotation in annotations
    }
    rules, places = _annotated_rules(annotations, problems)
    if rules:
        given["scalingRules"] = rules
    try:
        spec = ScalingPolicySpec.model_validate(
            {"scaleTargetRef": ScalingPolicySpec.STAND_INS["scaleTargetRef"], **given}
        )
    except ValidationError as error:
        problems += (_of_annotation(problem, places) for problem in problems_of(error, ScalingPolicySpec, given))
    else:
        if not problems:
            return _policy(name, spec)
    raise InvalidPolicy(name, tuple(dict.fromkeys(problems)))


def _annotated_rules(annotations: Mapping[str, str], problems: list[str]) -> tuple[list[Json], dict[str, str]]:
    """The rules of metric.NAME[.AGGREGATION][.pPERCENTILE], and the annotation that each part of them is from."""
    rules: list[Json] = []
    places = {**_FIELDS, "scalingRules": f"{_METRIC}*"}
    for annotation in sorted(key for key in annotations if key.startswith(_METRIC)):
        found = _METRIC_NAME.fullmatch(annotation.removeprefix(_METRIC))
        if found is None:
            form = "metric.NAME, metric.NAME.AGGREGATION or metric.latency.AGGREGATION.pPERCENTILE"
            problems.append(f"{annotation}: there is no such annotation; give {form}")
            continue
        rule = {key: value for key, value in found.groupdict().items() if value is not None}
        if "percentile" in rule:
            rule["percentile"] = float(rule["percentile"])
        place = f"scalingRules[{len(rules)}]"
        rule["threshold"] = _value(annotations[annotation])
        if rule["metric"] == Metric.PROMQL and _QUERY in annotations:
            rule["query"] = annotations[_QUERY]
        rules.append(rule)
        places |= {place: annotation, f"{place}.query": _QUERY}
    if _QUERY in annotations and not any("query" in rule for rule in rules):
        problems.append(f"{_QUERY}: nothing is scaled by it; give its threshold as {_METRIC}{Metric.PROMQL}")
    return rules, places


def _value(text: str) -> int | float | bool | str:
    """What an annotation stands for in the spec; what is neither a number nor true or false is left as it is."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,18}\.[0-9]{1,18}", text):
        return float(text)
    return {"true": True, "false": False}.get(text, text)


def _of_annotation(problem: str, places: Mapping[str, str]) -> str:
    """A problem of the spec, said of the annotation that it is from."""
    path, _, words = problem.partition(": ")
    place = places.get(path) or places[path.rpartition(".")[0]]
    for field, annotation in _FIELDS.items():
        words = words.replace(field, annotation.removeprefix(ANNOTATIONS))
    return f"{place}: {words}"
