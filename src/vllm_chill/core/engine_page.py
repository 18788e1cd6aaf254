"""An engine's /metrics page, read for the little of it that scaling needs. Pure.

The rule: what is not told stays None, never 0. A page is read line by line and in pieces, as it may be large and
nothing else runs meanwhile. The engines within one vLLM (label `engine`) count together: requests, tokens and
histograms are summed, and of their caches the fullest counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import add

from vllm_chill.core.histogram import Histogram, histogram_of


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What an engine said of itself at one moment.

    `running` and `waiting` are requests, `kv_cache_percent` the part of its cache that is in use, 0 to 100. Tokens,
    looked-up prefix tokens (`prefix_queries`, and the `prefix_hits` among them) and `successes`, which are requests
    that ended well, are counted since it began, at `began` (seconds since 1970, where it tells); so are the latencies,
    in seconds: `ttft` to the first token, `itl` between two tokens, `e2e` of whole requests. `cache_tokens` is how many
    tokens its KV cache holds, that of all its engines together.
    """

    running: float | None = None
    waiting: float | None = None
    kv_cache_percent: float | None = None
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    prefix_hits: float | None = None
    prefix_queries: float | None = None
    successes: float | None = None
    ttft: Histogram | None = None
    itl: Histogram | None = None
    e2e: Histogram | None = None
    began: float | None = None
    cache_tokens: float | None = None


# For each figure its names, the first that is there counts: vLLM 0.32 has the first, older ones the others, and
# llama.cpp's server has the last where it has any.
_SUMMED = {
    "running": (b"vllm:num_requests_running", b"llamacpp:requests_processing"),
    "waiting": (b"vllm:num_requests_waiting", b"llamacpp:requests_deferred"),
    "generation_tokens": (
        *(b"vllm:generation_tokens_total", b"vllm:generation_tokens"),
        b"llamacpp:tokens_predicted_total",
    ),
    "prompt_tokens": (b"vllm:prompt_tokens_total", b"vllm:prompt_tokens", b"llamacpp:prompt_tokens_total"),
    "prefix_hits": (
        *(b"vllm:prefix_cache_hits_total", b"vllm:prefix_cache_hits"),
        *(b"vllm:gpu_prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits"),
    ),
    "prefix_queries": (
        *(b"vllm:prefix_cache_queries_total", b"vllm:prefix_cache_queries"),
        *(b"vllm:gpu_prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries"),
    ),
    "successes": (b"vllm:request_success_total", b"vllm:request_success"),
}
_KV_CACHE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"llamacpp:kv_cache_usage_ratio")
_LATENCIES = {
    "ttft": (b"vllm:time_to_first_token_seconds",),
    "itl": (b"vllm:inter_token_latency_seconds", b"vllm:time_per_output_token_seconds"),
    "e2e": (b"vllm:e2e_request_latency_seconds",),
}
_BEGAN = b"process_start_time_seconds"
# Its value is always 1: what it tells is in its labels.
_CACHE = b"vllm:cache_config_info"

# A label, and what may stand between two of them.
LABEL = re.compile(rb'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')


class PageReader:
    """Reads one page. `feed` takes it in pieces of any size, cut anywhere; `sample` is to be asked after the last."""

    def __init__(self) -> None:
        self._rest = b""
        self._figures: dict[bytes, float] = {}
        self._buckets: dict[bytes, dict[float, float]] = {}
        self._broken: set[bytes] = set()

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the page."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        self._read(lines)

    def sample(self) -> EngineSample | None:
        """What the page says; None if it is no page of an engine that is known."""
        self._read([self._rest])
        self._rest = b""
        told: dict[str, float | Histogram | None] = {name: self._first(names) for name, names in _SUMMED.items()}
        kv_cache = self._first(_KV_CACHE)
        told["kv_cache_percent"] = None if kv_cache is None else 100 * kv_cache
        for latency, names in _LATENCIES.items():
            told[latency] = next((found for name in names if (found := self._histogram(name)) is not None), None)
        if all(value is None for value in told.values()):
            return None
        told["cache_tokens"] = self._figures.get(_CACHE)
        return EngineSample(**told, began=self._figures.get(_BEGAN))  # type: ignore[arg-type] # each under its own name

    def _first(self, names: tuple[bytes, ...]) -> float | None:
        return next((self._figures[name] for name in names if name in self._figures), None)

    def _histogram(self, name: bytes) -> Histogram | None:
        buckets = self._buckets.get(name)
        if buckets is None or name in self._broken:
            return None
        count = self._figures.get(name + b"_count", buckets.get(math.inf))
        total = self._figures.get(name + b"_sum")
        return None if count is None or total is None else histogram_of(buckets, count, total)

    def _read(self, lines: list[bytes]) -> None:
        wanted, figures = _WANTED, self._figures
        for line in lines:
            name, brace, rest = line.partition(b"{")
            if brace:
                name = name.rstrip()
            else:
                name, _, rest = line.partition(b" ")
            take = wanted.get(name)
            if take is None:
                continue
            labels, _, said = rest.rpartition(b"}") if brace else (b"", b"", rest)
            value = number(said)
            if value is None:
                if name in _PARTS:
                    self._broken.add(_PARTS[name])
                continue
            if name.endswith(b"_bucket"):
                bound = _bound(labels)
                if bound is not None:
                    buckets = self._buckets.setdefault(_PARTS[name], {})
                    buckets[bound] = buckets.get(bound, 0.0) + value
            elif name != _CACHE or (value := _tokens(labels)) is not None:
                before = figures.get(name)
                figures[name] = value if before is None else take(before, value)


def engine_sample(page: bytes) -> EngineSample | None:
    """What a whole page says; None if it is no page of an engine that is known."""
    reader = PageReader()
    reader.feed(page)
    return reader.sample()


_PARTS = {
    name + part: name for names in _LATENCIES.values() for name in names for part in (b"_bucket", b"_count", b"_sum")
}
_WANTED: dict[bytes, Callable[[float, float], float]] = {
    _BEGAN: max,
    _CACHE: add,
    **dict.fromkeys(_KV_CACHE, max),
    **{name: add for names in _SUMMED.values() for name in names},
    **dict.fromkeys(_PARTS, add),
}


def number(said: bytes) -> float | None:
    """The value of a line, behind which a time may stand; None if it is none, or not finite."""
    try:
        value = float(said)
    except ValueError:
        words = said.split()
        if len(words) != 2:
            return None
        try:
            value = float(words[0])
        except ValueError:
            return None
    return value if math.isfinite(value) else None


@lru_cache(maxsize=64)
def _tokens(labels: bytes) -> float | None:
    """How many tokens the cache holds that these labels describe; None while that is not known, as at a start."""
    told = dict(LABEL.findall(labels))
    blocks, size = (number(told.get(name, b"")) for name in (b"num_gpu_blocks", b"block_size"))
    return None if blocks is None or size is None else blocks * size


@lru_cache(maxsize=4096)
def _bound(labels: bytes) -> float | None:
    """The bound that a bucket's labels say. They are the same on each page, so most of them have been seen before."""
    for name, value in LABEL.findall(labels):
        if name == b"le":
            try:
                bound = float(value)
            except ValueError:
                return None
            return None if math.isnan(bound) else bound
    return None
