"""What a Prometheus is asked of a namespace, and how its series become the load of each pod. Pure.

The rule: what is not told, or is no finite number, is missing and never 0; and a sum that lacks a part is missing too.

Nothing is aggregated in the expressions, as what a series is of is told by labels that differ from one Prometheus to
the next, and the engines within a pod are not to be lost: of their caches the fullest counts, requests and tokens are
summed. Who scrapes a pod twice, by two jobs or from two Prometheuses, has each series twice; it counts once.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace


class Series(NamedTuple):
    """One series of an instant vector: its labels, and its value at a time, in seconds since 1970."""

    labels: Mapping[str, str]
    value: float
    at: float


class Figure(enum.StrEnum):
    """What is asked for, each by one expression; as text, what a failure is called by."""

    KV = "KV cache use"
    QUEUE = "queue length"
    RUNNING = "running requests"
    SUCCESSES = "answered requests"
    RATE = "request rate"
    CACHE = "KV cache size"
    HELD = "requests held by endpoint pickers"
    HELD_BY_TARGET = "requests held by proxies"


PodOf = Callable[[Mapping[str, str]], str | None]
Take = Callable[[Iterable[float]], float]

# vLLM's own labels, and the address of whoever has a page of his own; the others are of who scraped it.
_ENGINE = ("exported_instance", "instance", "engine", "model_name")
_RESULT = (*_ENGINE, "finished_reason")
_WAITING = (
    *("exported_instance", "instance", "fairness_id", "priority"),
    *("inference_pool", "model_name", "target_model_name"),
)
_PROXY = ("exported_instance", "instance", "target")

# What a page says itself is "exported_" where whoever scrapes it has a label of that name; it is nearer to the truth.
_POD_LABELS = ("exported_pod", "pod", "pod_name", "kubernetes_pod_name")
_INSTANCE_LABELS = ("exported_instance", "instance")
_CACHE_LABELS = ", ".join((*_POD_LABELS, *_INSTANCE_LABELS, "engine", "num_gpu_blocks", "block_size"))

_PEAK = "max_over_time({}[1m])"
_RATE = "rate({}[5m])"


def expressions(namespace: str) -> dict[Figure, str]:
    """What to ask for the pods of a namespace: instant vectors of all of them, with their labels.

    Requests and the cache's use are the peaks of the last minute, as a short one would be missed between two scrapes;
    the rate is that of five minutes.
    """
    held = f"(.+ )?{re.escape(namespace)}/.+"
    return {
        Figure.KV: _in(namespace, _PEAK, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        Figure.QUEUE: _in(namespace, _PEAK, "vllm:num_requests_waiting"),
        Figure.RUNNING: _in(namespace, _PEAK, "vllm:num_requests_running"),
        Figure.SUCCESSES: _in(namespace, "{}", "vllm:request_success_total"),
        Figure.RATE: _in(namespace, _RATE, "vllm:request_success_total"),
        # A series of this one has some fifty labels, and these are all that is read of it.
        Figure.CACHE: f"max by ({_CACHE_LABELS}) ({_in(namespace, '{}', 'vllm:cache_config_info')})",
        Figure.HELD: _in(namespace, "{}", "inference_extension_flow_control_queue_size"),
        # A proxy says itself whose callers it holds, and need not be in their namespace.
        Figure.HELD_BY_TARGET: f"vllm_chill_requests_waiting{{target=~{quoted(held)}}}",
    }


def quoted(text: str) -> str:
    """The text as a string of PromQL, which are Go's: JSON's escapes are among those."""
    return json.dumps(text, ensure_ascii=False)


def _in(namespace: str, form: str, *names: str) -> str:
    """Each of these metrics in a namespace; of two names for the same, the first counts where a pod has both.

    `or` compares labels without the name, so both must be under a function that takes the name off, or be one name.
    The label `namespace` may be that of whoever was scraped, such as a gateway or another Prometheus: then what the
    page itself said is `exported_namespace`, and counts alone.
    """
    ours = quoted(namespace)
    selectors = (f"exported_namespace={ours}", f'namespace={ours},exported_namespace=""')
    return " or ".join(form.format(f"{name}{{{selector}}}") for name in names for selector in selectors)


def reading(
    pods: Sequence[PodPlace], told: Mapping[Figure, Iterable[Series]], failures: Mapping[Figure, str]
) -> LoadReading:
    """What these answers say of these pods, and of others of which they name the pod; a figure that is not among them
    is missing.

    `failures` has the figures that could not be asked for, by their names, which no pod can have; and the pods of these
    that no series is of.
    """
    pod_of = finder(pods)

    def by_pod(figure: Figure, labels: tuple[str, ...] = _ENGINE, take: Take = math.fsum) -> dict[str, float]:
        return _by(told.get(figure, ()), lambda one: pod_of(one.labels), labels, take)

    figures = {
        "kv": by_pod(Figure.KV, take=max),
        "queue": by_pod(Figure.QUEUE),
        "running": by_pod(Figure.RUNNING),
        "successes": by_pod(Figure.SUCCESSES, _RESULT),
        "rate": by_pod(Figure.RATE, _RESULT),
        "cache_tokens": _by(
            map(_tokens, told.get(Figure.CACHE, ())), lambda one: pod_of(one.labels), _ENGINE, math.fsum
        ),
    }
    names = dict.fromkeys(name for known in figures.values() for name in known)
    loads = {name: EngineLoad(**{figure: known.get(name) for figure, known in figures.items()}) for name in names}
    why = {str(figure): failure for figure, failure in failures.items()}
    return LoadReading(
        loads=loads,
        held=_by(told.get(Figure.HELD, ()), _model, _WAITING, math.fsum),
        failures=why | {pod.name: _SILENT for pod in pods if pod.name not in loads},
        held_by_target=_by(told.get(Figure.HELD_BY_TARGET, ()), _target, _PROXY, math.fsum),
    )


_SILENT = (
    "no series of vLLM's is of this pod; see whether it is scraped, at least twice a minute, with the labels namespace "
    "and pod, or with its address as instance"
)


def finder(pods: Sequence[PodPlace]) -> PodOf:
    """Which pod a series with these labels is of, None if they do not tell.

    It is the one that a label names, one of these first; else, if none names any pod at all, the one of these that was
    scraped at its address.
    """
    names = frozenset(pod.name for pod in pods)
    # An address that two pods have (their node's) says which it is only with the port.
    exact, hosts = _places(pods)

    def find(labels: Mapping[str, str]) -> str | None:
        named = [labels[label] for label in _POD_LABELS if labels.get(label)]
        if named:
            # Addresses are given to others again: what a label calls a pod that is gone is not another one's.
            return next((name for name in named if name in names), named[0])
        for label in _INSTANCE_LABELS:
            if instance := labels.get(label):
                return exact.get(instance) or hosts.get(_host(instance))
        return None

    return find


def _places(pods: Sequence[PodPlace]) -> tuple[dict[str, str | None], dict[str, str | None]]:
    exact: dict[str, str | None] = {}
    hosts: dict[str, str | None] = {}
    for pod in pods:
        if pod.endpoint is not None:
            for places, place in ((exact, str(pod.endpoint)), (hosts, pod.endpoint.host)):
                places[place] = None if place in places else pod.name
    return exact, hosts


def _host(instance: str) -> str:
    host, colon, port = instance.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
        host = instance
    return host.removeprefix("[").removesuffix("]")


def _by(
    series: Iterable[Series], whose: Callable[[Series], str | None], labels: tuple[str, ...], take: Take
) -> dict[str, float]:
    """One number for each owner, taken of its parts, which are told apart by these labels."""
    found: dict[str, dict[tuple[str | None, ...], float]] = {}
    for one in series:
        owner = whose(one)
        if owner is None:
            continue
        parts = found.setdefault(owner, {})
        part = tuple(map(one.labels.get, labels))
        before = parts.get(part, math.nan)
        if math.isfinite(one.value) and not before >= one.value:
            parts[part] = one.value
        else:
            parts.setdefault(part, math.nan)
    whole = {owner: parts.values() for owner, parts in found.items() if not any(map(math.isnan, parts.values()))}
    return {owner: take(values) for owner, values in whole.items()}


def _tokens(config: Series) -> Series:
    """How many tokens a cache with this configuration holds; until vLLM has counted its blocks it says "None"."""
    try:
        tokens = float(config.labels["num_gpu_blocks"]) * float(config.labels["block_size"])
    except (KeyError, ValueError):
        tokens = math.nan
    return config._replace(value=tokens)


def _model(held: Series) -> str | None:
    # A request whose model is not rewritten has no target.
    return held.labels.get("target_model_name") or held.labels.get("model_name")


def _target(held: Series) -> str | None:
    # A proxy says the kind too, of anything but a Deployment.
    return held.labels.get("target", "").rpartition(" ")[2] or None
