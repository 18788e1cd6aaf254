from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.decision import Step
from vllm_chill.core.saturation.steady import State, steady


def lacking(required: float) -> Analysis:
    return Analysis(required, 0, "it is too much")


def spare(capacity: float) -> Analysis:
    return Analysis(0, capacity, "it is too little")


NOTHING = Analysis(0, 0, "it is enough")
BLIND = Analysis(0, 0, "none has told anything", measured=False, complete=False)
EMPTY = Analysis(0, 0, "no replica is ready", measured=False)


def windows(up: float = 0, down: float = 120) -> Config:
    return Config(scale_up_stabilization=up, scale_down_stabilization=down)


def played(config: Config, *history: tuple[float, Analysis]) -> tuple[Analysis, State, Step | None]:
    """A history of (seconds, analysis), and what of its last one may be acted on."""
    state = State()
    analysis, step = NOTHING, None
    for at, seen in history:
        analysis, state, step = steady(config, state, seen, at)
    return analysis, state, step


@pytest.mark.parametrize(
    ("down", "history", "held"),
    [
        pytest.param(0, [(0, spare(2))], 2, id="without a window at once"),
        pytest.param(120, [(0, spare(2))], 0, id="not when it is first seen"),
        pytest.param(120, [(0, spare(2)), (119, spare(2))], 0, id="not before the window is over"),
        pytest.param(120, [(0, spare(2)), (120, spare(2))], 2, id="when the window is over"),
        pytest.param(120, [(0, NOTHING), (120, spare(2))], 0, id="nothing was until this moment"),
        pytest.param(
            120, [(0, NOTHING), (9, spare(2)), (129, spare(2))], 2, id="what held until it began counts no more"
        ),
        pytest.param(120, [(0, NOTHING), (1, spare(2)), (120, spare(2))], 0, id="a moment into the window without"),
        pytest.param(120, [(0, NOTHING), (1, spare(2)), (121, spare(2))], 2, id="and the window after that"),
        pytest.param(120, [(0, spare(3)), (60, spare(1)), (120, spare(2))], 1, id="the least of the window"),
        pytest.param(
            120, [(0, spare(1)), (60, spare(3)), (120, spare(2))], 1, id="what held when the window began counts"
        ),
        pytest.param(120, [(0, spare(1)), (60, spare(3)), (180, spare(2))], 2, id="and no longer when it did not"),
        pytest.param(120, [(0, spare(3)), (60, spare(3)), (120, spare(1))], 1, id="what is now counts"),
        pytest.param(120, [(0, spare(3)), (60, lacking(1)), (120, spare(3))], 0, id="something was lacking meanwhile"),
        pytest.param(120, [(0, spare(3)), (60, BLIND), (120, spare(3))], 0, id="nobody could tell meanwhile"),
        pytest.param(120, [(0, spare(3)), (60, BLIND), (61, spare(3)), (181, spare(3))], 3, id="and long after that"),
        pytest.param(120, [(0, spare(3)), (60, EMPTY), (120, spare(3))], 0, id="it was at zero meanwhile"),
        pytest.param(
            120, [(0, spare(3)), (60, EMPTY), (120, spare(3)), (240, spare(3))], 3, id="and a window after it"
        ),
        pytest.param(120, [(0, spare(3)), (600, spare(2))], 2, id="two looks that are further apart than the window"),
        pytest.param(120, [(0, NOTHING), (600, spare(2))], 0, id="and the first of them saw none"),
        pytest.param(120, [(0, spare(3)), (120, NOTHING), (120, spare(3))], 0, id="twice in one moment: the least"),
        pytest.param(120, [(0, spare(3))] * 9, 0, id="time that stands still fills no window"),
        pytest.param(
            120, [(500, spare(3)), (380, spare(3)), (610, spare(3))], 0, id="time that goes back does not either"
        ),
    ],
)
def test_what_is_spare_is_the_least_of_the_window(
    down: float, history: Sequence[tuple[float, Analysis]], held: float
) -> None:
    analysis, _, step = played(windows(down=down), *history)
    assert analysis.spare == held
    assert (step is None) == (held == history[-1][1].spare)


@pytest.mark.parametrize(
    ("up", "history", "held"),
    [
        pytest.param(0, [(0, lacking(2))], 2, id="by default at once"),
        pytest.param(60, [(0, lacking(2))], 0, id="not when it is first seen"),
        pytest.param(60, [(0, NOTHING), (30, lacking(2)), (60, lacking(2))], 0, id="a part of the window"),
        pytest.param(60, [(0, NOTHING), (30, lacking(2)), (90, lacking(2))], 2, id="all of the window"),
        pytest.param(60, [(0, lacking(2)), (30, lacking(1)), (60, lacking(3))], 1, id="the least of the window"),
        pytest.param(60, [(0, lacking(2)), (30, spare(2)), (60, lacking(3))], 0, id="some was spare meanwhile"),
        pytest.param(60, [(0, lacking(2)), (30, BLIND), (60, lacking(3))], 2, id="nobody could tell: what was holds"),
        pytest.param(60, [(0, BLIND), (60, lacking(3))], 0, id="nobody could ever tell"),
        pytest.param(60, [(0, lacking(2)), (30, EMPTY), (60, lacking(3))], 0, id="it was at zero meanwhile"),
    ],
)
def test_what_is_lacking_is_the_least_of_the_window(
    up: float, history: Sequence[tuple[float, Analysis]], held: float
) -> None:
    analysis, _, step = played(windows(up=up), *history)
    assert analysis.required == held
    assert (step is None) == (held == history[-1][1].required)


@pytest.mark.parametrize(
    ("config", "history", "text"),
    [
        pytest.param(
            windows(),
            [(0, spare(2))],
            "capacity has to be spare for 2m before any goes, and this is known only now",
            id="first seen",
        ),
        pytest.param(
            windows(),
            [(0, spare(2)), (90, spare(2))],
            "capacity has to be spare for 2m before any goes, and this is known for 1m30s only",
            id="not for long enough",
        ),
        pytest.param(
            windows(),
            [(0, NOTHING), (60, spare(2)), (120, spare(2))],
            "within the last 2m there was a time when none was spare, so none goes yet",
            id="not all the time",
        ),
        pytest.param(
            windows(),
            [(0, spare(1.286)), (60, spare(2)), (120, spare(2))],
            "within the last 2m only 1.29 was spare all the time, so no more goes yet",
            id="not as much",
        ),
        pytest.param(
            windows(up=60),
            [(0, lacking(2)), (30, lacking(2))],
            "capacity has to be lacking for 1m before any comes, and this is known for 30s only",
            id="lacking not for long enough",
        ),
    ],
)
def test_the_words(config: Config, history: Sequence[tuple[float, Analysis]], text: str) -> None:
    assert played(config, *history)[2] == Step("steady", text)


def test_only_what_may_be_acted_on_is_changed() -> None:
    seen = Analysis(0, 2, "so it is", saturation=0.2, slack=1.5, complete=True)
    after, _, _ = steady(windows(), State(), seen, 0)
    assert after == Analysis(0, 0, "so it is", saturation=0.2, slack=1.5, complete=True)


def test_a_window_that_becomes_longer_is_not_full_by_what_was_forgotten() -> None:
    state = State()
    for at in range(0, 601, 60):
        _, state, _ = steady(windows(down=60), state, spare(1 + at / 60), at)
    longer, state, _ = steady(windows(down=300), state, spare(20), 660)
    assert longer.spare == 0
    later, _, _ = steady(windows(down=300), state, spare(20), 960)
    assert later.spare == 20


SAMPLES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 15.0, 60.0, 61.0, 400.0]), st.integers(-4, 4)), min_size=1, max_size=30
)
WINDOWS = st.sampled_from([0.0, 15.0, 60.0, 120.0, 300.0])


@settings(max_examples=150, deadline=None)
@given(WINDOWS, WINDOWS, SAMPLES)
def test_it_is_the_least_that_held_at_any_time_of_the_window(
    up: float, down: float, samples: list[tuple[float, int]]
) -> None:
    """Compared with the whole history, of which the state remembers only what it needs."""
    state, now, past = State(), 0.0, list[tuple[float, int]]()
    for passed, value in samples:
        now += passed
        seen = lacking(value) if value > 0 else spare(-value)
        past.append((now, value))
        after, state, _ = steady(windows(up, down), state, seen, now)
        assert after.required == least([(at, max(0, one)) for at, one in past], now, up)
        assert after.spare == least([(at, max(0, -one)) for at, one in past], now, down)
        assert not (after.required and after.spare)


def least(past: Sequence[tuple[float, int]], now: float, window: float) -> float:
    if past[0][0] > now - window:
        return 0
    ends = [*(at for at, _ in past[1:]), float("inf")]
    return min(value for (_, value), end in zip(past, ends, strict=True) if end > now - window)


def test_little_is_remembered() -> None:
    """At most what came within the window, and of a level load, or one that falls, next to nothing."""
    state, config = State(), windows(down=3600)
    for second in range(0, 20_000, 15):
        _, state, _ = steady(config, state, spare(second / 100), second)
        assert state.spare is not None
        assert len(state.spare.before) <= 3600 / 15
    for second in range(20_000, 20_100, 15):
        _, state, _ = steady(config, state, spare(3), second)
    assert state.spare is not None
    assert not state.spare.before
