from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import Histogram
from vllm_chill.core.scaling.signals import Aggregation, Metric, Sample, Signal
from vllm_chill.core.scaling.track import Track

TOKENS = Signal(Metric.TOKENS_PER_SECOND, window_seconds=20)
TTFT = Signal(Metric.LATENCY, Aggregation.TTFT, percentile=50, window_seconds=20)


def latencies(within: float, count: float | None = None) -> Histogram:
    """So many of up to 100 ms, of so many in all that are up to 200 ms."""
    count = within if count is None else count
    return Histogram((0.1, 0.2), (within, count), count, 0.0)


def tracked(*samples: tuple[float, EngineSample]) -> Track:
    track = Track()
    for at, sample in samples:
        track.add(at, sample)
    return track


def test_before_the_first_sample_everything_is_missing() -> None:
    assert Track().newest is None
    assert Track().signal(Signal(Metric.QUEUE_LENGTH)) is None
    assert Track().signal(TOKENS) is None


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        pytest.param(Metric.QUEUE_LENGTH, 3, id="the engine's own queue"),
        pytest.param(Metric.RUNNING_REQUESTS, 2, id="running"),
        pytest.param(Metric.KV_CACHE_USAGE, 50, id="the cache in percent"),
        pytest.param(Metric.HELD_REQUESTS, None, id="what is held is not the engine's to say"),
        pytest.param(Metric.GPU_UTILIZATION, None, id="nor is the use of GPUs"),
        pytest.param(Metric.TOKENS_PER_SECOND, None, id="one sample makes no rate"),
        pytest.param(Metric.LATENCY, None, id="one sample makes no latency"),
    ],
)
def test_a_gauge_is_that_of_the_newest_sample(metric: Metric, value: float | None) -> None:
    track = tracked((6, EngineSample(2, 3, 50, generation_tokens=7, ttft=latencies(1))))
    assert track.signal(Signal(metric)) == (None if value is None else Sample(value, 6))


def test_what_the_engine_does_not_tell_is_missing() -> None:
    track = tracked((1, EngineSample(running=1)), (6, EngineSample(running=1)))
    for signal in (Signal(Metric.QUEUE_LENGTH), Signal(Metric.KV_CACHE_USAGE), TOKENS, TTFT):
        assert track.signal(signal) is None


def test_a_rate_is_over_its_window_and_no_further() -> None:
    samples = [(float(at), EngineSample(generation_tokens=tokens)) for at, tokens in ((0, 0), (5, 1000), (10, 1010))]
    samples += [(float(at), EngineSample(generation_tokens=1010 + 2 * (at - 10))) for at in (15, 20, 25, 30)]
    assert tracked(*samples).signal(TOKENS) == Sample(2.0, 30)


def test_while_there_is_less_than_a_window_the_rate_is_over_what_there_is() -> None:
    track = tracked((0, EngineSample(generation_tokens=0)), (5, EngineSample(generation_tokens=50)))
    assert track.signal(TOKENS) == Sample(10.0, 5)


def test_a_latency_is_of_those_that_came_within_the_window() -> None:
    track = tracked((0, EngineSample(ttft=latencies(1000))), (20, EngineSample(ttft=latencies(1000, 1010))))
    found = track.signal(TTFT)
    assert found is not None
    assert (round(found.value), found.at) == (150, 20)


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        pytest.param(Aggregation.TTFT, 50, id="to the first token"),
        pytest.param(Aggregation.AVERAGE, 50, id="the first token's where none is chosen"),
        pytest.param(Aggregation.E2E, 150, id="of whole requests"),
        pytest.param(Aggregation.ITL, 200, id="between tokens"),
    ],
)
def test_a_latency_is_of_the_kind_that_is_asked_for(aggregation: Aggregation, value: float) -> None:
    none = latencies(0)
    track = tracked(
        (0, EngineSample(ttft=none, e2e=none, itl=none)),
        (5, EngineSample(ttft=latencies(10), e2e=latencies(0, 10), itl=Histogram((0.1, 0.2), (0, 0), 10, 0))),
    )
    found = track.signal(Signal(Metric.LATENCY, aggregation, 50, 20))
    assert found is not None
    assert (round(found.value), found.at) == (value, 5)


@pytest.mark.parametrize(
    ("running", "waiting", "value"),
    [
        pytest.param(0, 0, 0.0, id="nobody waits for anything"),
        pytest.param(1, 0, None, id="one may be waited for since before the window"),
        pytest.param(0, 1, None, id="or may be in the queue"),
        pytest.param(None, None, None, id="it is not told"),
    ],
)
def test_without_a_request_in_the_window_a_latency_is_0_only_if_none_is_in_the_engine(
    running: float | None, waiting: float | None, value: float | None
) -> None:
    sample = EngineSample(running, waiting, ttft=latencies(7))
    found = tracked((0, sample), (5, sample)).signal(TTFT)
    assert found == (None if value is None else Sample(value, 5))


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(EngineSample(generation_tokens=40, ttft=latencies(90)), id="fewer tokens than before"),
        pytest.param(EngineSample(generation_tokens=90, ttft=latencies(4)), id="fewer latencies than before"),
        pytest.param(EngineSample(generation_tokens=90, ttft=latencies(90), began=2), id="another begin"),
    ],
)
def test_an_engine_that_began_anew_is_not_compared_with_its_life_before(after: EngineSample) -> None:
    before = EngineSample(generation_tokens=50, ttft=latencies(50), began=1)
    track = tracked((0, before), (5, after))
    assert track.signal(TOKENS) is None
    assert track.signal(TTFT) is None
    assert track.newest is not None
    assert track.newest.sample == after


def test_after_a_gap_a_window_does_not_reach_over_it() -> None:
    track = tracked((0, EngineSample(generation_tokens=0)), (100, EngineSample(generation_tokens=5000)))
    assert track.signal(TOKENS) is None
    track.add(105, EngineSample(generation_tokens=5005))
    assert track.signal(TOKENS) == Sample(1.0, 105)


def test_it_keeps_what_the_longest_window_needs_up_to_ten_minutes() -> None:
    track = Track()
    for at in range(0, 2000, 5):
        track.add(at, EngineSample(generation_tokens=at))
        track.signal(Signal(Metric.TOKENS_PER_SECOND, window_seconds=20))
    assert len(track._looks) <= 60 / 5 + 2
    for at in range(2000, 9000, 5):
        track.signal(Signal(Metric.TOKENS_PER_SECOND, window_seconds=100_000))
        track.add(at, EngineSample(generation_tokens=at))
    assert 600 / 5 <= len(track._looks) <= 600 / 5 + 2


@given(st.lists(st.tuples(st.floats(0.5, 30), st.integers(0, 1000), st.booleans()), min_size=1, max_size=50))
def test_a_rate_is_never_negative_nor_above_the_fastest_step(steps: list[tuple[float, int, bool]]) -> None:
    track, at, tokens, fastest = Track(), 0.0, 0.0, 0.0
    for seconds, more, restarts in steps:
        at += seconds
        tokens = 0.0 if restarts else tokens + more
        fastest = max(fastest, more / seconds)
        track.add(at, EngineSample(generation_tokens=tokens))
        rate = track.signal(TOKENS)
        assert rate is None or (0 <= rate.value <= fastest * (1 + 1e-9) and rate.at == at)
