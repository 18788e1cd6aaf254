"""How the steps of a decision say numbers, counts and names. The words of every trail come from here."""

from __future__ import annotations

from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal

_QUERY_CHARACTERS = 60
_UNITS = {Metric.LATENCY: " ms", Metric.GPU_UTILIZATION: "%", Metric.KV_CACHE_USAGE: "%"}


def number(value: float) -> str:
    """A number with at most two decimals: `42`, `1.33`."""
    text = f"{value:.2f}"
    return text.rstrip("0").rstrip(".") or "0"


def amount(value: float, signal: Signal) -> str:
    """A value of a signal with its unit: `90%`, `1200 ms`, `42`."""
    return number(value) + _UNITS.get(signal.metric, "")


def replicas(count: int) -> str:
    """So many replicas: `1 replica`, `9 replicas`."""
    return f"{count} replica" if count == 1 else f"{count} replicas"


def name(signal: Signal) -> str:
    """What a signal is called, with what tells it from others of its metric: `latency (ttft, p95)`."""
    told: list[str] = []
    if signal.metric is Metric.LATENCY and signal.aggregation is not Aggregation.AVERAGE:
        told.append(signal.aggregation.value)
    if signal.percentile is not None:
        told.append(f"p{number(signal.percentile)}")
    if signal.query is not None:
        query = " ".join(signal.query.split())
        told.append(query if len(query) <= _QUERY_CHARACTERS else f"{query[: _QUERY_CHARACTERS - 1]}…")
    return f"{signal.metric.value} ({', '.join(told)})" if told else signal.metric.value
