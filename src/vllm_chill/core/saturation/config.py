"""What a model's variants are scaled by: a value, with the defaults of each key. Durations are in seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Analyzer(enum.StrEnum):
    """How what is measured becomes capacity that is lacking, or that could go."""

    SATURATION = "saturation"
    SPARE_CAPACITY = "spare-capacity"


@dataclass(frozen=True, slots=True)
class Config:
    """The keys of one entry of `saturation-scaling-config`, merged over the default entry and these defaults.

    For `spare-capacity`: a replica is saturated from `kv_cache_threshold` (0 to 1) or `queue_length_threshold` on, and
    the mean of what the others have left must not be below `kv_spare_trigger` and `queue_spare_trigger`. For
    `saturation`: a queue of `max_queue_length` is a saturation of 1; the mean of all replicas is to be no more than
    `scale_up_threshold`, and may be no more than `scale_down_boundary` after replicas have gone.

    `upstream`: exactly as llm-d's autoscaler does it, with its flaws. `hysteresis` is the part of the way to the
    trigger that must be left after replicas have gone, 0 to 1, so that noise does not bring them back.

    No more than `scale_up_increment` replicas come within `scale_up_period`, and no more than `scale_down_increment`
    go within `scale_down_period`; capacity must have been lacking for `scale_up_stabilization`, or be spare for
    `scale_down_stabilization`, before any does. A variant whose replicas have not come within `transition_timeout` is
    taken as it is.
    """

    analyzer: Analyzer = Analyzer.SPARE_CAPACITY
    kv_cache_threshold: float = 0.80
    queue_length_threshold: float = 5.0
    kv_spare_trigger: float = 0.10
    queue_spare_trigger: float = 3.0
    max_queue_length: float = 5.0
    scale_up_threshold: float = 0.85
    scale_down_boundary: float = 0.70
    upstream: bool = False
    hysteresis: float = 0.10
    scale_up_increment: int = 4
    scale_up_period: float = 60.0
    scale_up_stabilization: float = 0.0
    scale_down_increment: int = 1
    scale_down_period: float = 60.0
    scale_down_stabilization: float = 300.0
    transition_timeout: float = 600.0
    enable_limiter: bool = False


DEFAULT = Config()
