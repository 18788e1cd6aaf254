"""Which pods are whose, whatever comes in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.saturation.cluster_objects import NAMESPACE, owned, pod, workload
from vllm_chill.core.saturation.index import Key, SetSeen, TargetIndex, set_seen
from vllm_chill.core.saturation.targets import PodSeen, WorkloadSeen, pod_seen, workload_seen

DEPLOYMENT = Key(NAMESPACE, "Deployment", "vllm")
STATEFUL = Key(NAMESPACE, "StatefulSet", "vllm")
RUNTIME = Key(NAMESPACE, "VLLMRuntime", "vllm")


def target(key: Key, uid: str, owner: Key | None = None, selector: str | None = None) -> WorkloadSeen:
    owners = [] if owner is None else owned(owner.kind, owner.name, f"uid-{owner.kind}")
    item = workload(key.name, namespace=key.namespace, uid=uid, ownerReferences=owners)
    return replace(workload_seen(item, "v1", key.kind), selector=selector)


def of_set(name: str = "vllm-5d", owner_uid: str = "uid-Deployment") -> SetSeen:
    owners = owned("Deployment", "vllm", owner_uid)
    return set_seen(
        {"metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}", "ownerReferences": owners}}
    )


def of_pod(name: str, kind: str = "ReplicaSet", owner: str = "vllm-5d", uid: str = "", **more: object) -> PodSeen:
    seen = pod_seen(pod(name, owned(kind, owner, uid or f"uid-{owner}"), **more))  # type: ignore[arg-type]
    assert seen is not None
    return seen


def names(index: TargetIndex, key: Key) -> set[str]:
    return {each.name for each in index.pods_of(key)}


def test_a_deployments_pods_are_those_of_its_replica_sets() -> None:
    index = TargetIndex()
    assert list(index.take_pod(None, of_pod("a"))) == []
    assert list(index.take_set(None, of_set())) == []
    assert list(index.take_target(None, target(DEPLOYMENT, "uid-Deployment"))) == [DEPLOYMENT]
    assert list(index.take_set(None, of_set("vllm-6e"))) == [DEPLOYMENT]
    assert list(index.take_pod(None, of_pod("b", owner="vllm-6e"))) == [DEPLOYMENT]
    assert list(index.take_pod(None, of_pod("c", owner="another"))) == []
    assert names(index, DEPLOYMENT) == {"a", "b"}


def test_a_stateful_sets_pods_are_its_own() -> None:
    index = TargetIndex()
    list(index.take_target(None, target(STATEFUL, "uid-vllm")))
    assert list(index.take_pod(None, of_pod("vllm-0", "StatefulSet", "vllm"))) == [STATEFUL]
    assert names(index, STATEFUL) == {"vllm-0"}


def test_what_is_above_a_deployment_has_its_pods_too() -> None:
    index = TargetIndex()
    list(index.take_target(None, target(RUNTIME, "uid-VLLMRuntime")))
    list(index.take_target(None, target(DEPLOYMENT, "uid-Deployment", RUNTIME)))
    list(index.take_set(None, of_set()))
    assert list(index.take_pod(None, of_pod("a"))) == [DEPLOYMENT, RUNTIME]
    assert names(index, RUNTIME) == names(index, DEPLOYMENT) == {"a"}


def test_a_target_whose_scale_tells_a_selector_has_what_that_selects_in_its_namespace() -> None:
    index = TargetIndex()
    list(index.take_target(None, target(RUNTIME, "uid-VLLMRuntime", selector="app=x,!worker")))
    chosen = of_pod("leader", "StatefulSet", "any", labels={"app": "x"})
    assert list(index.take_pod(None, chosen)) == [RUNTIME]
    list(index.take_pod(None, of_pod("worker", "StatefulSet", "any", labels={"app": "x", "worker": "1"})))
    list(index.take_pod(None, of_pod("elsewhere", labels={"app": "x"}, namespace="other")))
    assert names(index, RUNTIME) == {"leader"}
    assert list(index.take_target(target(RUNTIME, "u", selector="app=x"), None)) == [RUNTIME]
    assert list(index.targets_of(chosen)) == []


def test_where_the_selector_is_none_owners_count() -> None:
    index = TargetIndex()
    list(index.take_target(None, target(RUNTIME, "uid-VLLMRuntime", selector="what is this?")))
    list(index.take_pod(None, of_pod("a", "VLLMRuntime", "vllm", "uid-VLLMRuntime")))
    assert names(index, RUNTIME) == {"a"}


def test_a_deployment_that_was_made_anew_has_none_of_the_pods_of_before() -> None:
    index = TargetIndex()
    before = target(DEPLOYMENT, "uid-Deployment")
    list(index.take_target(None, before))
    list(index.take_set(None, of_set()))
    list(index.take_pod(None, of_pod("a")))
    assert list(index.take_target(before, target(DEPLOYMENT, "uid-2"))) == [DEPLOYMENT]
    assert names(index, DEPLOYMENT) == set()
    assert list(index.targets_of(of_pod("a"))) == []


def test_a_pod_is_found_by_its_name_and_gone_when_it_is() -> None:
    index, seen = TargetIndex(), of_pod("a")
    list(index.take_target(None, target(DEPLOYMENT, "uid-Deployment")))
    list(index.take_set(None, of_set()))
    list(index.take_pod(None, seen))
    assert index.pod(NAMESPACE, "a") is seen
    again = replace(seen, uid="uid-2", ready=False)
    assert set(index.take_pod(seen, again)) == {DEPLOYMENT}
    assert index.pod(NAMESPACE, "a") is again
    assert list(index.take_pod(again, None)) == [DEPLOYMENT]
    assert (index.pod(NAMESPACE, "a"), names(index, DEPLOYMENT)) == (None, set())


def test_a_write_that_changes_nothing_of_a_target_is_no_change() -> None:
    index, seen = TargetIndex(), target(DEPLOYMENT, "u")
    list(index.take_target(None, seen))
    assert list(index.take_target(seen, replace(seen, version="8"))) == []
    now = index.target(DEPLOYMENT)
    assert now is not None
    assert now.version == "8"


def test_targets_with_pods_on_a_node_are_found() -> None:
    index = TargetIndex()
    list(index.take_target(None, target(STATEFUL, "uid-vllm")))
    list(index.take_pod(None, of_pod("vllm-0", "StatefulSet", "vllm", node="n")))
    assert (list(index.on_node("n")), list(index.on_node("m"))) == ([STATEFUL], [])


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
@given(order=st.permutations(range(5)), gone=st.sets(st.integers(0, 4)))
def test_in_whatever_order_they_come_and_go_what_is_there_decides(kind: str, order: list[int], gone: set[int]) -> None:
    key = Key(NAMESPACE, kind, "vllm")
    index = TargetIndex()
    pods = [of_pod(name) if kind == "Deployment" else of_pod(name, kind, "vllm", f"uid-{kind}") for name in "abc"]

    def take(which: int, *, there: bool) -> None:
        if which == 0:
            each = target(key, f"uid-{kind}")
            list(index.take_target(*((None, each) if there else (each, None))))
        elif which == 1:
            one = of_set()
            list(index.take_set(*((None, one) if there else (one, None))))
        else:
            seen = pods[which - 2]
            list(index.take_pod(*((None, seen) if there else (seen, None))))

    for which in order:
        take(which, there=True)
    for which in gone:
        take(which, there=False)
    whole = kind == "StatefulSet" or 1 not in gone
    there = {"abc"[which - 2] for which in range(2, 5) if which not in gone}
    assert (index.target(key) is None) is (0 in gone)
    if 0 not in gone:
        assert names(index, key) == (there if whole else set())
    for which in range(2, 5):
        found = index.pod(NAMESPACE, "abc"[which - 2])
        assert (found is None) is (which in gone)
        if found is not None:
            assert list(index.targets_of(found)) == ([key] if whole and 0 not in gone else [])
