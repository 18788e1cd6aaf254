"""What `GET /proxy/stats` answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, convert

from vllm_chill.core.gpu import GpuReading

SourceName = Literal["nvml", "dcgm", "vllm"]


class GpuStatus(Struct, frozen=True, kw_only=True):
    """One GPU. Memory in MiB; a reading that is missing is null, never 0."""

    index: int | None
    name: str | None
    uuid: str | None
    node: str | None
    """The machine that it is in, where several are told of."""
    utilization_percent: float | None
    memory_used_mb: int | None
    memory_total_mb: int | None
    memory_util_percent: float | None
    """The part of its memory that is in use."""
    temperature_c: float | None
    power_draw_w: float | None
    power_limit_w: float | None
    fan_speed_percent: float | None
    encoder_util_percent: float | None
    decoder_util_percent: float | None


class EngineStatus(Struct, frozen=True, kw_only=True):
    """What a running vLLM says of its own load: no figures of a GPU."""

    target: str
    endpoint: str
    kv_cache_percent: float | None
    """The part of its KV cache that is in use."""
    running: int | None
    """Requests that it works on."""
    waiting: int | None
    """Requests in its own queue."""


class GpuStatsAnswer(Struct, frozen=True, kw_only=True):
    """The whole answer. `gpus` is empty where the source is vLLM itself, which knows its load and no GPU."""

    timestamp: str
    """When it was read, as RFC 3339 has it."""
    source: SourceName
    gpus: list[GpuStatus]
    engines: list[EngineStatus]
    missing: list[str]
    """Why better sources had nothing to say."""


def gpu_stats(reading: GpuReading, timestamp: str, missing: Sequence[str]) -> GpuStatsAnswer:
    """The answer with this reading in it."""
    return convert(
        {
            "timestamp": timestamp,
            "source": reading.source,
            "gpus": reading.gpus,
            "engines": reading.engines,
            "missing": missing,
        },
        GpuStatsAnswer,
        from_attributes=True,
    )
