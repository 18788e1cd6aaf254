"""What is known of GPUs and of the engines on them at one moment. Pure.

The rule: a reading that is missing is None, never 0.
"""

from __future__ import annotations

import re
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


_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_RESOURCES = re.compile(
    r"nvidia\.com/(gpu(\.shared)?|mig-[0-9a-z.]+)|amd\.com/gpu|gpu\.intel\.com/(i915|xe)|intel\.com/gpu"
    r"|habana\.ai/gaudi|google\.com/tpu|aws\.amazon\.com/neuron|huawei\.com/Ascend[0-9A-Za-z]+"
)


def visible_gpus(environment: Mapping[str, str]) -> int | None:
    """How many GPUs a process with these variables sees, as CUDA and ROCm read them; None if they do not say.

    What comes after something that is no GPU is not seen, which is what -1 is for.
    """
    said = next((environment[name] for name in _VISIBLE if name in environment), None)
    if said is None:
        return None
    names = [name.strip() for name in said.split(",")]
    seen = next((at for at, name in enumerate(names) if not _is_gpu(name)), len(names))
    return len(dict.fromkeys(names[:seen]))


def _is_gpu(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


def requested_gpus(resources: Mapping[str, object]) -> int | None:
    """How many GPUs, or parts of one, a container's resources name; None if they name none that is known."""
    found = [quantity for name, quantity in resources.items() if _RESOURCES.fullmatch(name)]
    counts = [int(text) for text in map(str, found) if text.isdecimal()]
    return sum(counts) if counts else None
