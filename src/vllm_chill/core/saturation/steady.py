"""What keeps an analysis from being acted on too early: capacity has to be lacking, or spare, for some time. Pure.

The rule: what is lacking is the least that was at any time within `scale_up_stabilization`, and what is spare the least
that was within `scale_down_stabilization`. A figure holds until the next one comes. Before as much is known as a window
is long, nothing counts as lacking, or spare. While replicas are ready and tell nothing, what was lacking before holds,
and nothing is spare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_chill.core.cold_start import duration
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.decision import Step
from vllm_chill.core.saturation.survey import number

_STAGE = "steady"


@dataclass(frozen=True, slots=True)
class Track:
    """One figure over time: `value` holds since `at`; `before` has what held until when, as far as a window may ask for
    it. All is known from `since` on.
    """

    since: float
    at: float
    value: float
    before: tuple[tuple[float, float], ...] = ()

    @property
    def least(self) -> float:
        """The least that held at any time that is still looked at."""
        return min([self.value, *(value for _, value in self.before)])


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of a model; None while nothing is."""

    required: Track | None = None
    spare: Track | None = None


def steady(config: Config, state: State, analysis: Analysis, now: float) -> tuple[Analysis, State, Step | None]:
    """What of an analysis at `now` (seconds) may be acted on, what to remember, and a step if that is not all of it."""
    if not analysis.measured and analysis.complete:
        return analysis, State(), None  # no replica is ready: what was before tells nothing of what will be
    up, down = config.scale_up_stabilization, config.scale_down_stabilization
    state = State(
        _after(state.required, analysis.required, now, up) if analysis.measured else state.required,
        _after(state.spare, analysis.spare, now, down),
    )
    required, lacking = _held(state.required, analysis.required, up, "lacking", "comes")
    spare, over = _held(state.spare, analysis.spare, down, "spare", "goes")
    text = lacking or over
    return replace(analysis, required=required, spare=spare), state, Step(_STAGE, text) if text else None


def _after(track: Track | None, value: float, now: float, window: float) -> Track:
    if track is None:
        return Track(now, now, value)
    now = max(now, track.at)
    passed = [(until, was) for until, was in (*track.before, (now, track.value))]
    gone = [until for until, _ in passed if until <= now - window]
    # Whatever was no less than what is now cannot be the least of any window that both are in.
    kept = tuple((until, was) for until, was in passed if until > now - window and was < value)
    return Track(max([track.since, *gone]), now, value, kept)


def _held(track: Track | None, value: float, window: float, what: str, moves: str) -> tuple[float, str]:
    """What of a value may be acted on, and why not all of it, "" if all."""
    if track is None or not value:
        return value, ""
    known, so_long = track.at - track.since, duration(window)
    if known < window:
        only = f"for {duration(known)} only" if known >= 1 else "only now"
        return 0.0, f"capacity has to be {what} for {so_long} before any {moves}, and this is known {only}"
    least = track.least
    if least >= value:
        return value, ""
    if not least:
        return 0.0, f"within the last {so_long} there was a time when none was {what}, so none {moves} yet"
    return least, f"within the last {so_long} only {number(least)} was {what} all the time, so no more {moves} yet"
