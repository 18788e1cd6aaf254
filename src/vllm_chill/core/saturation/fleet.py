"""What is known at one moment of a model, and of the variants that serve it: values.

The rule: what is not known is None or not there, never 0. Times are seconds on the clock of whoever calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What was measured of one ready replica. `kv` is the part of its KV cache that is in use, 0 to 1; `queue` and
    `running` are requests; `rate` is requests per second that it has answered; `cache_tokens` how many tokens its KV
    cache holds. `age_seconds` is that of the oldest of them, and `stale` says that it is too old to shrink by.
    """

    name: str
    kv: float | None = None
    queue: float | None = None
    running: float | None = None
    rate: float | None = None
    cache_tokens: float | None = None
    age_seconds: float = 0.0
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant: a target that serves the model with a certain kind of replica.

    `cost` is that of one replica, `capacity` what one replica takes on compared to one of the other variants, and
    `gpus` how many GPUs it has. `replicas` is what its target is asked to have, `ready` how many of them are ready, and
    `unplaced` how many have no node yet, on which they will take their GPUs; `loads` are of those that are ready and
    have told something not long ago. `max_replicas` None: any number. `key` is the name of its object, as no other of
    the namespace has it; `accelerator` is "" if it is not known.
    """

    key: str
    cost: float = 10.0
    accelerator: str = ""
    replicas: int = 0
    ready: int = 0
    min_replicas: int = 0
    max_replicas: int | None = None
    gpus: int = 1
    capacity: float = 1.0
    loads: tuple[ReplicaLoad, ...] = ()
    unplaced: int = 0

    @property
    def untold(self) -> int:
        """How many replicas are ready and have told nothing for too long."""
        return max(0, self.ready - len(self.loads))


@dataclass(frozen=True, slots=True)
class Zero:
    """Whether the model may have no replica at all: after it was unused for `retention_seconds`."""

    enabled: bool = False
    retention_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A model in a namespace, and the variants that serve it. `held` is how many requests wait for it before any
    replica has them, None if that is not known; `active_at` is when it was last known to be used, and `woken_at` when
    it last had no replica before it had some, None for never.
    """

    namespace: str
    model_id: str
    variants: tuple[Variant, ...]
    held: float | None = None
    active_at: float | None = None
    woken_at: float | None = None
    zero: Zero = field(default_factory=Zero)
    priority: int = 0
    """Whose model it is, lower before higher, when there are not GPUs for all."""

    @property
    def replicas(self) -> int:
        """How many the targets of all variants are asked to have."""
        return sum(variant.replicas for variant in self.variants)
