"""Readings of GPUs: from NVML where this process sees them, from a DCGM exporter, and from vLLM for want of either.

The rule: nothing is read before somebody asks, nothing is woken by asking, and what is not told stays None.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.page import page
from vllm_chill.core.engine_page import engine_sample
from vllm_chill.core.gpu import EngineLoad, Gpu, GpuReading, GpuUse
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

    async def use(self) -> GpuUse:
        """How much the GPUs of this machine are used. Raises BackendUnavailable."""
        return GpuUse(_mean(gpu.utilization_percent for gpu in (await self.read()).gpus))

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
_DCGM_UTILIZATION = "DCGM_FI_DEV_GPU_UTIL"
_DCGM_USE = (_DCGM_UTILIZATION, "DCGM_FI_PROF_GR_ENGINE_ACTIVE")


class DcgmStats:
    """ports.GpuStats: the GPUs that DCGM exporters tell of at `url`; its path is /metrics unless it has one.

    Every address of its host is asked, as there is an exporter for each node, and a headless Service names them all.
    """

    def __init__(self, url: str, timeout_seconds: float = _SECONDS) -> None:
        self._timeout = timeout_seconds
        self._url = f"{url.rstrip('/')}/metrics" if _has_no_path(url) else url

    async def read(self) -> GpuReading:
        """Every GPU that the exporters tell of; of one that is cut into parts, the whole."""
        gpus = dcgm_gpus(await self._pages())
        if not gpus:
            raise BackendUnavailable(f"{self._url} tells of no GPU; is it a DCGM exporter's?")
        return GpuReading("dcgm", gpus)

    async def use(self) -> GpuUse:
        """How much the GPUs are used, and those of each pod. Raises BackendUnavailable."""
        return dcgm_use(await self._pages())

    async def _pages(self) -> str:
        """What those say that answer. Raises BackendUnavailable if none does."""
        urls, host = await self._urls()
        asked = (page(url, self._timeout, _PAGE_BYTES, host) for url in urls)
        said = await asyncio.gather(*asked, return_exceptions=True)
        pages = [one.decode(errors="replace") for one in said if isinstance(one, bytes)]
        if not pages:
            raise next(one for one in said if isinstance(one, BaseException))
        return "\n".join(pages)

    async def _urls(self) -> tuple[list[str], str | None]:
        """Where to ask, and for which host if that is not in the address."""
        try:
            url = URL(self._url)
            if url.scheme != "http" or url.host is None:
                return [self._url], None
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError):
            return [self._url], None  # whoever asks for it will be told
        hosts = {str(address[4][0]) for address in found}
        if len(hosts) < 2:
            return [self._url], None
        return [str(url.with_host(host)) for host in sorted(hosts)], url.authority


def _has_no_path(url: str) -> bool:
    try:
        return urlsplit(url).path in ("", "/")
    except ValueError:
        return False  # whoever asks for it will be told


def dcgm_gpus(text: str) -> tuple[Gpu, ...]:
    """The GPUs in a DCGM exporter's metrics."""
    readings: dict[tuple[str, str], dict[str, float]] = {}
    names: dict[tuple[str, str], Mapping[str, str]] = {}
    for name, labels, value in _samples(text, _DCGM_READINGS):
        key = (labels.get("Hostname", ""), labels.get("UUID", "") or labels.get("gpu", ""))
        names.setdefault(key, labels)
        if not labels.get("GPU_I_ID") and 0 <= value < _BLANK:
            readings.setdefault(key, {}).setdefault(_DCGM_READINGS[name], value)
    return tuple(_dcgm_gpu(labels, readings.get(key, {})) for key, labels in names.items())


def dcgm_use(text: str) -> GpuUse:
    """How much GPUs are used, from a DCGM exporter's metrics, or from what a Prometheus took of them.

    A part of a GPU has no utilization but the time in which its engine was active.
    """
    used: dict[tuple[str, str, str], tuple[tuple[str, str] | None, float]] = {}
    for name, labels, value in _samples(text, _DCGM_USE):
        if not 0 <= value < _BLANK:
            continue
        part = labels.get("GPU_I_ID", "")
        if name != _DCGM_UTILIZATION and not part:
            continue
        key = (labels.get("Hostname", ""), labels.get("UUID", "") or labels.get("gpu", ""), part)
        percent = value if name == _DCGM_UTILIZATION else 100 * value
        used.setdefault(key, (_pod(labels), percent))
    by_pod: dict[tuple[str, str], list[float]] = {}
    for pod, percent in used.values():
        if pod is not None:
            by_pod.setdefault(pod, []).append(percent)
    return GpuUse(
        _mean(percent for _, percent in used.values()),
        {pod: sum(percents) / len(percents) for pod, percents in by_pod.items()},
    )


def _pod(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """The pod that a GPU is given to. What a Prometheus took has the exporter's as `pod`, and keeps this one aside."""
    for prefix in ("exported_", ""):
        name, namespace = labels.get(f"{prefix}pod"), labels.get(f"{prefix}namespace")
        if name and namespace:
            return namespace, name
    return None


def _mean(percents: Iterable[float | None]) -> float | None:
    known = [percent for percent in percents if percent is not None]
    return sum(known) / len(known) if known else None


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


class VllmStats:
    """ports.GpuStats: what the engines that run say of their load. `ready` names each, and where it is."""

    def __init__(self, ready: Callable[[], Iterable[tuple[str, Endpoint]]], access: EngineAccess = PLAIN) -> None:
        self._ready = ready
        self._access = access

    async def read(self) -> GpuReading:
        """The load of each engine that answers; none is woken."""
        ready = tuple(self._ready())
        if not ready:
            raise BackendUnavailable("no engine is awake that could tell of its load")
        loads = await asyncio.gather(*(_load(target, endpoint, self._access) for target, endpoint in ready))
        engines = tuple(load for load in loads if load is not None)
        if not engines:
            raise BackendUnavailable("the engines that are awake have no metrics of vLLM")
        return GpuReading("vllm", engines=engines)


async def _load(target: str, endpoint: Endpoint, access: EngineAccess) -> EngineLoad | None:
    try:
        said = await page(f"{access.scheme}://{endpoint}/metrics", _SECONDS, _PAGE_BYTES, access=access)
    except BackendUnavailable:
        return None
    return engine_load(target, str(endpoint), said)


def engine_load(target: str, endpoint: str, said: bytes) -> EngineLoad | None:
    """The load of an engine from its metrics; None if they are not vLLM's, nor llama.cpp's."""
    sample = engine_sample(said)
    if sample is None:
        return None
    return EngineLoad(
        target,
        endpoint,
        kv_cache_percent=None if sample.kv_cache_percent is None else round(sample.kv_cache_percent, 2),
        running=None if sample.running is None else int(sample.running),
        waiting=None if sample.waiting is None else int(sample.waiting),
    )


def _samples(text: str, wanted: Iterable[str]) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """The samples of these metrics that are numbers. Only their lines are parsed: a page has thousands of others."""
    starts = tuple(f"{name}{end}" for name in wanted for end in "{ ")
    lines = "\n".join(line for line in text.splitlines() if line.startswith(starts))
    try:
        for family in text_string_to_metric_families(lines):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    yield sample.name, sample.labels, sample.value
    except ValueError:
        return
