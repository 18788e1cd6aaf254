"""Where replicas are, and what they were found to say of their load: values.

The rule: what is not told is None or not there, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_chill.core.target import Endpoint


@dataclass(frozen=True, slots=True)
class PodPlace:
    """A pod by its name in its namespace, and where its engine listens; None while it has no address."""

    name: str
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine said of its load. `kv` is the part of its KV cache that is in use, 0 to 1; `queue` and `running`
    are requests. `successes` counts the requests that it has answered since it began; `rate` is how many it answers per
    second, from a source that knows. `cache_tokens` is how many tokens its KV cache holds.
    """

    kv: float | None = None
    queue: float | None = None
    running: float | None = None
    successes: float | None = None
    rate: float | None = None
    cache_tokens: float | None = None
    gpu_memory_used_mb: float | None = None
    """MiB of the memory of its pod's GPUs, from a source that knows; and those that are free."""
    gpu_memory_free_mb: float | None = None


@dataclass(frozen=True, slots=True)
class LoadReading:
    """What a source said at one moment: `loads` by the name of the pod, and why each of the others said nothing in
    `failures`, as sentences without a full stop.

    Requests that wait before any replica has them are in `held`, by model id, where an endpoint picker has them, and
    in `held_by_target`, by NAMESPACE/NAME of the target, where a proxy of vllm-chill has them.
    """

    loads: Mapping[str, EngineLoad] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    held_by_target: Mapping[str, float] = field(default_factory=dict)
