"""How long targets have had GPUs, and how long not, as a metric: GPU-hours are its increase over 3600."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Counted = Iterable[tuple[str, float, float]]
"""Of each target its name, and the GPU-seconds that it was asleep and awake."""


class GpuSeconds(Collector):
    """Read off what was counted, at the moment of the scrape. `counted` is to be set once there is anything."""

    def __init__(self) -> None:
        self.counted: Callable[[], Counted] = tuple

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "vllm_chill_gpu_seconds",
            "GPU-seconds since this proxy began: awake, those that the target's replicas had; asleep, those that one "
            "replica would have had. Of several proxies the one that leads counts them.",
            labels=("target", "state"),
        )
        for target, asleep, awake in self.counted():
            family.add_metric((target, "asleep"), asleep)
            family.add_metric((target, "awake"), awake)
        yield family
