"""What holds of every analysis, whichever analyzer makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.core.saturation.told import coming, variant
from vllm_chill.core.saturation import saturation, spare
from vllm_chill.core.saturation.analyze import analyze
from vllm_chill.core.saturation.config import Analyzer, Config
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant

LAW = settings(max_examples=150, deadline=None)

KV = st.integers(0, 100).map(lambda percent: percent / 100) | st.floats(0, 1)
QUEUE = st.integers(0, 12).map(float) | st.floats(0, 1e4)


@st.composite
def configs(draw: st.DrawFn, analyzers: Sequence[Analyzer] = tuple(Analyzer)) -> Config:
    """Those that the ConfigMap accepts."""
    boundary = draw(st.integers(5, 95))
    kv_threshold, queue_threshold = draw(st.integers(5, 100)), draw(st.integers(1, 50))
    return Config(
        analyzer=draw(st.sampled_from(analyzers)),
        kv_cache_threshold=kv_threshold / 100,
        kv_spare_trigger=draw(st.integers(0, kv_threshold)) / 100,
        queue_length_threshold=float(queue_threshold),
        queue_spare_trigger=float(draw(st.integers(0, queue_threshold))),
        max_queue_length=float(draw(st.integers(1, 50))),
        scale_up_threshold=draw(st.integers(boundary + 1, 100)) / 100,
        scale_down_boundary=boundary / 100,
        hysteresis=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )


@st.composite
def variants(draw: st.DrawFn, complete: bool = False) -> tuple[Variant, ...]:
    found = []
    for key in ("a100", "h100", "t4")[: draw(st.integers(1, 3))]:
        ready = draw(st.integers(0, 5))
        loads = tuple(
            ReplicaLoad(
                f"{key}-{index}",
                kv=draw(KV if complete else KV | st.none()),
                queue=draw(QUEUE if complete else QUEUE | st.none()),
                stale=not complete and draw(st.booleans()),
            )
            for index in range(ready if complete else draw(st.integers(0, ready)))
        )
        capacity = draw(st.sampled_from([1.0, 1.0, 0.3, 2.5]))
        found.append(Variant(key, ready=ready, replicas=ready, capacity=capacity, loads=loads))
    return tuple(found)


FLEETS = variants() | variants(complete=True)
MORE = st.fixed_dictionaries({key: st.integers(-2, 3) for key in ("a100", "h100", "t4")})


@pytest.mark.parametrize(
    ("config", "which"),
    [
        pytest.param(Config(), spare.analyze, id="by default spare capacity"),
        pytest.param(Config(analyzer=Analyzer.SATURATION), saturation.analyze, id="saturation"),
    ],
)
def test_the_analyzer_is_the_one_that_is_named(config: Config, which: object) -> None:
    seen = [variant((0.66, 2))]
    assert callable(which)
    assert analyze(config, seen, {}) == which(config, seen, {})
    assert spare.analyze(config, seen, {}) != saturation.analyze(config, seen, {})


@LAW
@given(configs(), FLEETS, MORE, st.booleans())
def test_it_stays_within_bounds(
    config: Config, seen: tuple[Variant, ...], more: dict[str, int], upstream: bool
) -> None:
    analysis = analyze(replace(config, upstream=upstream), seen, coming(seen, more))
    ready = sum(one.ready * one.capacity for one in seen)
    assert 0 <= analysis.required < float("inf")
    assert 0 <= analysis.spare <= ready + 1e-9
    assert not (analysis.required and analysis.spare)
    assert 0 <= analysis.slack <= ready + 1e-9
    assert analysis.saturation is None or 0 <= analysis.saturation <= 1 + 1e-9
    assert set(analysis.variants) == {one.key for one in seen}
    assert analysis.measured is (analysis.saturation is not None)
    assert analysis.reason


def no_less(one: float, other: float) -> bool:
    """But for how floats are rounded, where a trigger that nothing can meet makes them large."""
    return one >= other * (1 - 1e-9) - 1e-8


def more_load(seen: tuple[Variant, ...], which: int, kv: float, queue: float) -> tuple[Variant, ...]:
    """The same, with more on one replica of what it has told."""
    found = []
    for one in seen:
        loads = tuple(
            replace(
                load,
                kv=None if load.kv is None else min(1.0, load.kv + kv * (index == which)),
                queue=None if load.queue is None else load.queue + queue * (index == which),
            )
            for index, load in enumerate(one.loads)
        )
        found.append(replace(one, loads=loads))
        which -= len(one.loads)
    return tuple(found)


@LAW
@given(configs(), FLEETS, MORE, st.integers(0, 14), st.floats(0, 1), st.floats(0, 100))
def test_more_load_never_lacks_less_and_never_spares_more(
    config: Config, seen: tuple[Variant, ...], more: dict[str, int], which: int, kv: float, queue: float
) -> None:
    anticipated = coming(seen, more)
    before = analyze(config, seen, anticipated)
    after = analyze(config, more_load(seen, which, kv, queue), anticipated)
    assert no_less(after.required, before.required)
    assert no_less(before.spare, after.spare)
    assert no_less(before.slack, after.slack)


def forget(seen: tuple[Variant, ...], which: int, what: str) -> tuple[Variant, ...]:
    """The same, but that one replica has not told something, or not lately; "zero": that it has nothing to do."""
    found = []
    for one in seen:
        loads: list[ReplicaLoad] = []
        for index, load in enumerate(one.loads):
            if index != which:
                loads.append(load)
            elif what == "stale":
                loads.append(replace(load, stale=True))
            elif what == "zero":
                loads.append(replace(load, kv=0.0, queue=0.0))
            elif what != "all":
                loads.append(
                    replace(load, kv=None if what == "kv" else load.kv, queue=None if what == "queue" else load.queue)
                )
        found.append(replace(one, loads=tuple(loads)))
        which -= len(one.loads)
    return tuple(found)


@LAW
@given(configs(), FLEETS, MORE, st.integers(0, 14), st.sampled_from(["all", "kv", "queue", "stale"]), st.booleans())
def test_what_is_missing_or_stale_lets_nothing_go_and_is_not_less_than_none(
    config: Config, seen: tuple[Variant, ...], more: dict[str, int], which: int, what: str, upstream: bool
) -> None:
    assume(which < sum(len(one.loads) for one in seen))
    config, anticipated = replace(config, upstream=upstream), coming(seen, more)
    missing = analyze(config, forget(seen, which, what), anticipated)
    assert missing.spare == 0
    assert not missing.complete
    if missing.measured and not upstream:
        assert no_less(missing.required, analyze(config, forget(seen, which, "zero"), anticipated).required)


@LAW
@given(configs(), variants(complete=True))
def test_what_comes_is_enough_and_what_goes_is_not_missed(config: Config, seen: tuple[Variant, ...]) -> None:
    """With as much capacity more or less, and the load spread evenly over it, nothing is lacking."""
    if config.analyzer is Analyzer.SATURATION:  # a queue longer than the longest is no more than full, but fills others
        seen = tuple(replace(one, loads=tuple(replace(load, queue=0.0) for load in one.loads)) for one in seen)
    before = analyze(config, seen, {})
    capacity = sum(one.ready * one.capacity for one in seen) + before.required - before.spare
    assume(before.measured and 1e-3 < capacity < 1e6)
    loads = [(one.capacity, load.kv or 0.0, load.queue or 0.0) for one in seen for load in one.loads]
    kv, queue = (sum(load[0] * load[what] for load in loads) / capacity for what in (1, 2))
    assert analyze(config, [variant((kv, queue), capacity=capacity)], {}).required <= 1e-6 * capacity
