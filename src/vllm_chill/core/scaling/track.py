"""One replica's samples over a while, and what can be said of them: rates, and latencies over a window.

The rule: counters are compared within one life of the engine only. Once it has begun anew the samples before are let
go, and what it had done before the first look at its new life is in no window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import Histogram
from vllm_chill.core.scaling.signals import Aggregation, Metric, Sample, Signal

WINDOW_SECONDS = 60.0
"""That of a latency or a rate which says no other."""

LONGEST_WINDOW_SECONDS = 600.0
DEFAULT_PERCENTILE = 95.0
_GAP_SECONDS = 15.0
"""How long before a window the sample may be that it begins with."""


_COUNTED: tuple[Callable[[EngineSample], float | None], ...] = (
    lambda sample: sample.generation_tokens,
    lambda sample: sample.prompt_tokens,
    lambda sample: sample.successes,
    lambda sample: None if sample.ttft is None else sample.ttft.count,
    lambda sample: None if sample.e2e is None else sample.e2e.count,
    lambda sample: None if sample.itl is None else sample.itl.count,
)


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at `at` has found."""

    at: float
    sample: EngineSample


class Track:
    """The samples of one replica, at least as far back as the longest window that was asked for, up to ten minutes."""

    def __init__(self) -> None:
        self._looks: deque[Looked] = deque()
        self._keep_seconds = WINDOW_SECONDS

    @property
    def newest(self) -> Looked | None:
        """The last sample that could be had."""
        return self._looks[-1] if self._looks else None

    def add(self, at: float, sample: EngineSample) -> None:
        """Take what was found at `at`, later than all before."""
        looks = self._looks
        if looks and _began_anew(looks[-1].sample, sample):
            looks.clear()
        looks.append(Looked(at, sample))
        while len(looks) > 1 and looks[1].at <= at - self._keep_seconds:
            looks.popleft()

    def signal(self, signal: Signal) -> Sample | None:
        """What is known of a signal that is measured at engines, and when it was measured; None if it is missing."""
        looked = self.newest
        if looked is None:
            return None
        sample, value = looked.sample, None
        match signal.metric:
            case Metric.QUEUE_LENGTH:
                value = sample.waiting
            case Metric.RUNNING_REQUESTS:
                value = sample.running
            case Metric.KV_CACHE_USAGE:
                value = sample.kv_cache_percent
            case Metric.TOKENS_PER_SECOND:
                value = self._tokens_per_second(signal.window_seconds or WINDOW_SECONDS)
            case Metric.LATENCY:
                value = latency_ms(signal, self.latencies(signal), quiet=is_quiet(sample))
            case _:
                pass
        return None if value is None else Sample(value, looked.at)

    def latencies(self, signal: Signal) -> Histogram | None:
        """Those that came within the window of a latency; None if they are not told, or there is but one sample."""
        pair = self._window(signal.window_seconds or WINDOW_SECONDS)
        if pair is None:
            return None
        before, after = (_latencies(looked.sample, signal.aggregation) for looked in pair)
        return None if before is None or after is None else after.since(before)

    def _tokens_per_second(self, window_seconds: float) -> float | None:
        pair = self._window(window_seconds)
        if pair is None:
            return None
        before, after = pair
        if before.sample.generation_tokens is None or after.sample.generation_tokens is None:
            return None
        return (after.sample.generation_tokens - before.sample.generation_tokens) / (after.at - before.at)

    def _window(self, seconds: float) -> tuple[Looked, Looked] | None:
        """The first and the last sample of a window; the first is from just before it begins, if there is one."""
        seconds = min(seconds, LONGEST_WINDOW_SECONDS)
        self._keep_seconds = max(self._keep_seconds, seconds)
        if len(self._looks) < 2:
            return None
        last = self._looks[-1]
        first = last
        for one in reversed(self._looks):
            if one.at < last.at - seconds - _GAP_SECONDS:
                break
            first = one
            if one.at <= last.at - seconds:
                break
        return None if first is last else (first, last)


def latency_ms(signal: Signal, latencies: Histogram | None, *, quiet: bool) -> float | None:
    """The latency that a signal asks for, in milliseconds; None if it is missing.

    `quiet`: there are no requests in the engine. Without any in the window either, the latency is 0, as nobody waits
    for anything; with some in the engine it is missing, for they may just be waiting for longer than the window.
    """
    if latencies is None:
        return None
    if latencies.count <= 0:
        return 0.0 if quiet else None
    seconds = latencies.percentile(DEFAULT_PERCENTILE if signal.percentile is None else signal.percentile)
    return None if seconds is None else 1000 * seconds


def is_quiet(sample: EngineSample) -> bool:
    """Whether the engine says that it has no requests."""
    return sample.running == 0 and sample.waiting == 0


def _latencies(sample: EngineSample, kind: Aggregation) -> Histogram | None:
    match kind:
        case Aggregation.E2E:
            return sample.e2e
        case Aggregation.ITL:
            return sample.itl
        case _:
            return sample.ttft


def _began_anew(before: EngineSample, after: EngineSample) -> bool:
    if before.began is not None and after.began is not None and before.began != after.began:
        return True
    return any(_less(count(after), count(before)) for count in _COUNTED)


def _less(after: float | None, before: float | None) -> bool:
    return (math.inf if after is None else after) < (-math.inf if before is None else before)
