from __future__ import annotations

import pytest
from msgspec.structs import replace

from vllm_chill.api.status import PastStartStatus, ProxyStatus, StartStatus, TargetStatus
from vllm_chill.cli.status import describe, tell


def test_a_start_under_way_is_told_with_its_cause_and_the_time_left() -> None:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    start = StartStatus(stage="scheduling", detail=words, elapsed_seconds=32.1, eta_seconds=88)
    target = TargetStatus(
        target="ai-apps/vllm", phase="waking", phase_seconds=32.1, waiting=3, in_flight=0, replicas=1, start=start
    )
    assert describe(target).splitlines() == [
        "target     ai-apps/vllm",
        "phase      waking, for 32s",
        f"start      waiting for a node ({words}), 32s so far, about 1m30s left",
        "waiting    3",
        "in flight  0",
        "replicas   1",
    ]


def test_a_start_is_told_with_what_its_engine_wrote_last() -> None:
    target = TargetStatus(target="process/vllm", phase="waking", waiting=1, in_flight=0, output=["one", "\x1b[2Jtwo"])
    assert describe(target).splitlines() == [
        "target     process/vllm",
        "phase      waking",
        "output     one",
        "           two",
        "waiting    1",
        "in flight  0",
    ]


def test_without_history_a_start_has_no_time_left() -> None:
    start = StartStatus(stage="loading", elapsed_seconds=3)
    text = describe(TargetStatus(target="process/vllm", phase="waking", waiting=1, in_flight=0, start=start))
    assert "start      loading the model, 3s so far\n" in text


def test_while_the_first_token_is_awaited_it_is_ready() -> None:
    start = StartStatus(stage="first_token", elapsed_seconds=3, eta_seconds=0)
    text = describe(TargetStatus(target="process/vllm", phase="ready", waiting=0, in_flight=1, start=start))
    assert "start      waiting for the first token, 3s so far\n" in text


def test_the_last_start_has_a_row_for_each_stage() -> None:
    stages = {"requested": 0.04, "scheduling": 12.3, "loading": 61.0, "first_token": 0.31}
    last = PastStartStatus(outcome="ready", total_seconds=73.65, stages=stages)
    text = describe(TargetStatus(target="ai-apps/vllm", phase="ready", waiting=0, in_flight=1, last_start=last))
    assert text.splitlines()[-5:] == [
        "last start ready after 1m14s",
        "             waiting for a replica          0.0s",
        "             waiting for a node              12s",
        "             loading the model              1m1s",
        "             waiting for the first token    0.3s",
    ]


def test_a_failed_start_says_where_it_stood_and_why_once() -> None:
    last = PastStartStatus(
        outcome="failed", total_seconds=20, stages={"pulling": 20}, stopped_at="pulling", cause="no such image"
    )
    target = TargetStatus(target="ai-apps/vllm", phase="asleep", waiting=0, in_flight=0, last_start=last)
    assert "last start failed after 20s, pulling the image: no such image\n" in describe(target)
    text = describe(replace(target, phase="failed", cause="no such image"))
    assert "cause      no such image\n" in text
    assert "last start failed after 20s, pulling the image\n" in text


def test_a_stage_that_a_newer_proxy_has_is_told_by_its_name() -> None:
    start = StartStatus(stage="warming", elapsed_seconds=3)
    text = describe(TargetStatus(target="process/vllm", phase="waking", waiting=1, in_flight=0, start=start))
    assert "start      warming, 3s so far\n" in text


def test_a_model_is_told_with_its_names_and_whom_it_waits_for() -> None:
    target = TargetStatus(
        target="ai-apps/vllm-a",
        model="a",
        served_names=["org/a", "alpha"],
        group="gpu",
        waits_for=["b"],
        phase="queued",
        phase_seconds=3,
        cause="it waits for its turn on the GPUs",
        waiting=1,
        in_flight=0,
    )
    assert describe(target).splitlines() == [
        "model      a",
        "served as  org/a, alpha",
        "group      gpu",
        "target     ai-apps/vllm-a",
        "phase      queued, for 3s",
        "cause      it waits for its turn on the GPUs",
        "waits for  b",
        "waiting    1",
        "in flight  0",
    ]


@pytest.mark.parametrize(
    ("current", "ready", "desired", "told"),
    [
        (0, 0, 0, "0"),
        (1, None, None, "1"),
        (1, 1, 1, "1"),
        (1, 0, 1, "0 of 1 ready"),
        (3, 2, 3, "2 of 3 ready"),
        (3, 2, 4, "2 of 3 ready, 4 wanted"),
        (1, 1, 0, "1, 0 wanted"),
        (2, 2, None, "2"),
    ],
)
def test_replicas_are_told_with_those_that_are_ready_and_wanted(
    current: int, ready: int | None, desired: int | None, told: str
) -> None:
    target = TargetStatus(
        target="ai-apps/vllm",
        phase="ready",
        waiting=0,
        in_flight=0,
        replicas=current,
        ready_replicas=ready,
        desired_replicas=desired,
        scaling="queue_length is 30, so 4 replicas",
    )
    assert describe(target).splitlines()[-2:] == [
        f"replicas   {told}",
        "scaling    queue_length is 30, so 4 replicas",
    ]


def test_several_targets_have_a_paragraph_each() -> None:
    targets = [TargetStatus(target=f"ns/{name}", phase="asleep", waiting=0, in_flight=0) for name in ("a", "b")]
    status = ProxyStatus(version="1", draining=True, default_model="org/a", targets=targets)
    assert tell(status).split("\n\n") == [
        *(describe(target) for target in targets),
        "Requests that name no model get org/a.",
        "This proxy is shutting down.",
    ]


def test_one_target_is_told_as_ever() -> None:
    target = TargetStatus(target="process/vllm", phase="asleep", waiting=0, in_flight=0)
    status = ProxyStatus(version="1", draining=True, targets=[target])
    assert tell(status) == f"{describe(target)}\nThis proxy is shutting down."


def test_without_a_model_it_says_why() -> None:
    assert tell(ProxyStatus(version="1", draining=False, targets=[])) == "There is no model yet."
    status = ProxyStatus(version="1", draining=False, trouble="the API server is away", targets=[])
    assert tell(status) == "The models are not known: the API server is away."
