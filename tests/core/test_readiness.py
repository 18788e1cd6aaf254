from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.readiness import (
    Answer,
    Answered,
    Probe,
    Readiness,
    Refused,
    Unclear,
    health_found,
    list_found,
    lists_models,
    pause_seconds,
)
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage

SERVICE = Endpoint("vllm-svc", 80)
NAMES = ["a", "b"]
OWN = {name: Endpoint(f"10.0.0.{number}", 8000) for number, name in enumerate(NAMES, 1)}
NO_PROBES = Readiness(probed=False, direct=True)
DIRECT = Readiness(probed=True, direct=True)
BY_SERVICE = Readiness(probed=True, direct=False)


def replica(
    name: str = "a", *, ready: bool = False, stage: Stage = Stage.STARTING, restarts: int = 0, address: bool = True
) -> Replica:
    return Replica(name, OWN[name] if address else None, ready, Progress(stage), restarts)


def seen(*members: Replica, replicas: int = 1, failure: str | None = None) -> Observation:
    """What a backend tells that has a Service in front of these replicas."""
    serving = frozenset(member.name for member in members if member.ready) if replicas else frozenset()
    endpoints = (SERVICE,) if serving else ()
    return Observation(replicas, len(members), endpoints, None if serving else failure, serving, members)


def told(*history: Observation | tuple[str, Stage | None], start: Readiness = DIRECT) -> Readiness:
    """After the backend has told these, and probes have found these of the replicas with these names."""
    readiness = start
    for event in history:
        if isinstance(event, Observation):
            readiness = readiness.told(event)
        else:
            [probe] = [probe for probe in readiness.probes if probe.name == event[0]]
            readiness = readiness.found(probe, event[1])
    return readiness


def serving(*history: Observation | tuple[str, Stage | None], start: Readiness = DIRECT) -> set[str]:
    return set(told(*history, start=start).observation.serving)


FOUND_READY = ("a", Stage.ANSWERING)


class TestReady:
    def test_what_a_probe_found_ready_is_ready_before_the_backend_says_so(self) -> None:
        now = told(seen(replica()), FOUND_READY).observation
        assert now.endpoints == (OWN["a"],)
        assert now.serving == {"a"}
        assert now.members[0].ready is False, "the backend's own word is passed on as it is"

    def test_what_the_backend_calls_ready_is_ready_whatever_a_probe_found(self) -> None:
        assert serving(seen(replica()), ("a", Stage.LOADING), seen(replica(ready=True))) == {"a"}

    def test_a_ready_that_the_backend_takes_back_counts_for_more_than_what_was_found(self) -> None:
        history = (seen(replica()), FOUND_READY, seen(replica(ready=True)), seen(replica()))
        assert serving(*history) == set()
        assert told(*history).probes == frozenset(), "nobody overrules the kubelet"
        assert serving(*history, seen(replica(ready=True))) == {"a"}

    @pytest.mark.parametrize(
        "again",
        [
            pytest.param(replica(restarts=1), id="it was counted"),
            pytest.param(replica(stage=Stage.CREATING), id="it is seen to be created"),
        ],
    )
    def test_a_container_that_starts_again_is_found_ready_again(self, again: Replica) -> None:
        history = (seen(replica()), FOUND_READY, seen(again))
        assert serving(*history) == set()
        assert serving(*history, FOUND_READY) == {"a"}

    def test_at_another_address_it_is_asked_anew(self) -> None:
        moved = replace(replica(), endpoint=Endpoint("10.0.0.9", 8000))
        history = (seen(replica()), FOUND_READY, seen(moved))
        assert serving(*history) == set()
        assert told(*history, FOUND_READY).observation.endpoints == (moved.endpoint,)

    def test_after_a_restart_nobody_doubts_it_any_more(self) -> None:
        doubted = (seen(replica(ready=True)), FOUND_READY, seen(replica()))
        assert serving(*doubted, seen(replica(restarts=1)), FOUND_READY) == {"a"}

    def test_a_backend_that_lags_behind_takes_nothing_back(self) -> None:
        creating = replica(stage=Stage.CREATING)
        assert serving(seen(creating), FOUND_READY, seen(creating), seen(replica())) == {"a"}

    def test_what_a_probe_says_of_a_life_before_is_let_go(self) -> None:
        readiness = told(seen(replica()))
        [probe] = readiness.probes
        assert readiness.told(seen(replica(restarts=1))).found(probe, Stage.ANSWERING).observation.serving == set()
        assert readiness.told(seen(replicas=1)).found(probe, Stage.ANSWERING).observation.serving == set()

    def test_scaled_to_zero_nothing_is_ready_or_probed_although_its_pods_are_still_there(self) -> None:
        readiness = told(seen(replica()), FOUND_READY, seen(replica(), replicas=0))
        assert readiness.observation.endpoints == ()
        assert told(seen(replica(), replicas=0)).probes == frozenset()

    def test_a_failure_never_outweighs_a_replica_that_serves(self) -> None:
        failing = seen(replica("a"), replica("b"), failure="pod b cannot start")
        assert told(failing).observation.failure == "pod b cannot start"
        assert told(failing, FOUND_READY).observation.failure is None

    def test_a_backend_that_knows_no_replicas_is_passed_on_as_it_is(self) -> None:
        plain = Observation(1, 1, (SERVICE,), serving=frozenset({"somebody"}))
        assert told(plain).observation == plain


class TestEndpoints:
    def test_each_ready_replica_has_its_own(self) -> None:
        both = seen(replica("a"), replica("b"), replicas=2)
        now = told(both, ("a", Stage.ANSWERING), ("b", Stage.ANSWERING)).observation
        assert now.endpoints == (OWN["a"], OWN["b"])

    def test_an_address_that_no_probe_has_reached_is_not_used_while_there_is_the_service(self) -> None:
        ready = seen(replica(ready=True))
        assert told(ready).observation.endpoints == (SERVICE,)
        assert told(ready, ("a", None)).observation.endpoints == (SERVICE,)
        assert told(ready, ("a", Stage.LOADING)).observation.endpoints == (OWN["a"],)
        assert told(ready, ("a", Stage.LOADING)).probes == frozenset()

    def test_without_probes_the_backends_word_is_taken_for_the_address_too(self) -> None:
        assert told(seen(replica(ready=True)), start=NO_PROBES).observation.endpoints == (OWN["a"],)
        assert told(seen(replica()), start=NO_PROBES).observation.endpoints == ()
        assert told(seen(replica()), start=NO_PROBES).probes == frozenset()

    def test_a_service_waits_for_the_backends_word_and_so_do_its_callers(self) -> None:
        found = told(seen(replica()), FOUND_READY, start=BY_SERVICE)
        assert found.observation.endpoints == ()
        assert found.observation.progress == Progress(
            Stage.ANSWERING, "it answers, and its Service waits for its Ready condition"
        )
        ready = found.told(seen(replica(ready=True))).observation
        assert ready.endpoints == (SERVICE,)
        assert ready.serving == {"a"}


class TestProgress:
    @pytest.mark.parametrize(
        ("backend", "found", "all_in_all"),
        [
            pytest.param(Stage.STARTING, None, Stage.STARTING, id="nothing listens"),
            pytest.param(Stage.CREATING, None, Stage.CREATING, id="a refused connection tells of no process"),
            pytest.param(Stage.STARTING, Stage.LOADING, Stage.LOADING, id="the port is open"),
            pytest.param(Stage.CREATING, Stage.LISTING, Stage.LISTING, id="the backend lags behind"),
            pytest.param(Stage.STARTING, Stage.ANSWERING, Stage.ANSWERING, id="it is ready"),
        ],
    )
    def test_whoever_has_seen_more_says_how_far_it_is(
        self, backend: Stage, found: Stage | None, all_in_all: Stage
    ) -> None:
        now = told(seen(replica(stage=backend)), ("a", found)).observation
        assert now.progress == Progress(all_in_all)
        assert now.members[0].progress == Progress(all_in_all)

    def test_the_replica_that_is_farthest_is_the_targets(self) -> None:
        scheduling = replace(replica("b", address=False), progress=Progress(Stage.SCHEDULING, "no GPU is free"))
        assert told(seen(scheduling)).observation.progress == Progress(Stage.SCHEDULING, "no GPU is free")
        assert told(seen(scheduling, replica("a"))).observation.progress == Progress(Stage.STARTING)

    def test_what_the_backend_doubts_is_as_far_as_the_backend_says(self) -> None:
        doubted = told(seen(replica()), FOUND_READY, seen(replica(ready=True)), seen(replica()))
        assert doubted.observation.progress == Progress(Stage.STARTING)


class Histories(RuleBasedStateMachine):
    """Any history of two replicas, beside a plain account of what is known of each.

    `word` is the backend's, `found` is whether a probe found it ready in this run, `doubted` whether a Ready of this
    run was taken back.
    """

    names = st.sampled_from(NAMES)

    def __init__(self) -> None:
        super().__init__()
        self.replicas = 1
        self.members: dict[str, Replica] = {}
        self.found: dict[str, bool] = {}
        self.doubted: dict[str, bool] = {}
        self.readiness = DIRECT.told(self.observed)

    @property
    def observed(self) -> Observation:
        return seen(*self.members.values(), replicas=self.replicas)

    def tell(self) -> None:
        self.readiness = self.readiness.told(self.observed)

    def begin(self, name: str, member: Replica) -> None:
        self.members[name], self.found[name], self.doubted[name] = member, False, False
        self.tell()

    @rule(name=names, address=st.booleans())
    def comes(self, name: str, address: bool) -> None:
        if name not in self.members:
            self.begin(name, replica(name, stage=Stage.CREATING, address=address))

    @rule(name=names)
    def leaves(self, name: str) -> None:
        for known in (self.members, self.found, self.doubted):
            known.pop(name, None)
        self.tell()

    @rule(name=names)
    def restarts(self, name: str) -> None:
        if (member := self.members.get(name)) is not None:
            self.begin(name, replace(member, restarts=member.restarts + 1, ready=False))

    @rule(name=names, ready=st.booleans())
    def is_called(self, name: str, ready: bool) -> None:
        if (member := self.members.get(name)) is not None and member.endpoint is not None:
            self.doubted[name] |= member.ready and not ready
            self.members[name] = replace(member, ready=ready, progress=Progress(Stage.STARTING))
            self.tell()

    @rule(replicas=st.integers(0, 2))
    def is_scaled(self, replicas: int) -> None:
        self.replicas = replicas
        self.tell()

    @precondition(lambda self: self.readiness.probes)
    @rule(data=st.data(), stage=st.sampled_from([None, Stage.LOADING, Stage.LISTING, Stage.ANSWERING]))
    def is_looked_at(self, data: st.DataObject, stage: Stage | None) -> None:
        probe = data.draw(st.sampled_from(sorted(self.readiness.probes, key=lambda probe: probe.name)))
        self.readiness = self.readiness.found(probe, stage)
        self.found[probe.name] = stage is Stage.ANSWERING

    @rule(probe=st.builds(Probe, names, st.sampled_from([SERVICE, *OWN.values()]), st.integers(0, 2)))
    def is_looked_at_in_vain(self, probe: Probe) -> None:
        if probe not in self.readiness.probes and self.replicas:
            assert self.readiness.found(probe, Stage.ANSWERING) is self.readiness

    @invariant()
    def ready_is_what_either_of_the_two_says(self) -> None:
        ready = {
            name
            for name, member in self.members.items()
            if member.ready or (self.found[name] and not self.doubted[name])
        }
        assert self.readiness.observation.serving == (ready if self.replicas else set())

    @invariant()
    def there_is_an_endpoint_while_something_is_ready(self) -> None:
        now = self.readiness.observation
        assert bool(now.endpoints) == bool(now.serving)
        assert set(now.endpoints) <= {SERVICE, *(m.endpoint for m in now.members if m.name in now.serving)}

    @invariant()
    def probes_are_of_what_is_there_and_not_known_to_be_ready(self) -> None:
        for probe in self.readiness.probes:
            assert self.members[probe.name].endpoint == probe.endpoint
            assert not self.found[probe.name]
        if self.replicas:
            probed = {probe.name for probe in self.readiness.probes}
            for name, member in self.members.items():
                waits = member.endpoint is not None and not member.ready and not self.doubted[name]
                assert not waits or self.found[name] or name in probed

    @invariant()
    def to_be_told_the_same_again_changes_nothing(self) -> None:
        assert self.readiness.told(self.observed) == self.readiness

    @invariant()
    def progress_is_that_of_the_farthest(self) -> None:
        now = self.readiness.observation
        if self.replicas and now.members:
            assert now.progress is not None
            assert now.progress.stage == max(member.progress.stage for member in now.members)
            assert (now.progress.stage is Stage.ANSWERING) == bool(now.serving)


TestHistories = Histories.TestCase


MODEL = b'{"object": "list", "data": [{"id": "Qwen/Qwen3-0.6B", "object": "model"}]}'


@pytest.mark.parametrize(
    ("answer", "stage"),
    [
        (Refused(), None),
        (Unclear(), Stage.LOADING),
        (Answered(503), Stage.LOADING),
        (Answered(404), Stage.LOADING),
        (Answered(200, b"whatever"), Stage.LISTING),
    ],
    ids=str,
)
def test_what_a_health_page_says(answer: Answer, stage: Stage | None) -> None:
    assert health_found(answer) is stage


@pytest.mark.parametrize(
    ("answer", "stage", "listed"),
    [
        pytest.param(Answered(200, MODEL), Stage.ANSWERING, True, id="a model is listed"),
        pytest.param(Answered(200, b'{"data": []}'), Stage.LISTING, False, id="none is listed yet"),
        pytest.param(Answered(503), Stage.LISTING, False, id="not yet"),
        pytest.param(Answered(500, MODEL), Stage.LISTING, False, id="it fails"),
        pytest.param(Unclear(), Stage.LISTING, False, id="no answer in time"),
        pytest.param(Refused(), None, False, id="it is gone"),
        pytest.param(Answered(404), Stage.ANSWERING, False, id="it has no list"),
        pytest.param(Answered(401), Stage.ANSWERING, False, id="its list needs a key"),
        pytest.param(Answered(200), Stage.ANSWERING, False, id="a list that is too large to be read"),
        pytest.param(Answered(200, b"<html>"), Stage.ANSWERING, False, id="a page for every path"),
        pytest.param(Answered(200, b"[" * 100_000), Stage.ANSWERING, False, id="JSON that is too deep"),
        pytest.param(Answered(200, b'{"data": {}}'), Stage.ANSWERING, False, id="data of another kind"),
        pytest.param(Answered(200, b"[1]"), Stage.ANSWERING, False, id="another list"),
        pytest.param(Answered(200, b"\xff\xfe"), Stage.ANSWERING, False, id="no text"),
    ],
)
def test_what_a_list_of_models_says(answer: Answer, stage: Stage | None, listed: bool) -> None:
    assert list_found(answer) is stage
    assert lists_models(answer) is listed


ages, chances = st.floats(0, 1e6), st.floats(0, 1)


@given(ages, chances)
def test_a_pause_is_short_beside_what_was_waited_already(age: float, chance: float) -> None:
    pause = pause_seconds(age, chance)
    assert 0.079 < pause < max(0.121, min(1.201, age / 499))


@given(ages, ages, chances)
def test_pauses_only_grow_with_age(age: float, other: float, chance: float) -> None:
    young, old = sorted((age, other))
    assert pause_seconds(young, chance) <= pause_seconds(old, chance)


@pytest.mark.parametrize(("age", "pause"), [(0, 0.1), (60, 0.1), (300, 0.5), (600, 1.0), (10_000, 1.0)])
def test_the_pause_by_age(age: float, pause: float) -> None:
    assert pause_seconds(age, 0.5) == pytest.approx(pause)
    assert [pause_seconds(age, chance) for chance in (0, 1)] == pytest.approx([0.8 * pause, 1.2 * pause])
