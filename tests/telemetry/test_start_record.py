from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Failed,
    Observation,
    Progress,
    Ready,
    SleepReason,
    Stage,
    Target,
    TargetRef,
    Unknown,
    Waking,
)
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.start_record import StartRecord

REF = TargetRef("ai-apps", "vllm")
ASLEEP = Target(REF, Asleep(0), observed=Observation(0, 0))
WAKING = Target(REF, Waking(0, confirmed=False), waiting=1, observed=Observation(0, 0))


def at(stage: Stage, detail: str = "") -> Target:
    seen = Observation(1, 1, progress=Progress(stage, detail))
    return Target(REF, Waking(0, confirmed=True), waiting=1, observed=seen)


def ready(now: float, *, waiting: int = 1) -> Target:
    return Target(REF, Ready(now, now), waiting=waiting, observed=Observation(1, 1))


def wake(record: StartRecord, seconds: float = 60, *, began: float = 0, answered: float | None = 0.25) -> None:
    """A start: 1 s until a node is looked for, 9 s until there is one, and it loads until it is ready."""
    record.changed(ASLEEP, WAKING, began)
    record.progressed(at(Stage.SCHEDULING, "3 Insufficient nvidia.com/gpu"), began + 1)
    record.progressed(at(Stage.LOADING), began + 10)
    record.changed(at(Stage.LOADING), ready(began + seconds, waiting=int(answered is not None)), began + seconds)
    if answered is not None:
        assert record.awaits_answer
        record.answered(began + seconds + answered)
    assert not record.awaits_answer


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), "1.2.3")


@pytest.fixture
def record(metrics: Metrics) -> StartRecord:
    return StartRecord(REF, metrics)


def phases(metrics: Metrics, suffix: str) -> dict[str, float]:
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    name = f"vllm_chill_cold_start_phase_seconds_{suffix}"
    return {sample.labels["phase"]: sample.value for sample in samples if sample.name == name}


def test_the_phases_of_a_start_are_measured_once_each_and_add_up_to_its_wall_time(
    metrics: Metrics, record: StartRecord
) -> None:
    wake(record)
    assert phases(metrics, "sum") == {"requested": 1, "scheduling": 9, "loading": 50, "first_token": 0.25}
    assert phases(metrics, "count") == dict.fromkeys(["requested", "scheduling", "loading", "first_token"], 1)
    assert sum(phases(metrics, "sum").values()) == pytest.approx(60.25)
    assert record.last is not None
    assert record.last.elapsed(999) == 60.25


def test_the_buckets_reach_from_a_tenth_of_a_second_to_half_an_hour(metrics: Metrics, record: StartRecord) -> None:
    wake(record, 1700)

    def below(bound: str) -> float | None:
        labels = {"target": "ai-apps/vllm", "phase": "loading", "le": bound}
        return metrics.registry.get_sample_value("vllm_chill_cold_start_phase_seconds_bucket", labels)

    assert (below("0.1"), below("1200.0"), below("1800.0")) == (0, 0, 1)


def one_line(logs: list[Any]) -> dict[str, Any]:
    [line] = [line for line in logs if line["event"] == "cold start"]
    return dict(line)


def test_a_start_that_is_over_is_one_log_line(record: StartRecord) -> None:
    with capture_logs() as logs:
        wake(record)
    assert one_line(logs) == {
        "event": "cold start",
        "log_level": "info",
        "target": "ai-apps/vllm",
        "outcome": "ready",
        "seconds": 60.25,
        "requested": 1,
        "scheduling": 9,
        "loading": 50,
        "first_token": 0.25,
    }


def test_a_failed_start_says_where_and_why_and_is_not_measured(metrics: Metrics, record: StartRecord) -> None:
    failed = Target(REF, Failed(20, "no node has so many GPUs", 25, confirmed=False), observed=Observation(1, 1))
    with capture_logs() as logs:
        record.changed(ASLEEP, WAKING, 0)
        record.progressed(at(Stage.SCHEDULING, "3 Insufficient nvidia.com/gpu"), 1)
        record.changed(at(Stage.SCHEDULING), failed, 20)
    line = one_line(logs)
    assert line["log_level"] == "warning"
    assert (line["outcome"], line["stage"], line["cause"]) == ("failed", "scheduling", "no node has so many GPUs")
    assert line["detail"] == "3 Insufficient nvidia.com/gpu"
    assert (line["seconds"], line["scheduling"]) == (20, 19)
    assert phases(metrics, "count") == {}


def test_a_start_that_is_stopped_is_told_and_not_measured(metrics: Metrics, record: StartRecord) -> None:
    with capture_logs() as logs:
        record.changed(ASLEEP, WAKING, 0)
        record.changed(WAKING, Target(REF, Draining(3, SleepReason.STOPPED, confirmed=False)), 3)
    line = one_line(logs)
    assert (line["log_level"], line["outcome"], line["stage"]) == ("info", "stopped", "requested")
    assert phases(metrics, "count") == {}


def test_a_start_that_was_found_under_way_is_told_and_not_measured(metrics: Metrics, record: StartRecord) -> None:
    with capture_logs() as logs:
        record.changed(Target(REF, Unknown()), at(Stage.LOADING), 0)
        record.changed(at(Stage.LOADING), ready(40, waiting=0), 40)
    line = one_line(logs)
    assert (line["whole"], line["seconds"], line["loading"]) == (False, 40, 40)
    assert phases(metrics, "count") == {}
    assert record.history.whole is None


def test_whoever_asks_gets_no_start_whose_answer_nobody_waits_for(metrics: Metrics, record: StartRecord) -> None:
    record.changed(ASLEEP, WAKING, 0)
    record.changed(WAKING, ready(60), 60)
    assert record.settle(ready(60)).current is not None
    assert record.settle(ready(60, waiting=0)).current is None
    assert not record.awaits_answer
    assert sum(phases(metrics, "sum").values()) == 60


def test_the_time_left_is_that_of_the_starts_so_far(record: StartRecord) -> None:
    assert record.eta(0) is None
    assert record.retry_after(0) == 10
    wake(record)
    assert record.retry_after(1000) == 60
    record.changed(ASLEEP, WAKING, 1000)
    record.progressed(at(Stage.LOADING), 1005)
    assert record.current is not None
    assert record.eta(1025) == 30
    assert record.retry_after(1025) == 30
    assert record.describe(1025, position=3) == "waking: loading the model, position 3, about 30s left"


class Kept:
    """A history in memory; with a `gate`, loading waits for it. `away` as often it cannot be had."""

    def __init__(self, text: str | None = None, gate: asyncio.Event | None = None, away: int = 0) -> None:
        self.text = text
        self.away = away
        self.saves: list[str] = []
        self.saved = asyncio.Event()
        self._gate = gate

    async def load(self, ref: TargetRef) -> str | None:
        assert ref == REF
        if self._gate is not None:
            await self._gate.wait()
        self.away -= 1
        return None if self.away >= 0 else self.text

    async def save(self, ref: TargetRef, text: str) -> None:
        assert ref == REF
        self.text = text
        self.saves.append(text)
        self.saved.set()


async def test_what_was_learned_is_kept_for_the_next_proxy(metrics: Metrics) -> None:
    kept = Kept()
    first = StartRecord(REF, metrics)
    keeping = asyncio.create_task(first.keep(kept))
    await asyncio.sleep(0)
    assert kept.saves == []
    wake(first)
    await asyncio.wait_for(kept.saved.wait(), 1)
    keeping.cancel()

    second = StartRecord(REF, metrics)
    keeping = asyncio.create_task(second.keep(kept))
    await asyncio.sleep(0)
    assert second.history == first.history
    assert second.retry_after(0) == 60
    assert len(kept.saves) == 1
    keeping.cancel()


async def test_what_is_learned_before_the_history_is_loaded_is_added_to_it(metrics: Metrics) -> None:
    before = PastStarts.parse('{"version":1,"whole":100,"stages":{"loading":[100,1]}}')
    gate = asyncio.Event()
    kept = Kept(before.dump(), gate)
    record = StartRecord(REF, metrics)
    keeping = asyncio.create_task(record.keep(kept))
    await asyncio.sleep(0)
    wake(record, 200)
    assert record.history.whole == 200
    gate.set()
    await asyncio.wait_for(kept.saved.wait(), 1)
    assert record.history.whole == 130
    assert PastStarts.parse(kept.text) == record.history
    keeping.cancel()


async def test_a_history_that_cannot_be_had_at_first_is_not_overwritten(metrics: Metrics) -> None:
    kept = Kept('{"version":1,"whole":100,"stages":{"loading":[100,1]}}', away=1)
    record = StartRecord(REF, metrics)
    keeping = asyncio.create_task(record.keep(kept))
    await asyncio.sleep(0)
    wake(record, 200)
    await asyncio.wait_for(kept.saved.wait(), 1)
    assert kept.away < 0
    assert PastStarts.parse(kept.text) == record.history
    assert record.history.whole == 130
    keeping.cancel()
