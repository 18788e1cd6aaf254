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
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

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
    GPU_MEMORY = "GPU memory"
    HELD = "requests held by endpoint pickers"
    HELD_BY_TARGET = "requests held by proxies"


Take = Callable[[Iterable[float]], float]
Parts = dict[tuple[str | None, ...], float]
Owner = TypeVar("Owner", bound=Hashable)

# vLLM's own labels, and the address of whoever has a page of his own; the others are of who scraped it.
_ENGINE = ("exported_instance", "instance", "engine", "model_name")
_RESULT = (*_ENGINE, "finished_reason")
_GPU = ("exported_instance", "instance", "Hostname", "UUID", "gpu", "GPU_I_ID")
_WAITING = (
    *("exported_instance", "instance", "fairness_id", "priority"),
    *("inference_pool", "model_name", "target_model_name"),
)
_PROXY = ("exported_instance", "instance", "target")

# What a page says itself is "exported_" where whoever scrapes it has a label of that name; it is nearer to the truth.
_POD_LABELS = ("exported_pod", "pod", "pod_name", "kubernetes_pod_name")
_INSTANCE_LABELS = ("exported_instance", "instance")
_CACHE_LABELS = ", ".join((*_POD_LABELS, *_INSTANCE_LABELS, "engine", "num_gpu_blocks", "block_size"))

_BLANK = 1 << 40
_USED, _FREE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"

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
        # No metric of vLLM's: a DCGM exporter says it of the pods that have GPUs, where there is one.
        Figure.GPU_MEMORY: " or ".join(f'{{__name__=~"{_USED}|{_FREE}",{one}}}' for one in _selectors(namespace)),
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
    """
    return " or ".join(form.format(f"{name}{{{one}}}") for name in names for one in _selectors(namespace))


def _selectors(namespace: str) -> tuple[str, str]:
    """The label `namespace` may be that of whoever was scraped, such as a gateway or another Prometheus: then what the
    page itself said is `exported_namespace`, and counts alone.
    """
    ours = quoted(namespace)
    return f"exported_namespace={ours}", f'namespace={ours},exported_namespace=""'


class Place(NamedTuple):
    """What labels say of a series' pod: the names that they give it, most likely the first; for want of any, the
    address that was scraped.
    """

    named: tuple[str, ...]
    instance: str = ""


class Scraped:
    """What was answered about a namespace, put together once, and told of any of its pods as often as is asked.

    A figure that is not `told` is missing; `failures` says why.
    """

    def __init__(self, told: Mapping[Figure, Iterable[Series]], failures: Mapping[Figure, str]) -> None:
        # A cache's size is in its labels.
        sizes = map(_size, told.get(Figure.CACHE, ()))
        self._figures: tuple[tuple[Take, dict[Place, Parts]], ...] = (
            (max, _parts(told.get(Figure.KV, ()), _place, _ENGINE)),
            (math.fsum, _parts(told.get(Figure.QUEUE, ()), _place, _ENGINE)),
            (math.fsum, _parts(told.get(Figure.RUNNING, ()), _place, _ENGINE)),
            (math.fsum, _parts(told.get(Figure.SUCCESSES, ()), _place, _RESULT)),
            (math.fsum, _parts(told.get(Figure.RATE, ()), _place, _RESULT)),
            (math.fsum, _parts(sizes, _place, _ENGINE)),
        )
        memory = [_read(one) for one in told.get(Figure.GPU_MEMORY, ())]
        self._gpus = [
            _sums(_parts([one for one in memory if one.labels.get("__name__") == name], _gpu_pod, _GPU))
            for name in (_USED, _FREE)
        ]
        # Mostly a place names one pod, whoever is asked about: then a question costs what its own pods do.
        places = {place for _, known in self._figures for place in known}
        self._unclear = [place for place in places if len(place.named) != 1]
        self._loads = self._of({place.named[0]: [place] for place in places if len(place.named) == 1})
        self._held = _sums(_parts(told.get(Figure.HELD, ()), _model, _WAITING))
        self._held_by_target = _sums(_parts(told.get(Figure.HELD_BY_TARGET, ()), _target, _PROXY))
        self._failures = {str(figure): failure for figure, failure in failures.items()}

    def reading(self, pods: Sequence[PodPlace]) -> LoadReading:
        """What it says of these pods, and of others that labels name. Among the failures are the figures that could not
        be asked for, by their names, which no pod can have; and those of these pods that nothing is told of.
        """
        find, found = finder(pods), dict[str, list[Place]]()
        for place in self._unclear:
            if (pod := find(place)) is not None:
                found.setdefault(pod, [Place((pod,))]).append(place)
        loads: Mapping[str, EngineLoad] = self._loads
        if found:
            loads = {pod: load for pod, load in loads.items() if pod not in found} | self._of(found)
        silent = {pod.name: _SILENT for pod in pods if pod.name not in loads}
        return LoadReading(loads, self._held, self._failures | silent, self._held_by_target)

    def _of(self, found: Mapping[str, Sequence[Place]]) -> dict[str, EngineLoad]:
        """The load of each pod, of the parts that it has in all of its places; none where nothing of it is known."""
        loads = {
            pod: EngineLoad(*(_one(take, _merged(known, places)) for take, known in self._figures))
            for pod, places in found.items()
        }
        used, free = self._gpus
        return {
            pod: replace(load, gpu_memory_used_mb=used.get(pod), gpu_memory_free_mb=free.get(pod))
            for pod, load in loads.items()
            if load != _NOTHING
        }


_NOTHING = EngineLoad()
_SILENT = (
    "no series of vLLM's is of this pod; see whether it is scraped, at least twice a minute, with the labels namespace "
    "and pod, or with its address as instance"
)


def finder(pods: Sequence[PodPlace]) -> Callable[[Place], str | None]:
    """Which pod a place is, None if that cannot be told.

    It is the one that is named, one of these first; else the one of these that has the address.
    """
    names = frozenset(pod.name for pod in pods)
    # An address that two pods have (their node's) says which it is only with the port.
    exact: dict[str, str | None] = {}
    hosts: dict[str, str | None] = {}
    for pod in pods:
        if pod.endpoint is not None:
            for places, address in ((exact, str(pod.endpoint)), (hosts, pod.endpoint.host)):
                places[address] = None if address in places else pod.name

    def find(place: Place) -> str | None:
        if place.named:
            # Addresses are given to others again: what a label calls a pod that is gone is not another one's.
            return next((name for name in place.named if name in names), place.named[0])
        return exact.get(place.instance) or hosts.get(_host(place.instance))

    return find


def _place(series: Series) -> Place:
    named = tuple(dict.fromkeys(name for name in map(series.labels.get, _POD_LABELS) if name))
    if named:
        return Place(named)
    return Place((), next(filter(None, map(series.labels.get, _INSTANCE_LABELS)), ""))


def _gpu_pod(series: Series) -> str | None:
    # The address that was scraped is the exporter's.
    return next(iter(_place(series).named), None)


def _host(instance: str) -> str:
    host, colon, port = instance.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
        host = instance
    return host.removeprefix("[").removesuffix("]")


def _parts(
    series: Iterable[Series], whose: Callable[[Series], Owner | None], labels: tuple[str, ...]
) -> dict[Owner, Parts]:
    """For each owner the values of its parts, which are told apart by these labels; NaN for one that is missing."""
    found: dict[Owner, Parts] = {}
    for one in series:
        owner = whose(one)
        if owner is not None:
            _put(found.setdefault(owner, {}), tuple(map(one.labels.get, labels)), one.value)
    return found


def _put(parts: Parts, part: tuple[str | None, ...], value: float) -> None:
    before = parts.get(part, math.nan)
    if not math.isfinite(value):
        parts.setdefault(part, math.nan)
    elif not before >= value:
        parts[part] = value


def _merged(known: Mapping[Place, Parts], places: Sequence[Place]) -> Parts:
    if len(places) == 1:
        return known.get(places[0], {})
    parts: Parts = {}
    for place in places:
        for part, value in known.get(place, {}).items():
            _put(parts, part, value)
    return parts


def _one(take: Take, parts: Parts) -> float | None:
    return None if not parts or any(map(math.isnan, parts.values())) else take(parts.values())


def _sums(known: Mapping[str, Parts]) -> dict[str, float]:
    sums = {owner: _one(math.fsum, parts) for owner, parts in known.items()}
    return {owner: value for owner, value in sums.items() if value is not None}


def _size(config: Series) -> Series:
    """How many tokens a cache with this configuration holds; until vLLM has counted its blocks it says "None"."""
    try:
        tokens = float(config.labels["num_gpu_blocks"]) * float(config.labels["block_size"])
    except (KeyError, ValueError):
        tokens = math.nan
    return config._replace(value=tokens)


def _read(memory: Series) -> Series:
    """What DCGM has no reading of is a number beyond all memory."""
    return memory if 0 <= memory.value < _BLANK else memory._replace(value=math.nan)


def _model(held: Series) -> str | None:
    # A request whose model is not rewritten has no target.
    return held.labels.get("target_model_name") or held.labels.get("model_name")


def _target(held: Series) -> str | None:
    # A proxy says the kind too, of anything but a Deployment.
    return held.labels.get("target", "").rpartition(" ")[2] or None
