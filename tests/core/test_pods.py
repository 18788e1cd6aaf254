from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.pods import (
    ContainerFacts,
    ContainerRun,
    PodFacts,
    PodPast,
    Unplaced,
    is_being_made,
    is_crash_loop,
    is_live,
    is_ready,
    recalled,
    remembered,
    run_of,
)

LOADING = PodFacts("vllm-1-a", containers=(ContainerFacts("vllm", running=True),))
HOMELESS = PodFacts("vllm-1-b", unplaced=Unplaced("no room", no_room=True))
ENDING = replace(LOADING, name="vllm-1-c", terminating=True)


@pytest.mark.parametrize(
    ("facts", "live", "ready"),
    [
        pytest.param({}, True, False, id="one that loads is live"),
        pytest.param({"ready": True}, True, True, id="one that passes its probe is ready"),
        pytest.param({"ready": True, "terminating": True}, False, False, id="one that terminates is not, ready or not"),
        pytest.param({"ended": True}, False, False, id="one that has ended is not live"),
        pytest.param({"ready": True, "ended": True}, False, False, id="an evicted one is not ready"),
    ],
)
def test_a_pod_is(facts: dict[str, bool], live: bool, ready: bool) -> None:
    one = replace(LOADING, **facts)  # type: ignore[arg-type]
    assert (is_live(one), is_ready(one)) == (live, ready)


@pytest.mark.parametrize(
    ("one", "made"),
    [
        pytest.param(PodFacts("a"), True, id="one that its node has just got"),
        pytest.param(
            PodFacts("a", containers=(ContainerFacts("vllm", "ContainerCreating"),)), True, id="one that waits"
        ),
        pytest.param(
            PodFacts("a", containers=(ContainerFacts("x", init=True, running=True),)), True, id="one prepared"
        ),
        pytest.param(HOMELESS, False, id="one without a node"),
        pytest.param(LOADING, False, id="one that runs"),
        pytest.param(PodFacts("a", containers=(ContainerFacts("vllm", restarts=1),)), False, id="one that crashed"),
        pytest.param(PodFacts("a", terminating=True), False, id="one on its way out"),
    ],
)
def test_a_pod_is_being_made(one: PodFacts, made: bool) -> None:
    assert is_being_made(one) is made


def past_of(*histories: list[PodFacts]) -> dict[str, PodPast]:
    """What is remembered after these moments, which are a second apart."""
    past: dict[str, PodPast] = {}
    for now, pods in enumerate(histories):
        past = remembered(past, {pod.name: pod for pod in pods}, now)
    return past


def ended(at: str, restarts: int = 0) -> PodFacts:
    container = ContainerFacts("vllm", "CrashLoopBackOff", restarts=restarts, ended_at=at)
    return replace(LOADING, containers=(container,))


def test_a_want_of_room_counts_from_when_it_was_first_seen() -> None:
    scheduling = replace(HOMELESS, unplaced=Unplaced())
    past = past_of([scheduling], [HOMELESS], [HOMELESS], [HOMELESS])
    assert past[HOMELESS.name].no_room_since == 1
    known = recalled(HOMELESS, past[HOMELESS.name])
    assert known.unplaced == Unplaced("no room", no_room=True, since=1)


def test_it_does_not_count_while_another_pod_is_on_its_way_out() -> None:
    assert past_of([HOMELESS, ENDING], [HOMELESS, ENDING])[HOMELESS.name].no_room_since is None
    assert past_of([HOMELESS, ENDING], [HOMELESS])[HOMELESS.name].no_room_since == 1


def test_a_pod_that_has_found_a_node_wants_none() -> None:
    placed = replace(HOMELESS, unplaced=None)
    past = past_of([HOMELESS], [placed])
    assert past[placed.name] == PodPast()
    assert recalled(placed, past[placed.name]) == placed


def test_a_pod_that_is_gone_is_forgotten() -> None:
    assert past_of([HOMELESS], []) == {}


def test_a_kubelet_that_restarts_at_once_has_shown_two_ends_in_its_first_crash_loop() -> None:
    first = replace(LOADING, containers=(ContainerFacts("vllm", ended_at="00:00"),))
    again = replace(LOADING, containers=(ContainerFacts("vllm", restarts=1, running=True, ended_at="00:00"),))
    loop = ended("00:09", restarts=1)
    past = past_of([LOADING], [first], [again], [again], [loop])
    [container] = recalled(loop, past[loop.name]).containers
    assert container.ends == 2
    assert is_crash_loop(container)


@given(st.lists(st.sampled_from(["", "00:01", "00:02", "00:03"]).map(lambda at: [ended(at)]), max_size=8))
def test_each_end_is_counted_once(history: list[list[PodFacts]]) -> None:
    moments = [pods[0].containers[0].ended_at for pods in history]
    told = [at for at in moments if at]
    changes = [at for at, before in zip(told, ["", *told], strict=False) if at != before]
    [container] = recalled(LOADING, past_of(*history).get(LOADING.name, PodPast())).containers
    assert container.ends == len(changes)


@pytest.mark.parametrize(
    ("container", "loops"),
    [
        pytest.param(ContainerFacts("vllm", "CrashLoopBackOff", restarts=1), False, id="one crash is forgiven"),
        pytest.param(ContainerFacts("vllm", "CrashLoopBackOff", restarts=1, ends=2), True, id="two ends were seen"),
        pytest.param(ContainerFacts("vllm", "CrashLoopBackOff", restarts=2), True, id="two restarts"),
        pytest.param(ContainerFacts("vllm", restarts=7, ends=7, running=True), False, id="one that runs again"),
    ],
)
def test_a_crash_loop(container: ContainerFacts, loops: bool) -> None:
    assert is_crash_loop(container) is loops


@pytest.mark.parametrize(
    ("containers", "run"),
    [
        pytest.param([{"name": "vllm", "running": True}], ("vllm", 0, "", True), id="the engine that runs"),
        pytest.param(
            [{"name": "a", "running": True}, {"name": "vllm", "restarts": 2}], ("vllm", 2, "", False), id="or crashed"
        ),
        pytest.param(
            [{"name": "get", "init": True, "running": True}, {"name": "vllm"}],
            ("get", 0, "container get", True),
            id="before it, an init container that runs",
        ),
        pytest.param(
            [
                {"name": "sidecar", "init": True, "running": True},
                {"name": "get", "init": True, "running": True},
                {"name": "vllm"},
            ],
            ("get", 0, "container get", True),
            id="the last of those that run",
        ),
        pytest.param(
            [
                {"name": "get", "init": True, "restarts": 1, "exit_code": 1, "ended_at": "1"},
                {"name": "done", "init": True, "exit_code": 0, "ended_at": "1"},
                {"name": "vllm"},
            ],
            ("get", 1, "container get", False),
            id="one that failed",
        ),
        pytest.param(
            [{"name": "get", "init": True, "exit_code": 0, "ended_at": "1"}, {"name": "vllm"}],
            ("get", 0, "container get", False),
            id="one that is done",
        ),
        pytest.param([{"name": "get", "init": True}, {"name": "vllm"}], None, id="nothing yet"),
    ],
)
def test_what_of_a_pod_is_read_to_know_how_it_is(
    containers: list[dict[str, Any]], run: tuple[str, int, str, bool] | None
) -> None:
    pod = PodFacts("p", engine="vllm", containers=tuple(ContainerFacts(**container) for container in containers))
    assert run_of(pod) == (None if run is None else ContainerRun("p", *run))
