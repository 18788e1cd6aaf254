"""How many replicas the rules ask for, by the algorithm of Kubernetes' HorizontalPodAutoscaler. Pure.

The rule: the largest ask wins, and while a rule has no data nothing shrinks. A ratio within the tolerance changes
nothing; what is not known is taken for 0 on the way up and for the target on the way down; and where that turns the
direction round, nothing changes. (k8s.io/kubernetes, pkg/controller/podautoscaler/replica_calculator.go)
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decision import Asked, Said
from vllm_chill.core.scaling.measured import Measured, measured
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, Readings, Signal

_MOST = 2**31 - 1  # as many replicas as Kubernetes can count
_DECIMALS = 9  # a sum of decimal fractions is not a replica more because of how floats are rounded
_STAGE = "recommend"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What the rules ask for, all in all and each. `measured` says whether any has data; `blind` that none has though
    replicas are ready, so that something is wrong with how they are measured.
    """

    replicas: int
    asked: tuple[Asked, ...]
    said: tuple[Said, ...]
    measured: bool
    blind: bool


class _Side(enum.Enum):
    UP = 1
    STAY = 0
    DOWN = -1


@dataclass(frozen=True, slots=True)
class _Ask:
    """One rule's: `value` as it is compared, and the words for it, for what stands in for what is not known, and for
    why nothing changes where it does not.
    """

    replicas: int
    value: float
    found: str
    filled: str = ""
    unchanged: str = ""


def recommend(policy: Policy, readings: Readings) -> Recommendation:
    """What the policy's rules ask for at one moment, without any bound."""
    current = readings.replicas
    if not policy.rules:
        said = Said(_STAGE, 0, "the policy has no rules, so as few replicas as may be")
        return Recommendation(0, (), (said,), measured=True, blind=False)
    asked: list[Asked] = []
    said_of: list[Said] = []
    for rule in policy.rules:
        found = measured(policy, readings, rule.signal)
        ask = _ask(rule, found, current, policy.tolerance)
        if ask is None:
            asked.append(Asked(rule, None, found.age_seconds, None))
            said_of.append(_missing(rule, found, current))
        else:
            asked.append(Asked(rule, ask.value, found.age_seconds, ask.replicas))
            said_of.append(_said(rule, ask, current))
    asks = [one.replicas for one in asked if one.replicas is not None]
    most = max(asks, default=current)
    replicas = most if len(asks) == len(asked) else max(most, current)
    if replicas != most:
        absent = " and ".join(words.name(one.rule.signal) for one in asked if one.replicas is None)
        said_of.append(Said(_STAGE, replicas, f"without {absent} it does not shrink below {current}"))
    elif len(asks) > 1:
        said_of.append(Said(_STAGE, replicas, f"the most that a rule asks for is {words.replicas(replicas)}"))
    ready = any(member.ready_since is not None for member in readings.members)
    return Recommendation(replicas, tuple(asked), tuple(said_of), bool(asks), not asks and ready)


def from_nothing(rule: Rule, total: float) -> int:
    """How many replicas a total asks for when there are none yet."""
    if total <= 0:
        return 0
    return 1 if total <= max(rule.threshold, rule.target) else _count(total / rule.target)


def _ask(rule: Rule, found: Measured, current: int, tolerance: float) -> _Ask | None:
    signal = rule.signal
    if signal.metric is Metric.LATENCY:
        return _of_the_whole(rule, found, current, tolerance)
    if signal.metric in (Metric.HELD_REQUESTS, Metric.PROMQL):
        if signal.aggregation is Aggregation.AVERAGE:
            return _of_the_total(rule, found.values, current, tolerance)
        return _of_the_whole(rule, found, current, tolerance)
    if not found.values:
        # Nobody can ask the engines, or there are none: then what is held is all that is known of the queue.
        held = (float(found.held),) if found.held else ()
        ask = _of_the_total(rule, held, current, tolerance, found.held)
        if ask is None or ask.replicas >= current:
            return ask
        return _Ask(current, ask.value, ask.found, unchanged="no replica has been measured")
    if signal.aggregation in (Aggregation.MAX, Aggregation.SUM):
        return _of_all_together(rule, found, current, tolerance)
    return _of_each(rule, found, current, tolerance)


def _of_each(rule: Rule, found: Measured, current: int, tolerance: float) -> _Ask:
    """HPA's metric of type Pods: the average over the replicas."""
    total, count = sum(found.values) + found.held, len(found.values)
    value = total / count
    told = _told(rule.signal, total, count, found.held)
    side = _side(rule, value, tolerance)
    if side is _Side.STAY:
        return _Ask(current, value, told, unchanged=_why(rule, value, tolerance))
    count += found.missing
    if side is _Side.UP:
        count += found.starting
    else:
        total += found.missing * rule.target
    filled = _filled(found, side)
    if _side(rule, total / count, tolerance) is not side:
        return _Ask(current, value, told, filled, "that leaves nothing to change")
    return _bounded(_Ask(_count(total / rule.target), value, told, filled), current, side)


def _of_all_together(rule: Rule, found: Measured, current: int, tolerance: float) -> _Ask:
    """The highest of the replicas, or their sum: one value for all of them. What is not measured is as with HPA."""
    if rule.signal.aggregation is Aggregation.MAX:
        value, unknown = max(found.values) + found.held / len(found.values), rule.target
        told = f"the highest {words.name(rule.signal)} of {words.replicas(len(found.values))} is "
    else:
        value, unknown = sum(found.values) + found.held, found.missing * rule.target
        told = f"{words.name(rule.signal)} over {words.replicas(len(found.values))} together is "
    told += words.amount(value, rule.signal)
    side = _side(rule, value, tolerance)
    if side is _Side.DOWN and found.missing:
        value_then = max(value, unknown) if rule.signal.aggregation is Aggregation.MAX else value + unknown
        if _side(rule, value_then, tolerance) is not side:
            return _Ask(current, value, told, _filled(found, side), "that leaves nothing to change")
    return _times_ready(rule, value, told, found, current, tolerance)


def _of_the_whole(rule: Rule, found: Measured, current: int, tolerance: float) -> _Ask | None:
    """HPA's metric of type Object or External with a Value: the ratio to it, times the ready replicas."""
    if not found.values:
        return None
    [value] = found.values
    told = f"{words.name(rule.signal)} is {words.amount(value, rule.signal)} with {words.replicas(found.ready)} ready"
    return _times_ready(rule, value, told, found, current, tolerance)


def _times_ready(rule: Rule, value: float, told: str, found: Measured, current: int, tolerance: float) -> _Ask:
    side = _side(rule, value, tolerance)
    if side is _Side.STAY:
        return _Ask(current, value, told, unchanged=_why(rule, value, tolerance))
    if not found.ready:
        return _Ask(current, value, told, unchanged="no replica is ready")
    return _bounded(_Ask(_count(value / rule.target * found.ready), value, told), current, side)


def _of_the_total(rule: Rule, values: tuple[float, ...], current: int, tolerance: float, held: int = 0) -> _Ask | None:
    """HPA's metric of type External with an AverageValue: the total, over as many replicas as are asked for."""
    if not values:
        return None
    [total] = values
    if not current:
        told = f"{words.name(rule.signal)} is {words.amount(total, rule.signal)} while there are no replicas"
        return _Ask(from_nothing(rule, total), total, told)
    value, told = total / current, _told(rule.signal, total, current, held)
    side = _side(rule, value, tolerance)
    if side is _Side.STAY:
        return _Ask(current, value, told, unchanged=_why(rule, value, tolerance))
    return _bounded(_Ask(_count(total / rule.target), value, told), current, side)


def _bounded(ask: _Ask, current: int, side: _Side) -> _Ask:
    """The ask, unless it goes the other way than the load: it counts ready replicas only, and they may be few."""
    against = ask.replicas < current if side is _Side.UP else ask.replicas > current
    if not against:
        return ask
    not_all = "not all replicas are ready" if side is _Side.UP else "more replicas are ready than are asked for"
    return _Ask(current, ask.value, ask.found, ask.filled, not_all)


def _side(rule: Rule, value: float, tolerance: float) -> _Side:
    """Where a value stands: above the threshold, below the target, or at rest. The tolerance counts for both edges."""
    ratio = round(value / rule.target, _DECIMALS)
    if ratio > round(max(rule.threshold / rule.target, 1.0) * (1.0 + tolerance), _DECIMALS):
        return _Side.UP
    return _Side.DOWN if ratio < round(1.0 - tolerance, _DECIMALS) else _Side.STAY


def _count(ratio: float) -> int:
    return math.ceil(round(max(0.0, min(ratio, float(_MOST))), _DECIMALS))


# --- words ---


def _said(rule: Rule, ask: _Ask, current: int) -> Said:
    aim = f"the target is {words.amount(rule.target, rule.signal)}"
    if rule.threshold > rule.target:
        aim += f" and the threshold {words.amount(rule.threshold, rule.signal)}"
    parts = [part for part in (ask.found, aim, ask.filled, ask.unchanged) if part]
    end = f"so it stays at {current}" if ask.unchanged else f"so {words.replicas(ask.replicas)}"
    return Said(_STAGE, ask.replicas, f"{'; '.join(parts)}, {end}")


def _missing(rule: Rule, found: Measured, current: int) -> Said:
    if rule.signal.metric in (Metric.LATENCY, Metric.PROMQL):
        why = "there is no fresh sample of it"
    elif found.ready:
        why = "no ready replica has a fresh sample of it"
    else:
        why = "no replica is ready"
    return Said(_STAGE, current, f"{words.name(rule.signal)} is missing, as {why}, so it stays at {current}")


def _told(signal: Signal, total: float, count: int, held: int) -> str:
    if signal.metric in (Metric.GPU_UTILIZATION, Metric.KV_CACHE_USAGE):
        return f"{words.name(signal)} is {words.amount(total / count, signal)} on average over {words.replicas(count)}"
    of_them = f" ({'all' if held == total else held} of them held)" if held else ""
    each = f", {words.amount(total / count, signal)} each" if count > 1 and total else ""
    return f"{words.name(signal)} is {words.amount(total, signal)}{of_them} over {words.replicas(count)}{each}"


def _why(rule: Rule, value: float, tolerance: float) -> str:
    percent = f"{words.number(tolerance * 100)}%"
    if value <= rule.target * (1.0 + tolerance):
        return f"that is within {percent} of the target"
    if value <= rule.threshold:
        return "that is not above the threshold"
    return f"that is within {percent} of the threshold"


def _filled(found: Measured, side: _Side) -> str:
    """What is taken for the load of replicas that there is no number of."""
    parts = []
    if found.missing:
        as_what = "0" if side is _Side.UP else "the target"
        parts.append(f"{_counts(found.missing, 'without a fresh sample')} as {as_what}")
    if found.starting and side is _Side.UP:
        parts.append(f"{_counts(found.starting, 'not ready')} as 0")
    return " and ".join(parts)


def _counts(count: int, what: str) -> str:
    return f"1 replica {what} counts" if count == 1 else f"{count} replicas {what} count"
