"""What is seen of the targets of variants, on objects in memory and loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.control.policy_stage import Kinds
from tests.core.saturation.cluster_objects import NAMESPACE, Json, node, owned, pod, workload
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.control.scaled_kinds import Named
from vllm_chill.control.variant_view import VariantView
from vllm_chill.core.objects import Collection
from vllm_chill.core.saturation.targets import TargetFacts
from vllm_chill.core.target import Resource

pytestmark = pytest.mark.looptime(start=0)

ENGINES = Resource("example.com", "v1", "engines", "Engine")
ENGINE = Named("example.com/v1", "Engine", NAMESPACE, "e")
NODES = Collection("v1", "Node", "nodes")


def collection(plural: str, namespace: str | None = NAMESPACE) -> Collection:
    kinds = {"replicasets": "ReplicaSet", "deployments": "Deployment", "statefulsets": "StatefulSet"}
    if plural == "engines":
        return Collection("example.com/v1", "Engine", plural, namespace)
    return Collection("apps/v1" if plural in kinds else "v1", kinds.get(plural, "Pod"), plural, namespace)


@dataclass
class Stage:
    """A cluster in memory, and what is seen of it. `changes` are the targets that were told to be others."""

    store: MemoryObjects
    kinds: Kinds
    view: VariantView
    changes: list[tuple[str, str, str]] = field(default_factory=list)

    def create(self, plural: str, item: Json) -> Json:
        return self.store.create(collection(plural, item["metadata"]["namespace"]), item)

    def deploy(
        self, name: str = "vllm", *, pods: int = 0, namespace: str = NAMESPACE, on: str = "", **more: int
    ) -> None:
        """A Deployment with its ReplicaSet and pods, all ready."""
        item = workload(name, replicas=pods, namespace=namespace, **more)
        item["status"] = {"replicas": pods, "readyReplicas": pods}
        uid = self.create("deployments", item)["metadata"]["uid"]
        meta = {"name": f"{name}-5d", "namespace": namespace, "ownerReferences": owned("Deployment", name, uid)}
        uid = self.create("replicasets", {"metadata": meta})["metadata"]["uid"]
        for i in range(pods):
            owner = owned("ReplicaSet", f"{name}-5d", uid)
            self.create("pods", pod(f"{name}-5d-{i}", owner, namespace=namespace, node=on, address=f"10.0.0.{i + 1}"))

    def target(self, name: str = "vllm", kind: str = "Deployment", namespace: str = NAMESPACE) -> TargetFacts:
        facts = self.view.target(namespace, kind, name)
        assert facts is not None
        return facts

    async def settle(self) -> list[tuple[str, str, str]]:
        """Wait until all is told; what was told since the last time."""
        await asyncio.sleep(1)
        told, self.changes[:] = list(self.changes), []
        return told


@asynccontextmanager
async def viewing(
    namespace: str | None = NAMESPACE, *, node_selector: str = "", inventory: bool = True
) -> AsyncIterator[Stage]:
    store, kinds = MemoryObjects(), Kinds()
    view = VariantView(store, kinds, namespace, node_selector=node_selector, inventory=inventory)
    stage = Stage(store, kinds, view)
    view.on_change = lambda *key: stage.changes.append(key)
    task = asyncio.create_task(view.run())
    await asyncio.sleep(0)
    try:
        yield stage
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_target_has_its_pods_and_is_told_when_it_or_they_change() -> None:
    async with viewing() as stage:
        stage.deploy(pods=2, gpus=4)
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        facts = stage.target()
        assert (facts.replicas, facts.ready, facts.gpus, facts.generation, facts.deleted) == (2, 2, 4, 1, False)
        assert [each.place.name for each in facts.pods] == ["vllm-5d-0", "vllm-5d-1"]
        assert [str(each.endpoint) for each in facts.ready_places] == ["10.0.0.1:8000", "10.0.0.2:8000"]
        unready = {"conditions": [{"type": "Ready", "status": "False"}]}
        stage.store.change(collection("pods"), "vllm-5d-0", {"status": unready})
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert [each.name for each in stage.target().ready_places] == ["vllm-5d-1"]
        stage.store.change(collection("deployments"), "vllm", {"spec": {"replicas": 5}})
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert (stage.target().replicas, stage.target().generation) == (5, 2)
        assert stage.view.known
        assert stage.view.troubles == {}


async def test_what_does_not_matter_is_not_told() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1)
        await stage.settle()
        before = stage.target().version
        stage.store.change(collection("deployments"), "vllm", {"metadata": {"annotations": {"a": "b"}}})
        stage.store.change(collection("pods"), "vllm-5d-0", {"metadata": {"annotations": {"a": "b"}}})
        stage.create("pods", pod("somebody-elses"))
        assert await stage.settle() == []
        assert stage.target().version != before


async def test_many_changes_at_once_are_told_once() -> None:
    async with viewing() as stage:
        stage.deploy("a", pods=20)
        stage.deploy("b", pods=20)
        assert await stage.settle() == [(NAMESPACE, "Deployment", "a"), (NAMESPACE, "Deployment", "b")]


async def test_one_that_is_deleted_is_not_there_and_resumes_when_it_returns() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1)
        stage.store.change(collection("deployments"), "vllm", {"metadata": {"finalizers": ["a.com/b"]}})
        await stage.settle()
        stage.store.remove(collection("deployments"), "vllm")
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert stage.target().deleted
        stage.store.change(collection("deployments"), "vllm", {"metadata": {"finalizers": []}})
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert stage.view.target(NAMESPACE, "Deployment", "vllm") is None
        stage.create("deployments", workload())
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert stage.target().pods == ()


async def test_a_stateful_sets_pods_are_its_own() -> None:
    async with viewing() as stage:
        uid = stage.create("statefulsets", workload("big"))["metadata"]["uid"]
        stage.create("pods", pod("big-0", owned("StatefulSet", "big", uid)))
        assert await stage.settle() == [(NAMESPACE, "StatefulSet", "big")]
        assert [each.place.name for each in stage.target("big", "StatefulSet").pods] == ["big-0"]


async def test_the_accelerator_is_that_of_the_pods_nodes() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1, on="n")
        await stage.settle()
        assert stage.target().accelerator == ""
        stage.store.create(NODES, node("n"))
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert stage.target().accelerator == "H100"
        stage.store.change(NODES, "n", {"metadata": {"labels": {"zone": "b"}}})
        stage.store.change(NODES, "n", {"spec": {"unschedulable": True}})
        assert await stage.settle() == []


async def test_in_all_namespaces_targets_of_one_name_are_several() -> None:
    async with viewing(None) as stage:
        stage.deploy(pods=1)
        stage.deploy(pods=2, namespace="other")
        assert set(await stage.settle()) == {(NAMESPACE, "Deployment", "vllm"), ("other", "Deployment", "vllm")}
        assert len(stage.target().pods) == 1
        assert len(stage.target(namespace="other").pods) == 2


async def test_in_one_namespace_others_are_not_seen() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1, namespace="other")
        assert await stage.settle() == []
        assert stage.view.target("other", "Deployment", "vllm") is None


async def test_whose_a_pod_is_can_be_asked_and_who_is_nobodys_is_counted() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1)
        stage.create("pods", pod("lost", owned("ReplicaSet", "gone-5d", "uid-of-gone")))
        await stage.settle()
        assert stage.view.owner_of(NAMESPACE, "vllm-5d-0") == (NAMESPACE, "Deployment", "vllm")
        assert stage.view.misses == 0
        assert stage.view.owner_of(NAMESPACE, "lost") is None
        assert stage.view.owner_of(NAMESPACE, "never-heard-of") is None
        assert stage.view.misses == 2


# GPUs.


@pytest.mark.parametrize("namespace", [None, NAMESPACE])
async def test_gpus_that_any_pod_anywhere_takes_are_not_free(namespace: str | None) -> None:
    async with viewing(namespace) as stage:
        stage.store.create(NODES, node("h"))
        stage.store.create(NODES, node("a", gpus=2, product="NVIDIA-A100-PCIE-80GB"))
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 8, "A100": 2}
        stage.deploy(pods=2, on="h")
        stage.create("pods", pod("training", namespace="other", node="h", gpus=4))
        stage.create("pods", pod("pending", namespace="other", gpus=4))
        stage.create("pods", pod("without", namespace="other", node="a", gpus=0))
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 2, "A100": 2}
        stage.store.change(collection("pods", "other"), "training", {"status": {"phase": "Succeeded"}})
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 6, "A100": 2}


async def test_only_gpus_on_nodes_that_are_chosen_and_take_pods_are_free() -> None:
    async with viewing(node_selector="zone!=b") as stage:
        for name in ("one", "two", "three"):
            stage.store.create(NODES, node(name))
        stage.store.change(NODES, "two", {"metadata": {"labels": {"zone": "b"}}})
        stage.store.change(NODES, "three", {"spec": {"unschedulable": True}})
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 8}


async def test_a_node_selector_that_is_none_is_said() -> None:
    with pytest.raises(ValueError, match="is no label selector"):
        VariantView(MemoryObjects(), Kinds(), node_selector="zone is b")


@pytest.mark.parametrize("what", [NODES, collection("pods", None)])
async def test_while_nodes_or_pods_cannot_be_seen_nobody_knows_what_is_free(what: Collection) -> None:
    async with viewing() as stage:
        stage.store.create(NODES, node("n"))
        stage.deploy(pods=1, on="n")
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 7}
        stage.store.lose(what, "may not be listed")
        assert stage.view.free_gpus() is None
        assert list(stage.view.troubles.values()) == ["may not be listed"]
        assert len(stage.target().pods) == 1
        stage.store.find(what)
        assert stage.view.free_gpus() == {"H100": 7}


async def test_without_an_inventory_no_pods_of_others_need_be_seen() -> None:
    async with viewing(inventory=False) as stage:
        stage.store.lose(collection("pods", None), "may not be listed")
        stage.store.create(NODES, node("n"))
        await stage.settle()
        assert (stage.view.free_gpus(), stage.view.troubles) == (None, {})


# What cannot be seen.


async def test_what_cannot_be_seen_for_a_while_stays_as_it_was() -> None:
    async with viewing() as stage:
        stage.deploy(pods=1)
        await stage.settle()
        stage.store.lose(collection("deployments"), "the API server is away")
        stage.store.remove(collection("deployments"), "vllm")
        assert await stage.settle() == []
        assert stage.target().replicas == 1
        assert stage.view.troubles == {"deployments": "the API server is away"}
        stage.store.find(collection("deployments"))
        assert await stage.settle() == [(NAMESPACE, "Deployment", "vllm")]
        assert stage.view.target(NAMESPACE, "Deployment", "vllm") is None
        assert stage.view.troubles == {}


async def test_it_is_known_once_all_was_seen_or_cannot_be() -> None:
    store = MemoryObjects()
    store.lose(NODES, "may not be listed")
    view = VariantView(store, Kinds(), NAMESPACE)
    before = view.known
    task = asyncio.create_task(view.run())
    await asyncio.sleep(1)
    assert (before, view.known) == (False, True)
    task.cancel()
    await asyncio.wait([task])


# Other kinds.


def engine(replicas: int = 2) -> Json:
    item = workload("e", replicas=replicas, gpus=0)
    item["spec"]["selector"] = {"matchLabels": {"app": "e"}}
    item["status"] = {"replicas": 1}
    return item


async def test_a_target_of_another_kind_is_followed_by_its_scale_once_it_is_wanted() -> None:
    async with viewing() as stage:
        stage.kinds.known["example.com/v1", "Engine"] = ENGINES
        stage.create("engines", engine())
        stage.create("pods", pod("leader", labels={"app": "e"}, gpus=4))
        await stage.settle()
        assert stage.view.target(NAMESPACE, "Engine", "e") is None
        stage.view.want([ENGINE, Named("apps/v1", "Deployment", NAMESPACE, "vllm")])
        assert await stage.settle() == [(NAMESPACE, "Engine", "e")]
        facts = stage.target("e", "Engine")
        assert (facts.replicas, facts.existing, facts.ready, facts.gpus) == (2, 1, 1, 4)
        assert [each.place.name for each in facts.pods] == ["leader"]
        stage.store.change(collection("engines"), "e", {"spec": {"replicas": 3}})
        assert await stage.settle() == [(NAMESPACE, "Engine", "e")]
        assert (stage.target("e", "Engine").replicas, stage.target("e", "Engine").generation) == (3, 2)
        assert stage.view.failure(ENGINE) is None
        stage.view.want([])
        assert await stage.settle() == [(NAMESPACE, "Engine", "e")]
        assert stage.view.target(NAMESPACE, "Engine", "e") is None


async def test_a_kind_that_is_not_there_is_said_and_found_once_it_is_installed() -> None:
    async with viewing() as stage:
        stage.view.want([ENGINE])
        await stage.settle()
        assert stage.view.failure(ENGINE) == "the API server does not know the kind Engine of example.com/v1"
        assert stage.kinds.asked == 1
        stage.kinds.known["example.com/v1", "Engine"] = ENGINES
        stage.create("engines", engine())
        await asyncio.sleep(60)
        assert stage.view.failure(ENGINE) is None
        assert stage.target("e", "Engine").replicas == 2


async def test_one_of_another_kind_that_is_deleted_is_not_there_until_it_returns() -> None:
    async with viewing(None) as stage:
        stage.kinds.known["example.com/v1", "Engine"] = ENGINES
        stage.view.want([ENGINE])
        assert await stage.settle() == []
        stage.create("engines", engine())
        assert await stage.settle() == [(NAMESPACE, "Engine", "e")]
        stage.store.remove(collection("engines"), "e")
        assert await stage.settle() == [(NAMESPACE, "Engine", "e")]
        assert stage.view.target(NAMESPACE, "Engine", "e") is None


async def test_where_its_objects_cannot_be_watched_its_scale_is_looked_at_now_and_then() -> None:
    async with viewing() as stage:
        stage.kinds.known["example.com/v1", "Engine"] = ENGINES
        stage.store.lose(collection("engines"), "may not be watched")
        stage.create("engines", engine())
        stage.view.want([ENGINE])
        await stage.settle()
        assert stage.target("e", "Engine").replicas == 2
        stage.store.change(collection("engines"), "e", {"spec": {"replicas": 3}})
        await asyncio.sleep(16)
        assert stage.target("e", "Engine").replicas == 3


async def test_free_gpus_are_counted_anew_when_a_node_or_a_pod_is_another_and_only_then() -> None:
    async with viewing(None) as stage:
        stage.store.create(NODES, node("big"))
        await stage.settle()
        counted = stage.view.free_gpus()
        assert counted == {"H100": 8}
        stage.deploy(pods=0)
        await stage.settle()
        assert stage.view.free_gpus() is counted
        stage.create("pods", pod("somebody-elses", node="big", gpus=3))
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 5}
        stage.store.create(NODES, node("other", gpus=1))
        await stage.settle()
        assert stage.view.free_gpus() == {"H100": 6}
