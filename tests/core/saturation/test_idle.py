from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Fleet, ReplicaLoad, Variant, Zero
from vllm_chill.core.saturation.idle import Watched, kept, lacking, use, watched

NOW = 10_000.0
QUIET = ReplicaLoad("a-0", kv=0.0, queue=0.0, running=0.0)
WATCHED = Watched(0.0)
FLEET = Fleet(
    "prod",
    "chat",
    (Variant("a", replicas=1, ready=1, loads=(QUIET,)),),
    held=0.0,
    active_at=NOW - 600,
    zero=Zero(enabled=True, retention_seconds=600),
)


def load(told: ReplicaLoad) -> Fleet:
    return replace(FLEET, variants=(Variant("a", replicas=1, ready=1, loads=(told,)),))


def test_a_model_that_nobody_has_used_for_as_long_as_it_is_kept_is_idle() -> None:
    found = use(FLEET, WATCHED, NOW)
    assert (found.idle, found.why) == (True, "nobody has used it for 10m")


@pytest.mark.parametrize(
    ("fleet", "why"),
    [
        pytest.param(replace(FLEET, held=None), "nobody can tell whether requests wait for it", id="held unknown"),
        pytest.param(replace(FLEET, held=float("nan")), "nobody can tell", id="held is no number"),
        pytest.param(replace(FLEET, held=2.0), "2 requests before its replicas", id="held"),
        pytest.param(load(replace(QUIET, running=1.0)), "1 request at its replicas", id="running"),
        pytest.param(load(replace(QUIET, queue=3.0)), "3 requests at its replicas", id="waiting"),
        pytest.param(load(replace(QUIET, running=None)), "a replica does not tell", id="running unknown"),
        pytest.param(load(replace(QUIET, queue=None)), "a replica does not tell", id="waiting unknown"),
        pytest.param(load(replace(QUIET, running=float("nan"))), "a replica does not tell", id="no number"),
        pytest.param(load(replace(QUIET, stale=True)), "what a replica told is too old", id="stale"),
        pytest.param(
            replace(FLEET, variants=(replace(FLEET.variants[0], ready=2),)), "1 ready replica told nothing", id="untold"
        ),
        pytest.param(
            replace(FLEET, variants=(*FLEET.variants, Variant("b", replicas=1, ready=1))),
            "1 ready replica told nothing",
            id="a sibling untold",
        ),
        pytest.param(replace(FLEET, active_at=NOW - 599), "it was used 9m59s ago", id="used lately"),
        pytest.param(replace(FLEET, woken_at=NOW - 599), "or came then, and is kept for 10m", id="woken lately"),
    ],
)
def test_what_is_used_or_not_known_is_not_idle(fleet: Fleet, why: str) -> None:
    found = use(fleet, WATCHED, NOW)
    assert not found.idle
    assert why in found.why


def test_grace_begins_when_a_replica_is_ready_and_not_when_it_was_asked_for() -> None:
    fleet = replace(FLEET, woken_at=NOW - 900)
    assert not use(fleet, Watched(0.0, starting_at=NOW - 599), NOW).idle
    assert use(fleet, Watched(0.0, starting_at=NOW - 600), NOW).idle


def test_use_that_was_never_seen_is_taken_to_have_been_before_it_was_watched() -> None:
    fleet = replace(FLEET, active_at=None)
    assert not use(fleet, Watched(NOW - 599), NOW).idle
    assert use(fleet, Watched(NOW - 600), NOW).idle


def test_what_was_seen_is_remembered() -> None:
    waking = replace(FLEET, variants=(Variant("a", replicas=1),))
    first = watched(None, FLEET, 5.0, starting=False)
    assert first == Watched(5.0, None)
    seen = watched(first, waking, 8.0, starting=True)
    assert seen == Watched(5.0, 8.0)
    assert watched(seen, FLEET, 9.0, starting=True) == seen
    assert watched(seen, waking, 9.0, starting=False) == seen, "pods that do not come are not waited for"


@pytest.mark.parametrize(
    ("held", "threshold", "coming", "capacity"),
    [
        (None, 5.0, 0.0, 0.0),
        (0.0, 5.0, 0.0, 0.0),
        (float("inf"), 5.0, 0.0, 0.0),
        (1.0, 5.0, 0.0, 0.2),
        (12.0, 5.0, 0.0, 2.4),
        (12.0, 5.0, 2.0, 0.4),
        (12.0, 5.0, 3.0, 0.0),
        (3.0, 0.0, 0.0, 3.0),
    ],
)
def test_what_is_held_asks_for_capacity(held: float | None, threshold: float, coming: float, capacity: float) -> None:
    config = Config(queue_length_threshold=threshold)
    assert lacking(config, replace(FLEET, held=held), coming) == pytest.approx(capacity)


def test_a_model_that_has_replicas_keeps_its_cheapest() -> None:
    fleet = replace(FLEET, variants=(Variant("a", cost=20.0, replicas=1), Variant("b", max_replicas=3)))
    assert kept(fleet, {"a": 0, "b": 0}) == fleet.variants[1]
    assert kept(fleet, {"a": 1, "b": 0}) is None
    asleep = replace(fleet, variants=(Variant("a"),))
    assert kept(asleep, {"a": 0}) is None
