"""What was measured, with its age: a figure is used while it is fresh, with a mark while it is stale, and then is gone.

The rule: each figure has an age of its own, as one may be told while another no longer is; what was not told again
grows old, and is never taken for 0. Times are seconds on the clock of whoever calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_chill.core.saturation.fleet import ReplicaLoad
from vllm_chill.core.saturation.places import EngineLoad

FRESH_SECONDS = 60.0
GONE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Aged:
    """A figure, and when it was measured."""

    value: float
    at: float


@dataclass(frozen=True, slots=True)
class Ages:
    """A figure is fresh while it is younger than `fresh_seconds`, then stale, and gone from `gone_seconds` on."""

    fresh_seconds: float = FRESH_SECONDS
    gone_seconds: float = GONE_SECONDS

    def fresh(self, figure: Aged | None, now: float) -> float | None:
        """Its value while it is fresh."""
        return figure.value if figure is not None and now - figure.at < self.fresh_seconds else None


@dataclass(frozen=True, slots=True)
class Track:
    """What is known of one engine: each figure as it was told last, and when the engine was last known to be used.

    `successes` is the counter as it was read last; `active_at` is None for an engine that was never used.
    """

    figures: Mapping[str, Aged] = field(default_factory=dict)
    successes: Aged | None = None
    active_at: float | None = None


_MEASURED = ("kv", "queue", "running", "rate")
# How many tokens fit into the cache is written down when an engine begins: it does not grow old by itself.
_WRITTEN = "cache_tokens"


def told(track: Track, load: EngineLoad, at: float) -> Track:
    """The track after an engine has told `load` at `at`.

    What it answered counts from its counter's last value, or from 0 if that has fallen, as then the engine has begun
    anew. Where answers are not counted, an engine counts as used each time: not to know is not to be idle. One that is
    seen for the first time was used at the latest now, if it ever was.
    """
    figures = dict(track.figures)
    for name in (*_MEASURED, _WRITTEN):
        value = getattr(load, name)
        if value is not None:
            figures[name] = Aged(value, at)
    before, after = track.successes, load.successes
    anew = before is not None and after is not None and after < before.value
    if anew:
        figures.pop("rate", None)
    if load.rate is None and after is not None and before is not None and not anew and at > before.at:
        figures["rate"] = Aged((after - before.value) / (at - before.at), at)
    used = _was_used(load, None if before is None or anew else before.value)
    counted = track.successes if after is None else Aged(after, at)
    return Track(figures, counted, at if used else track.active_at)


def _was_used(load: EngineLoad, before: float | None) -> bool:
    if load.running or load.queue:
        return True
    if load.successes is None:
        return load.rate is None or load.rate != 0
    # A rate is that of the last minutes, and goes on for as long after the last answer.
    return load.successes > (before or 0)


def begun_anew(track: Track) -> Track:
    """The track of an engine in whose place there is another by now: nothing is known of its load."""
    return replace(track, figures={}, successes=None)


def load_of(name: str, track: Track, ages: Ages, now: float) -> ReplicaLoad | None:
    """What is known of an engine at `now`; None if all of it is gone. Its age is that of the oldest figure in it."""
    known = {key: aged for key, aged in track.figures.items() if now - aged.at < ages.gone_seconds}
    measured = [known[key].at for key in _MEASURED if key in known]
    if not measured:
        return None
    age = max(0.0, now - min(measured))
    return ReplicaLoad(
        name=name,
        kv=_value(known.get("kv")),
        queue=_value(known.get("queue")),
        running=_value(known.get("running")),
        rate=_value(known.get("rate")),
        cache_tokens=_value(track.figures.get(_WRITTEN)),
        age_seconds=age,
        stale=age >= ages.fresh_seconds,
    )


def _value(figure: Aged | None) -> float | None:
    return None if figure is None else figure.value
