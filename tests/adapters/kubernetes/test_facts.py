from __future__ import annotations

import pytest

from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.facts import label_selector, pod_facts, workload
from vllm_chill.core.startup import ContainerFacts, PodFacts, WorkloadFacts

READY = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]


def pod(owner: str = "vllm-abc", kind: str = "ReplicaSet", controller: bool = True, **status: object) -> Json:
    return {
        "metadata": {
            "name": "vllm-abc-1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "vllm", "pod-template-hash": "abc"},
            "ownerReferences": [{"kind": kind, "name": owner, "controller": controller}],
        },
        "status": status,
    }


@pytest.mark.parametrize(
    ("selector", "query"),
    [
        ({"matchLabels": {"app": "vllm", "tier": "gpu"}}, "app=vllm,tier=gpu"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}, "a in (b,c)"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, "a notin (b)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "a"),
        ({"matchLabels": {"x": "y"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, "x=y,!a"),
    ],
)
def test_a_selector_as_a_query(selector: Json, query: str) -> None:
    assert label_selector(selector) == query


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(pod(owner="vllm-other-abc"), id="another Deployment whose name begins alike"),
        pytest.param(pod(owner="vllm-def"), id="a ReplicaSet of another template"),
        pytest.param(pod(kind="Job"), id="a Job"),
        pytest.param(pod(controller=False), id="an owner that does not control it"),
        pytest.param({"metadata": {"name": "stray", "labels": {"app": "vllm"}}}, id="nobody"),
    ],
)
def test_a_pod_is_not_the_deployments_if_it_belongs_to(item: Json) -> None:
    assert pod_facts(item, "vllm") is None


def test_a_pod_that_has_just_been_made() -> None:
    assert pod_facts(pod(), "vllm") == PodFacts("vllm-abc-1", "abc", "2026-01-01T00:00:00Z")


def test_a_pod_that_is_ready_and_terminates() -> None:
    item = pod(phase="Running", conditions=READY)
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    facts = pod_facts(item, "vllm")
    assert facts is not None
    assert (facts.ready, facts.terminating, facts.ended) == (True, True, False)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended(phase: str) -> None:
    facts = pod_facts(pod(phase=phase), "vllm")
    assert facts is not None
    assert facts.ended


def test_a_pod_whose_containers_fail_init_containers_first() -> None:
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    facts = pod_facts(
        pod(
            containerStatuses=[{"name": "vllm", "state": crash, "lastState": last, "restartCount": 3}],
            initContainerStatuses=[{"name": "download", "state": {"terminated": {"exitCode": 0}}}],
        ),
        "vllm",
    )
    assert facts is not None
    assert facts.containers == (
        ContainerFacts("download"),
        ContainerFacts("vllm", "CrashLoopBackOff", "back-off 10s", 3, 137, "OOMKilled"),
    )


def condition(message: str, kind: str = "ReplicaFailure", status: str = "True") -> Json:
    return {"conditions": [{"type": kind, "status": status, "reason": "FailedCreate", "message": message}]}


FORBIDDEN = 'pods "vllm-abc-1" is forbidden: exceeded quota: gpus'


@pytest.mark.parametrize(
    ("spec", "status", "facts"),
    [
        pytest.param({"replicas": 0}, {}, WorkloadFacts(0), id="asleep"),
        pytest.param({}, {}, WorkloadFacts(1), id="replicas that are not said are one"),
        pytest.param({"replicas": 1}, condition(FORBIDDEN), WorkloadFacts(1, FORBIDDEN), id="no quota"),
        pytest.param(
            {"replicas": 1},
            condition("Internal error: failed calling webhook: timeout"),
            WorkloadFacts(1),
            id="a webhook",
        ),
        pytest.param({"replicas": 1}, condition(FORBIDDEN, status="False"), WorkloadFacts(1), id="what is over"),
        pytest.param({"replicas": 1}, condition(FORBIDDEN, kind="Progressing"), WorkloadFacts(1), id="something else"),
    ],
)
def test_a_deployment(spec: Json, status: Json, facts: WorkloadFacts) -> None:
    found = workload({"spec": {**spec, "selector": {"matchLabels": {"app": "vllm"}}}, "status": status})
    assert found.facts == facts
    assert found.selector == "app=vllm"
