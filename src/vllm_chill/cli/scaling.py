"""`vllm-chill scaling metrics | policy | set`: how many replicas a running proxy's targets have, why, and by hand."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from urllib.parse import quote

import click

from vllm_chill.api.scaling_answers import (
    Adjusted,
    DecisionAnswer,
    Latency,
    Measured,
    Policies,
    PolicyAnswer,
    ReplicaMetrics,
    RuleAnswer,
    ScalingMetrics,
    TargetMetrics,
)
from vllm_chill.cli.asking import Proxy, Shape, Told, url_option
from vllm_chill.cli.completing import model_argument, model_names
from vllm_chill.cli.output import json_or_output_option, print_json
from vllm_chill.cli.status import replicas_of, words_of
from vllm_chill.cli.tables import aligned, cut
from vllm_chill.core.cold_start import duration
from vllm_chill.core.routing import Route
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.signals import Metric, Signal
from vllm_chill.errors import SettingError

_METRICS_EPILOG = """\b
Examples:
  vllm-chill scaling metrics
  vllm-chill scaling metrics vllm-6c9f7d5b8-x2x4k
"""
_POLICY_EPILOG = """\b
Examples:
  vllm-chill scaling policy
  vllm-chill scaling policy qwen3-coder-30b
"""
_SET_EPILOG = """\b
Examples:
  vllm-chill scaling set qwen3-coder-30b 3 --ttl 30m
  vllm-chill scaling set qwen3-coder-30b --clear
"""
_WHY_CHARACTERS = 80
_PODS = ("POD", "TARGET", "READY", "IN FLIGHT", "QUEUE", "RUNNING", "KV CACHE", "GPU", "TOKENS/S", "TTFT", "E2E", "AGE")
_TARGETS = ("TARGET", "STATE", "REPLICAS", "HELD", "TTFT", "E2E", "ITL")
_POLICIES = ("TARGET", "POLICY", "REPLICAS", "READY", "WANTED", "BOUNDS", "WHY")


@click.group(short_help="Tell how many replicas there are and why, or set their number.")
def scaling() -> None:
    """Tell what is measured of replicas, how many of them there are to be and why, or set their number by hand."""


@scaling.command(short_help="Tell what is measured of each replica.", epilog=_METRICS_EPILOG)
@click.argument("pod", required=False)
@click.option("--target", help="The target of POD, where several have one of this name.")
@json_or_output_option
@url_option
def metrics(pod: str | None, target: str | None, as_json: bool, url: str) -> None:
    """Tell what is measured of each replica, or of the one that is called POD.

    TTFT, E2E and ITL are how long 95 of 100 requests took at the most in the last minute: to their first token, as a
    whole, and between two tokens. AGE is that of the oldest figure of the row. --json prints the answer of
    GET /proxy/scaling/metrics.
    """
    if pod is None and target is not None:
        raise SettingError("--target: it says which POD is meant; give POD too, or leave it out")
    proxy = Proxy(url)
    if pod is None:
        _print(proxy.ask("GET", Route.PROXY_SCALING_METRICS.value, ScalingMetrics), metrics_table, as_json=as_json)
        return
    query = "" if target is None else f"?target={quote(target, safe='')}"
    one = proxy.ask("GET", _at(Route.PROXY_SCALING_POD, pod) + query, ReplicaMetrics)
    _print(one, describe_replica, as_json=as_json)


@scaling.command(short_help="Tell a model's scaling policy, and what it has decided.", epilog=_POLICY_EPILOG)
@model_argument
@json_or_output_option
@url_option
def policy(model: str | None, as_json: bool, url: str) -> None:
    """Tell the scaling policy of MODEL, and what it has decided, step by step. Without MODEL: every policy in force.

    MODEL is any of its names, or its target's. --json prints the answer of GET /proxy/scaling/policy.
    """
    proxy = Proxy(url)
    if model is not None:
        one = proxy.ask("GET", _at(Route.PROXY_SCALING_POLICY, model), PolicyAnswer)
        _print(one, describe_policy, as_json=as_json)
        return
    _print(proxy.ask("GET", Route.PROXY_SCALING_POLICIES.value, Policies), policies_table, as_json=as_json)


@scaling.command(name="set", short_help="Set the number of a model's replicas, for a while.", epilog=_SET_EPILOG)
@click.argument("model", shell_complete=model_names)
@click.argument("replicas", required=False, type=click.IntRange(min=1))
@click.option("--ttl", metavar="DURATION", help="How long it holds, such as 30m. [default: the proxy's --override-ttl]")
@click.option("--by", metavar="NAME", help="Who wants it so, to be shown with it. [default: your user name]")
@click.option("--clear", is_flag=True, help="Have the scaling policy decide again.")
@json_or_output_option
@url_option
def set_replicas(
    model: str, replicas: int | None, ttl: str | None, by: str | None, clear: bool, as_json: bool, url: str
) -> None:
    """Set the number of MODEL's replicas for a while, within the bounds of its scaling policy.

    It wakes nothing: a model that sleeps has so many once a request wakes it. To have none is what `vllm-chill sleep`
    is for. MODEL is any of its names, or its target's. --json prints the answer of POST /proxy/scaling/replicas.
    """
    if clear is (replicas is not None):
        raise SettingError("scaling set: give either REPLICAS or --clear")
    if clear and ttl is not None:
        raise SettingError("--ttl: with --clear there is nothing that would hold; leave it out")
    proxy, path = Proxy(url), Route.PROXY_SCALING_REPLICAS.value
    if clear:
        told = proxy.ask("DELETE", f"{path}?model={quote(model, safe='')}", Adjusted)
    else:
        given = {"model": model, "targetReplicas": replicas, "ttl": ttl, "by": by or _user()}
        body = {name: value for name, value in given.items() if value is not None}
        told = proxy.ask("POST", path, Adjusted, body)
    _print(told, lambda answer: _adjusted(answer, model), as_json=as_json)


def _adjusted(answer: Adjusted, model: str) -> str:
    if answer.override is None:
        return answer.message
    return f"{answer.message}\nTo end it before: vllm-chill scaling set {model} --clear"


def _print(told: Told[Shape], describe: Callable[[Shape], str], *, as_json: bool) -> None:
    if as_json:
        print_json(told.text)
    else:
        click.echo(describe(told.value))


def metrics_table(answer: ScalingMetrics) -> str:
    """A row for each target, and one for each replica."""
    if not answer.targets:
        return "There is no model yet."
    targets = aligned([_TARGETS, *(_target_row(target) for target in answer.targets)], range(3, len(_TARGETS)))
    pods = [_pod_row(pod) for target in answer.targets for pod in target.pods]
    return "\n".join([*targets, "", *aligned([_PODS, *pods], range(3, len(_PODS)))] if pods else targets)


def _target_row(target: TargetMetrics) -> tuple[str, ...]:
    count = target.replicas
    return (
        target.target,
        target.phase,
        replicas_of(count.current, count.ready, count.desired) or "-",
        str(target.held_requests),
        *(_time(one) for _, one in _latencies(target.latency)),
    )


def _pod_row(pod: ReplicaMetrics) -> tuple[str, ...]:
    return (
        pod.pod,
        pod.target,
        _ready(pod),
        "-" if pod.in_flight is None else str(pod.in_flight),
        _number(pod.queue_length),
        _number(pod.running_requests),
        _number(pod.kv_cache_usage, "%"),
        _number(pod.gpu_utilization, "%"),
        _number(pod.tokens_per_second),
        _time(pod.latency.ttft),
        _time(pod.latency.e2e),
        _oldest(pod),
    )


def _ready(pod: ReplicaMetrics) -> str:
    return "leaving" if pod.leaving else "yes" if pod.ready else "no"


def _latencies(latency: Latency) -> Iterator[tuple[str, Measured | None]]:
    yield from (("ttft", latency.ttft), ("e2e", latency.e2e), ("itl", latency.itl))


def describe_replica(pod: ReplicaMetrics) -> str:
    """One replica for a person: a row for each thing there is to say."""
    ready = _ready(pod) + (f", for {words_of(pod.ready_seconds)}" if pod.ready_seconds is not None else "")
    within = f"p{words.number(pod.latency.percentile)} of {duration(pod.latency.window_seconds)}"
    rows = [
        ("pod", pod.pod),
        ("target", pod.target),
        ("served as", pod.model),
        ("endpoint", pod.endpoint),
        ("ready", ready),
        ("in flight", None if pod.in_flight is None else str(pod.in_flight)),
        ("queue", _with_age(pod.queue_length)),
        ("running", _with_age(pod.running_requests)),
        ("KV cache", _with_age(pod.kv_cache_usage, "%")),
        ("GPU", _with_age(pod.gpu_utilization, "%")),
        ("tokens/s", _with_age(pod.tokens_per_second)),
        *((name, f"{_time(one)}, {within}" if one else "-") for name, one in _latencies(pod.latency)),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows if value is not None)


def policies_table(answer: Policies) -> str:
    """Every policy in a row, or the only one in full; and the targets that have none."""
    paragraphs = []
    if len(answer.policies) == 1:
        paragraphs.append(describe_policy(answer.policies[0]))
    elif answer.policies:
        rows = [_policy_row(policy) for policy in answer.policies]
        paragraphs.append("\n".join(aligned([_POLICIES, *rows], range(2, 6))))
    if answer.without_policy:
        paragraphs.append(f"Without a scaling policy: {', '.join(answer.without_policy)}")
    return "\n\n".join(paragraphs) or "There is no model yet."


def _policy_row(policy: PolicyAnswer) -> tuple[str, ...]:
    count = policy.replicas
    why = policy.conflict or (policy.decision.reason if policy.decision is not None else "")
    return (
        policy.target,
        policy.policy,
        *("-" if number is None else str(number) for number in (count.current, count.ready, count.desired)),
        f"{policy.min_replicas}-{policy.max_replicas}",
        cut(why, _WHY_CHARACTERS),
    )


def describe_policy(policy: PolicyAnswer) -> str:
    """A policy and what it has decided, for a person."""
    override, count = policy.override, policy.replicas
    rows: list[tuple[str, str | None]] = [
        ("target", policy.target),
        ("served as", policy.model),
        ("policy", policy.policy + (", paused" if policy.paused else "")),
        ("source", None if policy.source == policy.policy else policy.source),
        ("replicas", replicas_of(count.current, count.ready, count.desired)),
        ("bounds", f"{policy.min_replicas} to {policy.max_replicas}"),
        ("conflict", policy.conflict),
    ]
    if override is not None:
        left = duration(override.expires_in_seconds)
        rows.append(("set to", f"{override.replicas} by {override.by}, for another {left}, until {override.expires}"))
    rows.append(("rules", _below(_rules(policy.scaling_rules)) if policy.scaling_rules else "none"))
    rows.append(("decision", "none yet" if policy.decision is None else _decision(policy.decision)))
    if policy.conditions:
        states = [(one.type, one.status, one.reason, one.message) for one in policy.conditions]
        rows.append(("conditions", _below(aligned(states))))
    return "\n".join(f"{name:<10} {value}" for name, value in rows if value is not None)


def _rules(rules: list[RuleAnswer]) -> list[str]:
    found = []
    for rule in rules:
        aim = f"target {_amount(rule, rule.target)}"
        if rule.threshold > rule.target:
            aim += f", threshold {_amount(rule, rule.threshold)}"
        now = "missing" if rule.current is None else _amount(rule, rule.current)
        asks = "" if rule.replicas is None else words.replicas(rule.replicas)
        found.append((rule.name, now, aim, asks))
    return aligned(found, (1,))


def _amount(rule: RuleAnswer, value: float) -> str:
    try:
        return words.amount(value, Signal(Metric(rule.metric)))
    except ValueError:  # a newer proxy may have more of them
        return words.number(value)


def _decision(decision: DecisionAnswer) -> str:
    """What it came to, and a row for each step, as `vllm-chill decide` has them."""
    steps = [f"{step.stage:<9}  {step.replicas:>4}  {step.reason}" for step in decision.trail]
    summary = f"{words.replicas(decision.replicas)}, {duration(decision.age_seconds)} ago"
    return "\n".join([summary, *(f"{'':<11}{step}" for step in steps)])


def _below(lines: list[str]) -> str:
    return f"\n{'':<11}".join(lines)


def _number(measured: Measured | None, unit: str = "") -> str:
    if measured is None:
        return "-"
    return f"{measured.value:.0f}{unit}" if measured.value >= 10 else f"{words.number(round(measured.value, 1))}{unit}"


def _with_age(measured: Measured | None, unit: str = "") -> str:
    return "-" if measured is None else f"{_number(measured, unit)}, {duration(measured.age_seconds)} ago"


def _time(measured: Measured | None) -> str:
    """Milliseconds as people write them."""
    if measured is None:
        return "-"
    if measured.value < 1000:
        return f"{_number(measured)}ms"
    return f"{measured.value / 1000:.1f}s" if measured.value < 60_000 else duration(measured.value / 1000)


def _oldest(pod: ReplicaMetrics) -> str:
    figures = (pod.queue_length, pod.running_requests, pod.kv_cache_usage, pod.gpu_utilization, pod.tokens_per_second)
    ages = [one.age_seconds for one in (*figures, pod.latency.ttft, pod.latency.e2e) if one is not None]
    return duration(max(ages)) if ages else "-"


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return None


def _at(route: Route, name: str) -> str:
    """The path of a route that ends with a name."""
    return route.value.partition("{")[0] + quote(name, safe="")
