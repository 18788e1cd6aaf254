"""What is kept of a cluster's objects, and what a target is by them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.saturation.cluster_objects import node, owned, pod, workload
from vllm_chill.core.saturation.gpus import NodeSeen, node_seen
from vllm_chill.core.saturation.ownership import Owner
from vllm_chill.core.saturation.places import PodPlace
from vllm_chill.core.saturation.targets import (
    PodSeen,
    TargetPod,
    pod_seen,
    scaled,
    target_facts,
    workload_seen,
)
from vllm_chill.core.selectors import Selector
from vllm_chill.core.target import Endpoint

Json = dict[str, Any]
READY_AT = 1767225610.0


def of(item: Json) -> PodSeen:
    seen = pod_seen(item)
    assert seen is not None
    return seen


def nowhere(name: str) -> NodeSeen | None:
    return None


def test_of_a_pod_what_scaling_needs_is_kept() -> None:
    item = pod("vllm-5d-1", owned("ReplicaSet", "vllm-5d", "u"), node="n", gpus=2, labels={"b": "2", "a": "1"})
    assert pod_seen(item) == PodSeen(
        namespace="ai-apps",
        name="vllm-5d-1",
        uid="uid-of-vllm-5d-1",
        owner=Owner("apps/v1", "ReplicaSet", "vllm-5d", "u"),
        labels=(("a", "1"), ("b", "2")),
        endpoint=Endpoint("10.0.0.1", 8000),
        ready=True,
        since=READY_AT,
        live=True,
        node="n",
        gpus=(("nvidia.com/gpu", 2),),
    )


def test_a_pod_that_has_ended_is_not_kept_and_one_on_its_way_out_is_not_live() -> None:
    for phase in ("Succeeded", "Failed"):
        assert pod_seen({**pod("a"), "status": {"phase": phase}}) is None
    assert of(pod("a", deletionTimestamp="2026-01-01T00:00:00Z")).live is False


def test_a_pod_that_says_next_to_nothing_is_kept_all_the_same() -> None:
    assert pod_seen({"metadata": {"name": "a"}}) == PodSeen(
        "", "a", "", None, (), None, False, None, True, "", ()
    )  # fmt: skip


def test_pods_of_the_same_labels_have_them_in_common() -> None:
    labels = {"app": "vllm", "pod-template-hash": "5d"}
    assert of(pod("a", labels=dict(labels))).labels is of(pod("b", labels=dict(labels))).labels


def test_a_target_is_what_it_says_and_what_its_pods_are() -> None:
    item = workload(replicas=3, gpus=4, uid="u", resourceVersion="7", generation=2, labels={"model": "m"})
    item["status"] = {"replicas": 2, "readyReplicas": 1}
    pods = [
        of(pod("b", ready=False, address="10.0.0.2")),
        of(pod("a")),
        of(pod("c", deletionTimestamp="2026-01-01T00:00:00Z")),
    ]
    facts = target_facts(workload_seen(item, "apps/v1", "Deployment"), pods, nowhere)
    assert (facts.namespace, facts.kind, facts.name, facts.uid, facts.version) == (
        "ai-apps",
        "Deployment",
        "vllm",
        "u",
        "7",
    )
    assert (facts.replicas, facts.existing, facts.ready, facts.generation, facts.gpus) == (3, 2, 1, 2, 4)
    assert (facts.deleted, facts.accelerator, facts.labels) == (False, "", {"model": "m"})
    a, b = PodPlace("a", Endpoint("10.0.0.1", 8000)), PodPlace("b", Endpoint("10.0.0.2", 8000))
    assert facts.pods == (TargetPod(a, True, READY_AT, placed=False), TargetPod(b, False, READY_AT, placed=False))
    assert facts.unplaced == 3
    assert facts.ready_places == (a,)


@pytest.mark.parametrize(
    ("item", "pods", "gpus"),
    [
        pytest.param(workload(gpus=8), [pod("a", gpus=2)], 8, id="as its template says"),
        pytest.param(workload(gpus=0), [pod("a", gpus=2)], 2, id="as its pods do"),
        pytest.param(workload(gpus=0), [pod("a", gpus=0)], 1, id="one where nobody says"),
        pytest.param({"metadata": {"name": "x"}, "spec": {"template": "t"}}, [], 1, id="one of a kind of its own"),
    ],
)
def test_a_replica_has_gpus(item: Json, pods: list[Json], gpus: int) -> None:
    assert target_facts(workload_seen(item, "v1", "X"), [of(each) for each in pods], nowhere).gpus == gpus


@pytest.mark.parametrize(("spec", "replicas"), [({}, 1), ({"replicas": 0}, 0), ({"replicas": None}, 1)])
def test_a_target_without_a_number_asks_for_one(spec: Json, replicas: int) -> None:
    assert workload_seen({"metadata": {"name": "x"}, "spec": spec}, "apps/v1", "Deployment").replicas == replicas


NODES = {
    each["metadata"]["name"]: node_seen(each, Selector())
    for each in (node("h"), node("h2"), node("a", product="NVIDIA-A100-SXM4-80GB"), node("unnamed", product=""))
}


@pytest.mark.parametrize(
    ("nodes", "chosen", "accelerator"),
    [
        pytest.param(["h", "h2", "a"], None, "H100", id="that of most of its pods"),
        pytest.param(["a", "h"], None, "A100", id="the first by name, of as many"),
        pytest.param(["unnamed", "h"], None, "H100", id="one that is named before one that is not"),
        pytest.param(["unnamed", ""], "NVIDIA-L4", "L4", id="the one that it asks for, if its nodes name none"),
        pytest.param([], "NVIDIA-L4", "L4", id="the one that it asks for, without pods"),
        pytest.param(["gone"], None, "", id="none that is known"),
    ],
)
def test_a_target_has_the_accelerator(nodes: list[str], chosen: str | None, accelerator: str) -> None:
    item = workload()
    if chosen is not None:
        item["spec"]["template"]["spec"]["nodeSelector"] = {"zone": "b", "nvidia.com/gpu.product": chosen}
    pods = [of(pod(f"p{i}", node=name)) for i, name in enumerate(nodes)]
    facts = target_facts(workload_seen(item, "apps/v1", "Deployment"), pods, NODES.get)
    assert facts.accelerator == accelerator


def test_of_another_kind_its_scale_tells_how_many_there_are() -> None:
    seen = workload_seen(workload(replicas=9, uid="u"), "example.com/v1", "Engine")
    scale = {"spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=vllm"}}
    facts = target_facts(scaled(seen, scale), [of(pod("a")), of(pod("b", ready=False))], nowhere)
    assert (facts.replicas, facts.existing, facts.ready, facts.uid) == (3, 2, 1, "u")
    assert scaled(seen, scale).selector == "app=vllm"
    nothing = scaled(seen, {"spec": {}, "status": {}})
    assert (nothing.replicas, nothing.existing, nothing.selector) == (0, 0, None)


def test_what_each_write_changes_is_no_change() -> None:
    one, two = (workload_seen(workload(resourceVersion=version), "apps/v1", "Deployment") for version in "12")
    assert one != two
    assert one.at_any_version == two.at_any_version


labels = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
metas = st.fixed_dictionaries(
    {"name": st.text(min_size=1)}, optional={"labels": st.none() | labels, "ownerReferences": st.none()}
)
kept: st.SearchStrategy[Json] = st.fixed_dictionaries(
    {}, optional={"containers": st.just([{}]) | st.none(), "replicas": st.none(), "template": st.just({}) | st.none()}
)
parts: st.SearchStrategy[Json | None] = st.none() | kept


@given(metas, parts, parts)
def test_what_an_object_leaves_out_does_no_harm(meta: Json, spec: Json | None, status: Json | None) -> None:
    item = {"metadata": meta, "spec": spec, "status": status}
    assert of(item).name == meta["name"]
    assert workload_seen(item, "v1", "X").replicas == 1
    node_seen(item, Selector())
