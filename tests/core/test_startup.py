from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_chill.core.startup import (
    ContainerFacts,
    PodFacts,
    WorkloadFacts,
    is_live,
    is_ready,
    observation,
    pod_failure,
)
from vllm_chill.core.target import Endpoint, Observation, TargetRef

REF = TargetRef("ai-apps", "vllm")
HERE = Endpoint("vllm-svc", 80)
ONE = WorkloadFacts(1)


def waiting(reason: str, message: str = "", restarts: int = 0, exit_code: int | None = None) -> ContainerFacts:
    return ContainerFacts("vllm", reason, message, restarts, exit_code)


def pod(*containers: ContainerFacts, name: str = "vllm-1-a", **facts: object) -> PodFacts:
    return PodFacts(name, containers=containers, **facts)  # type: ignore[arg-type]


STUCK = pod(waiting("ImagePullBackOff", 'Back-off pulling image "bad/image"'))
LOADING = pod(ContainerFacts("vllm"), name="vllm-1-b")
READY = pod(name="vllm-1-c", ready=True)


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
    ("container", "words"),
    [
        pytest.param(
            waiting("ImagePullBackOff", 'Back-off pulling image "bad/image".'),
            'pod vllm-1-a cannot start: ImagePullBackOff: container vllm: Back-off pulling image "bad/image"; '
            "check the image's name and the pull secret",
            id="an image that cannot be pulled",
        ),
        pytest.param(waiting("ErrImageNeverPull"), "imagePullPolicy is Never", id="an image that is never pulled"),
        pytest.param(waiting("InvalidImageName"), "correct the image's name", id="an image's name that is none"),
        pytest.param(
            waiting("CreateContainerConfigError", 'secret "hf-token" not found'),
            'CreateContainerConfigError: container vllm: secret "hf-token" not found; check the Secrets',
            id="a Secret that is not there",
        ),
        pytest.param(waiting("CreateContainerError"), "mounts", id="a container that cannot be made"),
        pytest.param(waiting("RunContainerError"), "check its command", id="a command that is not there"),
        pytest.param(
            waiting("CrashLoopBackOff", restarts=2, exit_code=1),
            "container vllm ended with exit code 1 and was restarted 2 times; "
            "see `kubectl logs -n ai-apps vllm-1-a -c vllm --previous`",
            id="a second crash",
        ),
        pytest.param(
            ContainerFacts("vllm", "CrashLoopBackOff", "", 3, 137, "OOMKilled"),
            "ended with exit code 137 (OOMKilled) and was restarted 3 times",
            id="memory that is too little",
        ),
        pytest.param(
            waiting("CrashLoopBackOff", restarts=2), "container vllm ended and was", id="a crash of unknown exit code"
        ),
    ],
)
def test_a_start_fails_for_good_with(container: ContainerFacts, words: str) -> None:
    failure = pod_failure(REF, pod(container))
    assert failure is not None
    assert "cannot start" in failure
    assert words in failure


@pytest.mark.parametrize(
    "container",
    [
        pytest.param(ContainerFacts("vllm"), id="a container that runs"),
        pytest.param(waiting("ContainerCreating"), id="a container being made"),
        pytest.param(waiting("PodInitializing"), id="init containers at work"),
        pytest.param(waiting("ErrImagePull", "i/o timeout"), id="the first failure of a pull"),
        pytest.param(waiting("CrashLoopBackOff", restarts=1, exit_code=1), id="a single crash"),
        pytest.param(ContainerFacts("vllm", restarts=7, exit_code=1), id="a restart that runs"),
    ],
)
def test_a_start_is_waited_for_with(container: ContainerFacts) -> None:
    assert pod_failure(REF, pod(container)) is None


def test_a_failed_init_container_counts() -> None:
    init = ContainerFacts("download", "CrashLoopBackOff", restarts=2, exit_code=1)
    failure = pod_failure(REF, pod(init, waiting("PodInitializing")))
    assert failure is not None
    assert "container download ended" in failure


def test_a_long_message_is_cut_and_on_one_line() -> None:
    failure = pod_failure(REF, pod(waiting("CreateContainerError", "a\n" * 5000)))
    assert failure is not None
    assert len(failure) < 500
    assert "\n" not in failure


def seen(workload: WorkloadFacts | None, *pods: PodFacts) -> Observation:
    return observation(REF, workload, pods, HERE)


@pytest.mark.parametrize(
    ("workload", "pods", "expected"),
    [
        pytest.param(WorkloadFacts(0), (), Observation(0, 0), id="asleep"),
        pytest.param(ONE, (), Observation(1, 0), id="asked for, no pod yet"),
        pytest.param(ONE, (LOADING,), Observation(1, 1), id="loading"),
        pytest.param(ONE, (READY,), Observation(1, 1, (HERE,), serving=frozenset({READY.name})), id="ready"),
        pytest.param(
            WorkloadFacts(2),
            (READY, LOADING),
            Observation(2, 2, (HERE,), serving=frozenset({READY.name})),
            id="one of two ready",
        ),
        pytest.param(WorkloadFacts(0), (READY,), Observation(0, 1), id="scaled to 0, the pod still ready"),
        pytest.param(
            ONE,
            (pod(name="old", ready=True, terminating=True),),
            Observation(1, 0),
            id="only a terminating pod is ready",
        ),
        pytest.param(WorkloadFacts(0), (STUCK,), Observation(0, 1), id="a failure of what is no longer asked for"),
        pytest.param(
            ONE, (pod(waiting("ImagePullBackOff"), terminating=True),), Observation(1, 0), id="a failure on its way out"
        ),
        pytest.param(
            ONE,
            (STUCK, READY),
            Observation(1, 2, (HERE,), serving=frozenset({READY.name})),
            id="a failed pod beside one that serves",
        ),
        pytest.param(
            WorkloadFacts(2), (STUCK, LOADING), Observation(2, 2), id="a failed pod beside one that may start"
        ),
        pytest.param(
            WorkloadFacts(1, "pods is forbidden: exceeded quota"),
            (pod(terminating=True),),
            Observation(1, 0),
            id="a quota that the pod before still holds",
        ),
    ],
)
def test_what_is_observed(workload: WorkloadFacts, pods: tuple[PodFacts, ...], expected: Observation) -> None:
    assert seen(workload, *pods) == expected


def test_a_deployment_that_is_not_there_says_what_to_do() -> None:
    assert seen(None) == Observation(
        0, 0, failure="Deployment ai-apps/vllm does not exist: create it, or set --deployment and --namespace"
    )


def test_a_failed_pod_is_the_targets_failure() -> None:
    assert seen(ONE, STUCK).failure == pod_failure(REF, STUCK)


def test_a_quota_without_room_is_a_failure() -> None:
    failure = seen(WorkloadFacts(1, 'pods "vllm-1-a" is forbidden: exceeded quota: gpus.')).failure
    assert failure == 'Deployment ai-apps/vllm cannot start a pod: pods "vllm-1-a" is forbidden: exceeded quota: gpus'


def test_an_older_templates_failure_does_not_outweigh_the_newer_one() -> None:
    old = pod(waiting("ImagePullBackOff"), revision="1", created="2026-01-01T00:00:00Z")
    new = pod(ContainerFacts("vllm"), revision="2", created="2026-01-01T00:01:00Z")
    assert seen(ONE, old, new).failure is None


def test_a_newer_templates_failure_counts_beside_an_older_pod_that_loads() -> None:
    old = pod(ContainerFacts("vllm"), revision="1", created="2026-01-01T00:00:00Z")
    new = pod(waiting("InvalidImageName"), revision="2", created="2026-01-01T00:01:00Z")
    assert seen(ONE, old, new).failure is not None
