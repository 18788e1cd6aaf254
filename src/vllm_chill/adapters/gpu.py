"""Readings of GPUs: from NVML where this process sees them, from a DCGM exporter, and from vLLM for want of either.

The rule: nothing is read before somebody asks, nothing is woken by asking, and what is not told stays None.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from vllm_chill.core.gpu import EngineLoad, Gpu, GpuReading
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

_SECONDS = 5.0
_PAGE_BYTES = 16 << 20
_BLANK = 1 << 62
"""DCGM gives numbers above this for what it has no reading of."""

_MIB = 1 << 20


class NvmlStats:
    """ports.GpuStats: the GPUs that NVIDIA's driver shows this process."""

    def __init__(self, load: Callable[[], ModuleType] | None = None) -> None:
        """`load` gives the NVML bindings; by default those of the extra `gpu`, if they are installed."""
        self._load = load or _bindings
        self._nvml: Any = None

    async def read(self) -> GpuReading:
        """Every GPU, asked in a thread, as the driver may take its time."""
        try:
            async with asyncio.timeout(_SECONDS):
                return await asyncio.to_thread(self._read)
        except TimeoutError:
            raise BackendUnavailable(f"NVML did not answer within {_SECONDS:g} s") from None

    def _read(self) -> GpuReading:
        if self._nvml is None:
            nvml: Any = self._load()
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                raise BackendUnavailable(f"NVML sees no GPU here: {error}") from None
            self._nvml = nvml
        nvml = self._nvml
        try:
            gpus = tuple(self._gpu(index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            raise BackendUnavailable(f"NVML does not tell of the GPUs: {error}") from None
        if not gpus:
            raise BackendUnavailable("NVML sees no GPU here")
        return GpuReading("nvml", gpus)

    def _gpu(self, index: int) -> Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)

        def told(ask: str, *more: Any) -> Any:
            try:
                return getattr(nvml, ask)(handle, *more)
            except nvml.NVMLError:
                return None  # not every GPU has every reading, and a part of one has few

        memory = told("nvmlDeviceGetMemoryInfo")
        use, encoder, decoder = (
            told(ask)
            for ask in (
                "nvmlDeviceGetUtilizationRates",
                "nvmlDeviceGetEncoderUtilization",
                "nvmlDeviceGetDecoderUtilization",
            )
        )
        return Gpu(
            index=index,
            name=told("nvmlDeviceGetName"),
            uuid=told("nvmlDeviceGetUUID"),
            utilization_percent=None if use is None else use.gpu,
            memory_used_mb=None if memory is None else memory.used // _MIB,
            memory_total_mb=None if memory is None else memory.total // _MIB,
            temperature_c=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_draw_w=_watts(told("nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(told("nvmlDeviceGetPowerManagementLimit")),
            fan_speed_percent=told("nvmlDeviceGetFanSpeed"),
            encoder_util_percent=None if encoder is None else encoder[0],
            decoder_util_percent=None if decoder is None else decoder[0],
        )


def _bindings() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise BackendUnavailable("NVML's bindings are not installed (vllm-chill[gpu] brings them)") from None
    module: ModuleType = pynvml
    return module


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


_DCGM_READINGS = {
    "DCGM_FI_DEV_GPU_UTIL": "utilization_percent",
    "DCGM_FI_DEV_FB_USED": "memory_used_mb",
    "DCGM_FI_DEV_FB_TOTAL": "memory_total_mb",
    "DCGM_FI_DEV_FB_FREE": "free",
    "DCGM_FI_DEV_FB_RESERVED": "reserved",
    "DCGM_FI_DEV_GPU_TEMP": "temperature_c",
    "DCGM_FI_DEV_POWER_USAGE": "power_draw_w",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": "power_limit_w",
    "DCGM_FI_DEV_FAN_SPEED": "fan_speed_percent",
    "DCGM_FI_DEV_ENC_UTIL": "encoder_util_percent",
    "DCGM_FI_DEV_DEC_UTIL": "decoder_util_percent",
}
_WHOLE = ("memory_used_mb", "memory_total_mb")


class DcgmStats:
    """ports.GpuStats: the GPUs that a DCGM exporter tells of at `url`; its path is /metrics unless it has one."""

    def __init__(self, url: str, timeout_seconds: float = _SECONDS) -> None:
        self._timeout = timeout_seconds
        self._url = f"{url.rstrip('/')}/metrics" if _has_no_path(url) else url

    async def read(self) -> GpuReading:
        """Every GPU that the exporter tells of; of one that is cut into parts, the whole."""
        gpus = dcgm_gpus(await _page(self._url, self._timeout))
        if not gpus:
            raise BackendUnavailable(f"{self._url} tells of no GPU; is it a DCGM exporter's?")
        return GpuReading("dcgm", gpus)


def _has_no_path(url: str) -> bool:
    try:
        return urlsplit(url).path in ("", "/")
    except ValueError:
        return False  # whoever asks for it will be told


def dcgm_gpus(page: str) -> tuple[Gpu, ...]:
    """The GPUs in a DCGM exporter's metrics."""
    readings: dict[tuple[str, str], dict[str, float]] = {}
    names: dict[tuple[str, str], Mapping[str, str]] = {}
    for name, labels, value in _samples(page, _DCGM_READINGS):
        key = (labels.get("Hostname", ""), labels.get("UUID", "") or labels.get("gpu", ""))
        names.setdefault(key, labels)
        if not labels.get("GPU_I_ID") and 0 <= value < _BLANK:
            readings.setdefault(key, {}).setdefault(_DCGM_READINGS[name], value)
    return tuple(_dcgm_gpu(labels, readings.get(key, {})) for key, labels in names.items())


def _dcgm_gpu(labels: Mapping[str, str], told: dict[str, float]) -> Gpu:
    free, reserved = told.pop("free", None), told.pop("reserved", 0.0)
    if "memory_total_mb" not in told and free is not None and "memory_used_mb" in told:
        told["memory_total_mb"] = told["memory_used_mb"] + free + reserved
    index = labels.get("gpu", "")
    readings: dict[str, Any] = {name: int(value) if name in _WHOLE else value for name, value in told.items()}
    return Gpu(
        index=int(index) if index.isdecimal() else None,
        name=labels.get("modelName") or None,
        uuid=labels.get("UUID") or None,
        node=labels.get("Hostname") or None,
        **readings,
    )


# The first of them is how vLLM 0.32 calls it, the second is from before its V1.
_KV_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


class VllmStats:
    """ports.GpuStats: what the engines that run say of their load. `ready` names each, and where it is."""

    def __init__(self, ready: Callable[[], Iterable[tuple[str, Endpoint]]]) -> None:
        self._ready = ready

    async def read(self) -> GpuReading:
        """The load of each engine that answers; none is woken."""
        ready = tuple(self._ready())
        if not ready:
            raise BackendUnavailable("no engine is awake that could tell of its load")
        loads = await asyncio.gather(*(_load(target, endpoint) for target, endpoint in ready))
        engines = tuple(load for load in loads if load is not None)
        if not engines:
            raise BackendUnavailable("the engines that are awake have no metrics of vLLM")
        return GpuReading("vllm", engines=engines)


async def _load(target: str, endpoint: Endpoint) -> EngineLoad | None:
    try:
        page = await _page(f"http://{endpoint}/metrics")
    except BackendUnavailable:
        return None
    return engine_load(target, str(endpoint), page)


def engine_load(target: str, endpoint: str, page: str) -> EngineLoad | None:
    """The load of a vLLM from its metrics; None if they are not vLLM's.

    Of one that has several engines in it, the requests of all, and the cache that is fullest.
    """
    values: dict[str, list[float]] = {}
    for name, _, value in _samples(page, (*_KV_CACHE, _RUNNING, _WAITING)):
        values.setdefault(name, []).append(value)
    if not values:
        return None
    cache = next((values[name] for name in _KV_CACHE if name in values), None)
    return EngineLoad(
        target,
        endpoint,
        kv_cache_percent=None if cache is None else round(100 * max(cache), 2),
        running=int(sum(values[_RUNNING])) if _RUNNING in values else None,
        waiting=int(sum(values[_WAITING])) if _WAITING in values else None,
    )


def _samples(page: str, wanted: Iterable[str]) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """The samples of these metrics that are numbers. Only their lines are parsed: a page has thousands of others."""
    starts = tuple(f"{name}{end}" for name in wanted for end in "{ ")
    lines = "\n".join(line for line in page.splitlines() if line.startswith(starts))
    try:
        for family in text_string_to_metric_families(lines):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    yield sample.name, sample.labels, sample.value
    except ValueError:
        return


async def _page(url: str, timeout_seconds: float = _SECONDS) -> str:
    """The text at a URL. Raises BackendUnavailable."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_seconds)) as session,
            session.get(url) as response,
        ):
            if response.status != 200:
                raise BackendUnavailable(f"{url} answers with status {response.status}")
            page = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                page += chunk
                if len(page) > _PAGE_BYTES:
                    raise BackendUnavailable(f"{url} answers with more than {_PAGE_BYTES >> 20} MiB")
            return page.decode(errors="replace")
    except TimeoutError:
        raise BackendUnavailable(f"{url} did not answer within {timeout_seconds:g} s") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise BackendUnavailable(f"{url} cannot be asked: {error}") from None
