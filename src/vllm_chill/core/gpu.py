"""What is known of GPUs and of the engines on them at one moment. Pure.

The rule: a reading that is missing is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory in MiB, temperature in degrees Celsius, power in watts; the rest in percent, 0 to 100.

    `index` counts the GPUs of one machine; `node` is that machine's name where several are told of.
    """

    index: int | None = None
    name: str | None = None
    uuid: str | None = None
    node: str | None = None
    utilization_percent: float | None = None
    memory_used_mb: int | None = None
    memory_total_mb: int | None = None
    temperature_c: float | None = None
    power_draw_w: float | None = None
    power_limit_w: float | None = None
    fan_speed_percent: float | None = None
    encoder_util_percent: float | None = None
    decoder_util_percent: float | None = None

    @property
    def memory_util_percent(self) -> float | None:
        """The part of its memory that is in use."""
        if self.memory_used_mb is None or not self.memory_total_mb:
            return None
        return round(100 * self.memory_used_mb / self.memory_total_mb, 2)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What a running vLLM says of itself: no figures of a GPU, but of the work and the cache that it has on one.

    `kv_cache_percent` is the part of its KV cache that is in use, 0 to 100.
    """

    target: str
    endpoint: str
    kv_cache_percent: float | None = None
    running: int | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What one source tells: of GPUs, or, where it cannot, of the engines."""

    source: str
    gpus: tuple[Gpu, ...] = ()
    engines: tuple[EngineLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuUse:
    """How much GPUs are used, in percent, 0 to 100, each the mean of several: `by_pod` those of a pod, by its namespace
    and name; `all` all that the source tells of.
    """

    all: float | None = None
    by_pod: Mapping[tuple[str, str], float] = field(default_factory=dict)
