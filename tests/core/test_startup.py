from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.pods import ContainerFacts, PodFacts, Unplaced
from vllm_chill.core.startup import Terms, WorkloadFacts, gives_up_at, observation, pod_failure, progress
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef

REF = TargetRef("ai-apps", "vllm")
HERE = Endpoint("vllm-svc", 80)
THERE = Endpoint("10.0.0.7", 8000)
TERMS = Terms(REF, HERE, unschedulable_seconds=60)
ONE = WorkloadFacts(1)
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def waiting(reason: str, message: str = "", restarts: int = 0, exit_code: int | None = None) -> ContainerFacts:
    return ContainerFacts("vllm", reason, message, restarts, exit_code)


def pod(*containers: ContainerFacts, name: str = "vllm-1-a", **facts: object) -> PodFacts:
    return PodFacts(name, containers=containers, **facts)  # type: ignore[arg-type]


STUCK = pod(waiting("ImagePullBackOff", 'Back-off pulling image "bad/image"'))
LOADING = pod(ContainerFacts("vllm", running=True), name="vllm-1-b", endpoint=THERE)
READY = pod(name="vllm-1-c", ready=True, endpoint=THERE)
HOMELESS = pod(name="vllm-1-d", unplaced=Unplaced(NO_GPU, no_room=True, since=100))


def failing(one: PodFacts, now: float = 0) -> str | None:
    return pod_failure(TERMS, one, now)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        pytest.param(
            waiting("ImagePullBackOff", 'Back-off pulling image "bad/image".'),
            'pod vllm-1-a cannot start: ImagePullBackOff: container vllm: Back-off pulling image "bad/image"; '
            "check the image's name and the pull secret",
            id="an image that cannot be pulled",
        ),
        pytest.param(
            waiting("ErrImagePull", 'failed to pull "vllm/vlm": not found'),
            'ErrImagePull: container vllm: failed to pull "vllm/vlm": not found; check the image',
            id="a pull that no try will mend",
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
        pytest.param(
            ContainerFacts("vllm", "CrashLoopBackOff", "", 1, 1, ends=2),
            "ended with exit code 1 and was restarted once; see",
            id="a second crash of a container that was restarted once",
        ),
        pytest.param(
            ContainerFacts("vllm", "CrashLoopBackOff", "", 2, 1, log="loading\nCUDA out of memory"),
            "restarted 2 times; its last output was: loading\nCUDA out of memory",
            id="a crash whose log was read",
        ),
    ],
)
def test_a_start_fails_for_good_with(container: ContainerFacts, words: str) -> None:
    failure = failing(pod(container))
    assert failure is not None
    assert "cannot start" in failure
    assert words in failure


@pytest.mark.parametrize(
    "container",
    [
        pytest.param(ContainerFacts("vllm"), id="a container that runs"),
        pytest.param(waiting("ContainerCreating"), id="a container being made"),
        pytest.param(waiting("PodInitializing"), id="init containers at work"),
        pytest.param(waiting("ErrImagePull", "i/o timeout"), id="a pull that timed out"),
        pytest.param(waiting("ErrImagePull", "429 Too Many Requests"), id="a registry that is asked too often"),
        pytest.param(waiting("ErrImagePull", "received unexpected HTTP status: 503 Service Unavailable"), id="one ill"),
        pytest.param(waiting("CrashLoopBackOff", restarts=1, exit_code=1), id="a single crash"),
        pytest.param(ContainerFacts("vllm", restarts=7, exit_code=1), id="a restart that runs"),
    ],
)
def test_a_start_is_waited_for_with(container: ContainerFacts) -> None:
    assert failing(pod(container)) is None


def test_a_failed_init_container_counts() -> None:
    init = ContainerFacts("download", "CrashLoopBackOff", restarts=2, exit_code=1)
    failure = failing(pod(init, waiting("PodInitializing")))
    assert failure is not None
    assert "container download ended" in failure


def test_a_long_message_is_cut_and_on_one_line() -> None:
    failure = failing(pod(waiting("CreateContainerError", "a\n" * 5000)))
    assert failure is not None
    assert len(failure) < 500
    assert "\n" not in failure


def seen(workload: WorkloadFacts | None, *pods: PodFacts, now: float = 0) -> Observation:
    return observation(TERMS, workload, pods, now)


def summary(seen: Observation) -> Observation:
    """An observation without its members and their progress."""
    return replace(seen, members=(), progress=None)


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
            Observation(1, 0, terminating=1),
            id="only a terminating pod is ready",
        ),
        pytest.param(WorkloadFacts(0), (STUCK,), Observation(0, 1), id="a failure of what is no longer asked for"),
        pytest.param(
            ONE,
            (pod(waiting("ImagePullBackOff"), terminating=True),),
            Observation(1, 0, terminating=1),
            id="a failure on its way out",
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
            Observation(1, 0, terminating=1),
            id="a quota that the pod before still holds",
        ),
    ],
)
def test_what_is_observed(workload: WorkloadFacts, pods: tuple[PodFacts, ...], expected: Observation) -> None:
    assert summary(seen(workload, *pods)) == expected


def test_a_deployment_that_is_not_there_says_what_to_do() -> None:
    assert seen(None) == Observation(
        0, 0, failure="Deployment ai-apps/vllm does not exist: create it, or set --deployment and --namespace"
    )


def test_a_failed_pod_is_the_targets_failure() -> None:
    assert seen(ONE, STUCK).failure == failing(STUCK)


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


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(pod(unplaced=Unplaced()), Progress(Stage.SCHEDULING), id="one that no scheduler has looked at"),
        pytest.param(
            HOMELESS,
            Progress(Stage.SCHEDULING, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu"),
            id="one that no node has room for",
        ),
        pytest.param(pod(), Progress(Stage.CREATING), id="one that its node has said nothing of"),
        pytest.param(pod(waiting("ContainerCreating")), Progress(Stage.CREATING), id="one whose container is made"),
        pytest.param(
            pod(waiting("ContainerCreating"), pulling='Pulling image "vllm/vllm-openai"'),
            Progress(Stage.PULLING, 'Pulling image "vllm/vllm-openai"'),
            id="one whose image is pulled",
        ),
        pytest.param(
            pod(waiting("ErrImagePull", "i/o timeout")),
            Progress(Stage.PULLING, "ErrImagePull: i/o timeout"),
            id="one whose pull is tried again",
        ),
        pytest.param(
            pod(ContainerFacts("download", init=True, running=True), waiting("PodInitializing")),
            Progress(Stage.CREATING, "init container download runs"),
            id="one that is prepared",
        ),
        pytest.param(
            pod(ContainerFacts("sidecar", running=True), waiting("ContainerCreating")),
            Progress(Stage.CREATING),
            id="one with a container that runs and one that does not",
        ),
        pytest.param(LOADING, Progress(Stage.STARTING), id="one that runs"),
        pytest.param(
            pod(waiting("CrashLoopBackOff", restarts=1, exit_code=1)),
            Progress(Stage.STARTING, "container vllm ended with exit code 1"),
            id="one that crashed once",
        ),
        pytest.param(READY, Progress(Stage.ANSWERING), id="one that is ready"),
    ],
)
def test_how_far_a_pod_is(one: PodFacts, expected: Progress) -> None:
    assert progress(one) == expected


def test_each_live_pod_is_a_member_with_its_own_address_ready_or_not() -> None:
    ending = pod(name="vllm-1-a", ready=True, terminating=True, endpoint=THERE)
    assert seen(WorkloadFacts(3), READY, ending, HOMELESS, LOADING).members == (
        Replica("vllm-1-b", THERE, False, Progress(Stage.STARTING)),
        Replica("vllm-1-c", THERE, True, Progress(Stage.ANSWERING)),
        Replica("vllm-1-d", None, False, progress(HOMELESS)),
    )


def test_the_order_of_the_pods_does_not_matter() -> None:
    assert seen(WorkloadFacts(2), LOADING, READY) == seen(WorkloadFacts(2), READY, LOADING)


@pytest.mark.parametrize(
    ("workload", "pods", "expected"),
    [
        pytest.param(WorkloadFacts(0), (), None, id="asleep"),
        pytest.param(WorkloadFacts(0), (LOADING,), None, id="on its way to sleep"),
        pytest.param(ONE, (), Progress(Stage.REQUESTED), id="asked for"),
        pytest.param(
            WorkloadFacts(1, "exceeded quota: gpus"),
            (pod(terminating=True),),
            Progress(Stage.REQUESTED, "exceeded quota: gpus"),
            id="without quota for now",
        ),
        pytest.param(WorkloadFacts(2), (HOMELESS, LOADING), Progress(Stage.STARTING), id="as far as the farthest"),
        pytest.param(WorkloadFacts(2), (LOADING, READY), Progress(Stage.ANSWERING), id="one is ready"),
    ],
)
def test_how_far_the_start_is(workload: WorkloadFacts, pods: tuple[PodFacts, ...], expected: Progress | None) -> None:
    assert seen(workload, *pods).progress == expected


def test_no_room_is_waited_for_with_the_schedulers_words_and_then_given_up_with_them() -> None:
    assert seen(ONE, HOMELESS, now=159.9).failure is None
    assert gives_up_at(TERMS, [HOMELESS], 159.9) == 160
    assert seen(ONE, HOMELESS, now=160).failure == (
        "pod vllm-1-d cannot start: Unschedulable: no node has had room for it for 60 s: 0/1 nodes are available: "
        "1 Insufficient nvidia.com/gpu; make room, add a node, or raise --unschedulable-after to the time that a new "
        "node takes"
    )
    assert gives_up_at(TERMS, [HOMELESS], 160) is None


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(replace(HOMELESS, unplaced=Unplaced()), id="one that no scheduler has looked at"),
        pytest.param(replace(HOMELESS, unplaced=Unplaced("gated", no_room=False, since=0)), id="one held back"),
        pytest.param(replace(HOMELESS, terminating=True), id="one on its way out"),
        pytest.param(LOADING, id="one that has a node"),
    ],
)
def test_what_is_not_given_up_for_want_of_a_node(one: PodFacts) -> None:
    assert seen(ONE, one, now=1e9).failure is None
    assert gives_up_at(TERMS, [one], 0) is None


pods_in_want = st.builds(
    lambda since, no_room, terminating: replace(
        HOMELESS, unplaced=Unplaced(NO_GPU, no_room, since), terminating=terminating
    ),
    st.none() | st.floats(0, 1000),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(st.one_of(pods_in_want, st.sampled_from([LOADING, READY, STUCK])), max_size=4), st.floats(0, 1100))
def test_an_observation_changes_by_itself_only_when_it_is_said_to(pods: list[PodFacts], now: float) -> None:
    end = gives_up_at(TERMS, pods, now)
    assert end is None or end > now
    later = now + 1e6 if end is None else (now + end) / 2
    if end is None or later < end:
        assert seen(ONE, *pods, now=later) == seen(ONE, *pods, now=now)


def test_it_is_given_up_at_the_moment_that_was_said() -> None:
    end = gives_up_at(TERMS, [HOMELESS], 0)
    assert end is not None
    assert seen(ONE, HOMELESS, now=end).failure is not None
