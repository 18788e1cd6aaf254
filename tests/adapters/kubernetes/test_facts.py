from __future__ import annotations

import pytest

from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deletion_costs import ANNOTATION, COST
from vllm_chill.adapters.kubernetes.facts import label_selector, pod_facts, workload
from vllm_chill.core.pods import ContainerFacts, PodFacts, Unplaced
from vllm_chill.core.startup import WorkloadFacts
from vllm_chill.core.target import STATEFUL_SETS, Endpoint, Resource, TargetRef

READY = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]


def pod(owner: str = "vllm-abc", kind: str = "ReplicaSet", controller: bool = True, **status: object) -> Json:
    return {
        "metadata": {
            "name": "vllm-abc-1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "vllm", "pod-template-hash": "abc"},
            "ownerReferences": [{"kind": kind, "name": owner, "controller": controller}],
        },
        "spec": {"nodeName": "node-0", "containers": [{"name": "vllm", "ports": [{"containerPort": 8000}]}]},
        "status": status,
    }


def facts_of(item: Json) -> PodFacts | None:
    return pod_facts(item, TargetRef("ai-apps", "vllm"), 80)


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
    assert facts_of(item) is None


SETS = TargetRef("ai-apps", "vllm", STATEFUL_SETS)


def of_a_set(owner: str = "vllm", kind: str = "StatefulSet") -> Json:
    item = pod(owner, kind)
    item["metadata"] |= {"name": "vllm-0", "labels": {"app": "vllm", "controller-revision-hash": "vllm-abc"}}
    return item


def test_a_pod_of_a_stateful_set_is_its_own() -> None:
    facts = pod_facts(of_a_set(), SETS, 80)
    assert facts is not None
    assert (facts.name, facts.revision) == ("vllm-0", "vllm-abc")
    assert pod_facts(of_a_set(owner="vllm-other"), SETS, 80) is None
    assert pod_facts(of_a_set(kind="ReplicaSet"), SETS, 80) is None


@pytest.mark.parametrize("item", [pod("any", "Grid"), of_a_set(), {"metadata": {"name": "stray"}}])
def test_of_another_kind_whatever_has_the_labels_is_a_pod(item: Json) -> None:
    ref = TargetRef("ai-apps", "vllm", Resource("x.io", "v1", "engines", "Engine"))
    assert pod_facts(item, ref, 80) is not None


@pytest.mark.parametrize(("cost", "doomed"), [(COST, True), ("-1", False), (None, False)])
def test_a_pod_is_doomed_by_our_cost_alone(cost: str | None, doomed: bool) -> None:
    item = pod()
    item["metadata"]["annotations"] = {ANNOTATION: cost} if cost else None
    facts = facts_of(item)
    assert facts is not None
    assert facts.doomed is doomed


def test_a_pod_that_has_just_been_made() -> None:
    assert facts_of(pod()) == PodFacts("vllm-abc-1", "abc", "2026-01-01T00:00:00Z", engine="vllm")


def test_a_pod_that_is_ready_and_terminates() -> None:
    item = pod(phase="Running", conditions=READY)
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    facts = facts_of(item)
    assert facts is not None
    assert (facts.ready, facts.terminating, facts.ended) == (True, True, False)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended(phase: str) -> None:
    facts = facts_of(pod(phase=phase))
    assert facts is not None
    assert facts.ended


def test_a_pod_whose_containers_fail_init_containers_first() -> None:
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "00:01"}}
    facts = facts_of(
        pod(
            containerStatuses=[{"name": "vllm", "state": crash, "lastState": last, "restartCount": 3}],
            initContainerStatuses=[{"name": "download", "state": {"terminated": {"exitCode": 0, "finishedAt": "t"}}}],
        )
    )
    assert facts is not None
    assert facts.containers == (
        ContainerFacts("download", exit_code=0, init=True, ended_at="t"),
        ContainerFacts("vllm", "CrashLoopBackOff", "back-off 10s", 3, 137, "OOMKilled", ended_at="00:01"),
    )


def test_a_container_that_runs_after_a_crash() -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "00:01"}}
    running = {"name": "vllm", "state": {"running": {"startedAt": "00:02"}}, "lastState": last, "restartCount": 1}
    facts = facts_of(pod(containerStatuses=[running]))
    assert facts is not None
    [container] = facts.containers
    assert container == ContainerFacts("vllm", None, "", 1, 1, "Error", running=True, ended_at="00:01")


def scheduled(status: str, reason: str = "", message: str = "") -> list[Json]:
    return [{"type": "PodScheduled", "status": status, "reason": reason, "message": message}]


@pytest.mark.parametrize(
    ("conditions", "unplaced"),
    [
        pytest.param([], Unplaced(), id="not looked at"),
        pytest.param(
            scheduled("False", "Unschedulable", "Insufficient nvidia.com/gpu."),
            Unplaced("Insufficient nvidia.com/gpu.", no_room=True),
            id="no room",
        ),
        pytest.param(
            scheduled("False", "SchedulingGated", "Scheduling is blocked"),
            Unplaced("Scheduling is blocked"),
            id="held back on purpose",
        ),
    ],
)
def test_a_pod_without_a_node(conditions: list[Json], unplaced: Unplaced) -> None:
    item = pod(conditions=conditions)
    del item["spec"]["nodeName"]
    facts = facts_of(item)
    assert facts is not None
    assert facts.unplaced == unplaced


@pytest.mark.parametrize(
    ("address", "endpoint"), [("10.0.0.7", Endpoint("10.0.0.7", 8000)), ("fd00::7", Endpoint("fd00::7", 8000))]
)
def test_a_pod_has_an_address_of_its_own_once_it_has_one(address: str, endpoint: Endpoint) -> None:
    facts = facts_of(pod(podIP=address))
    assert facts is not None
    assert facts.endpoint == endpoint


def condition(message: str, kind: str = "ReplicaFailure", status: str = "True") -> Json:
    return {"conditions": [{"type": kind, "status": status, "reason": "FailedCreate", "message": message}]}


SELECTOR = {"matchLabels": {"app": "vllm"}}
FORBIDDEN = 'pods "vllm-abc-1" is forbidden: exceeded quota: gpus'


@pytest.mark.parametrize(
    ("spec", "status", "facts"),
    [
        pytest.param({"replicas": 0}, {}, WorkloadFacts(0), id="asleep"),
        pytest.param({}, {}, WorkloadFacts(1), id="replicas that are not said are one"),
        pytest.param({"replicas": 1}, condition(FORBIDDEN), WorkloadFacts(1, FORBIDDEN), id="no quota"),
        pytest.param(
            {"replicas": 1},
            {**condition(FORBIDDEN), "observedGeneration": 2},
            WorkloadFacts(1),
            id="what was before the spec was written",
        ),
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
    found = workload(
        {
            "metadata": {"generation": 3},
            "spec": {**spec, "selector": SELECTOR},
            "status": {"observedGeneration": 3} | status,
        }
    )
    assert found.facts == facts
    assert found.selector == "app=vllm"


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        pytest.param([], None, id="no container"),
        pytest.param([{}], None, id="nothing is said"),
        pytest.param([{"limits": {"nvidia.com/gpu": "4"}, "requests": {"nvidia.com/gpu": "4"}}], 4, id="as both"),
        pytest.param([{"requests": {"amd.com/gpu": "2", "cpu": "8"}}], 2, id="as a request"),
        pytest.param([{"limits": {"nvidia.com/gpu": "2"}}, {"limits": {"nvidia.com/gpu": 1}}, {}], 3, id="a sidecar"),
        pytest.param([{"limits": {"nvidia.com/gpu": "0"}}], 0, id="none"),
        pytest.param([{"limits": {"cpu": "8", "memory": "64Gi"}}], None, id="no GPU is named"),
    ],
)
def test_the_gpus_that_a_pod_asks_for(resources: list[Json], gpus: int | None) -> None:
    containers = [{"name": f"c{n}", "resources": one} for n, one in enumerate(resources)]
    template = {"spec": {"containers": containers}}
    found = workload({"metadata": {}, "spec": {"selector": SELECTOR, "template": template}})
    assert found.gpus == gpus
