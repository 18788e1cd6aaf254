"""What every object store must do, as tests: a subclass gives the world in `world`, and pytest runs the suite on it.

Deployments without replicas serve as the objects: they have all that an object can have.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest

from vllm_chill.core.objects import Collection, Json
from vllm_chill.errors import BackendConflict
from vllm_chill.ports import ObjectStore


@dataclass
class SeenObjects:
    """An observer that keeps what it was told last, and can be waited on."""

    objects: Mapping[str, Any] | None = None
    losses: list[str] = field(default_factory=list)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def seen(self, objects: Mapping[str, Any]) -> None:
        self.objects = objects
        self.history.append(objects)
        self._changed.set()

    def lost(self, cause: str) -> None:
        self.losses.append(cause)
        self._changed.set()

    async def until(self, holds: Callable[[Mapping[str, Any]], bool], seconds: float = 20) -> Mapping[str, Any]:
        """Wait until the objects are such that `holds` is true."""
        async with asyncio.timeout(seconds):
            while self.objects is None or not holds(self.objects):
                self._changed.clear()
                await self._changed.wait()
        return self.objects

    async def until_lost(self, times: int, seconds: float = 20) -> None:
        """Wait until they could not be seen so many times."""
        async with asyncio.timeout(seconds):
            while len(self.losses) < times:
                self._changed.clear()
                await self._changed.wait()


class ObjectsWorld(Protocol):
    """One store, two empty namespaces of Deployments in it, and hands to do to one what others do."""

    store: ObjectStore
    deployments: Collection
    others: Collection

    async def change(self, name: str, change: Json) -> None:
        """Merge a change into a Deployment, as somebody else."""

    async def said(self, name: str) -> list[tuple[str, str, str, int]]:
        """The events about a Deployment: type, reason, message, and how often."""


def deployment(name: str = "d", *, args: list[str] | None = None, **meta: object) -> Json:
    container: Json = {"name": "vllm", "image": "vllm/vllm-openai:v0.11.0", "args": args or ["--model", "a"]}
    app = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"ours": "yes"}, **meta},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": app},
            "template": {"metadata": {"labels": app}, "spec": {"containers": [container]}},
        },
    }


def args_of(item: Json | None) -> list[str]:
    assert item is not None
    args: list[str] = item["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


class ObjectsContract:
    """Inherit, and give a fixture `world` that yields an ObjectsWorld."""

    @pytest.fixture
    async def seen(self, world: ObjectsWorld) -> AsyncIterator[SeenObjects]:
        seen = SeenObjects()
        watching = asyncio.create_task(world.store.watch(world.deployments, seen))
        await seen.until(lambda _: True)
        yield seen
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()

    async def test_what_is_applied_is_there_and_seen(self, world: ObjectsWorld, seen: SeenObjects) -> None:
        assert seen.objects == {}
        made = await world.store.apply(world.deployments, deployment())
        objects = await seen.until(lambda objects: "d" in objects)
        assert objects["d"]["metadata"]["uid"] == made["metadata"]["uid"]
        found = await world.store.get(world.deployments, "d")
        assert found is not None
        assert args_of(found) == args_of(made) == ["--model", "a"]
        assert "managedFields" not in found["metadata"]

    async def test_of_metadata_only_what_is_asked_for_is_told_and_nothing_else_tells(self, world: ObjectsWorld) -> None:
        seen = SeenObjects()
        only = replace(world.deployments, metadata_only=True)
        made = await world.store.apply(world.deployments, deployment(annotations={"a": "1"}))
        watching = asyncio.create_task(world.store.watch(only, seen))
        told = await seen.until(lambda objects: "d" in objects)
        item = told["d"]
        assert set(item) == {"apiVersion", "kind", "metadata"}
        assert (item["apiVersion"], item["kind"]) == ("apps/v1", "Deployment")
        assert (item["metadata"]["uid"], item["metadata"]["labels"]) == (made["metadata"]["uid"], {"ours": "yes"})
        assert item["metadata"]["annotations"]["a"] == "1"
        await world.change("d", {"metadata": {"finalizers": ["example.com/theirs"]}})
        await world.change("d", {"metadata": {"finalizers": []}})
        await world.change("d", {"metadata": {"annotations": {"a": "2"}}})
        await seen.until(lambda objects: objects["d"]["metadata"]["annotations"]["a"] == "2")
        assert all(before != after for before, after in itertools.pairwise(seen.history))
        watching.cancel()
        await asyncio.wait([watching])

    async def test_of_all_namespaces_each_is_told_by_its_namespace_and_name(self, world: ObjectsWorld) -> None:
        seen, here, there = SeenObjects(), world.deployments, world.others
        await world.store.apply(here, deployment(args=["--model", "here"]))
        watching = asyncio.create_task(world.store.watch(replace(here, namespace=None), seen))
        await seen.until(lambda objects: f"{here.namespace}/d" in objects)
        made = await world.store.apply(there, deployment(args=["--model", "there"]))
        objects = await seen.until(lambda objects: f"{there.namespace}/d" in objects)
        assert args_of(objects[f"{here.namespace}/d"]) == ["--model", "here"]
        assert args_of(objects[f"{there.namespace}/d"]) == ["--model", "there"]
        await world.store.delete(there, "d", made["metadata"]["uid"])
        objects = await seen.until(lambda objects: f"{there.namespace}/d" not in objects)
        assert f"{here.namespace}/d" in objects
        watching.cancel()
        await asyncio.wait([watching])

    async def test_only_what_is_kept_of_an_object_is_told_and_a_change_of_the_rest_is_not(
        self, world: ObjectsWorld
    ) -> None:
        def keep(item: Json) -> int | None:
            return None if item["metadata"]["name"] == "left-out" else int(item["spec"]["replicas"])

        seen = SeenObjects()
        await world.store.apply(world.deployments, deployment())
        await world.store.apply(world.deployments, deployment("left-out"))
        watching = asyncio.create_task(world.store.watch(replace(world.deployments, keep=keep), seen))
        await seen.until(lambda objects: "d" in objects)
        await world.change("left-out", {"metadata": {"labels": {"a": "b"}}})
        await world.change("d", {"metadata": {"labels": {"a": "b"}}})
        await world.change("d", {"spec": {"replicas": 1}})
        await seen.until(lambda objects: objects["d"] == 1)
        assert seen.history == [{"d": 0}, {"d": 1}]
        watching.cancel()
        await asyncio.wait([watching])

    async def test_of_metadata_only_what_is_kept_may_tell_its_owners(self, world: ObjectsWorld) -> None:
        owner = {"apiVersion": "example.com/v1", "kind": "Thing", "name": "t", "uid": "uid-t", "controller": True}
        only = replace(
            world.deployments, metadata_only=True, keep=lambda item: item["metadata"]["ownerReferences"][0]["uid"]
        )
        seen = SeenObjects()
        await world.store.apply(world.deployments, deployment(ownerReferences=[owner]))
        watching = asyncio.create_task(world.store.watch(only, seen))
        assert await seen.until(lambda objects: "d" in objects) == {"d": "uid-t"}
        watching.cancel()
        await asyncio.wait([watching])

    async def test_the_scale_of_an_object_has_its_number_and_its_pods_selector(self, world: ObjectsWorld) -> None:
        assert await world.store.get_scale(world.deployments, "d") is None
        await world.store.apply(world.deployments, deployment())
        await world.change("d", {"spec": {"replicas": 3, "paused": True}})
        scale = await world.store.get_scale(world.deployments, "d")
        assert scale is not None
        assert (scale["spec"]["replicas"], scale["status"]["selector"]) == (3, "app=d")

    async def test_what_is_not_there_is_none(self, world: ObjectsWorld) -> None:
        assert await world.store.get(world.deployments, "d") is None
        assert await world.store.patch(world.deployments, "d", {"metadata": {"labels": {"a": "b"}}}) is None
        assert await world.store.patch_status(world.deployments, "d", {"replicas": 0}) is None
        await world.store.delete(world.deployments, "d", "some-uid")

    async def test_applying_the_same_again_changes_nothing(self, world: ObjectsWorld) -> None:
        made = await world.store.apply(world.deployments, deployment())
        again = await world.store.apply(world.deployments, deployment())
        assert again["metadata"]["generation"] == made["metadata"]["generation"]

    async def test_what_others_changed_is_put_back_and_what_they_added_stays(self, world: ObjectsWorld) -> None:
        await world.store.apply(world.deployments, deployment())
        template = {"spec": {"containers": [{"name": "vllm", "image": "other:1", "args": ["--other"]}]}}
        metadata = {"labels": {"ours": None, "theirs": "yes"}}
        await world.change("d", {"metadata": metadata, "spec": {"template": template}})
        after = await world.store.apply(world.deployments, deployment())
        assert args_of(after) == ["--model", "a"]
        assert after["metadata"]["labels"] == {"ours": "yes", "theirs": "yes"}

    async def test_what_is_no_longer_applied_is_gone(self, world: ObjectsWorld) -> None:
        more = deployment(annotations={"a": "1"})
        more["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "1"}]
        await world.store.apply(world.deployments, more)
        after = await world.store.apply(world.deployments, deployment())
        assert "a" not in after["metadata"].get("annotations", {})
        assert "env" not in after["spec"]["template"]["spec"]["containers"][0]

    async def test_a_dry_run_tells_what_would_be_and_writes_nothing(self, world: ObjectsWorld) -> None:
        made = await world.store.apply(world.deployments, deployment())
        would = await world.store.apply(world.deployments, deployment(args=["--model", "b"]), dry_run=True)
        assert args_of(would) == ["--model", "b"]
        assert args_of(await world.store.get(world.deployments, "d")) == ["--model", "a"]
        same = await world.store.apply(world.deployments, deployment(), dry_run=True)
        assert same["spec"] == made["spec"]

    async def test_a_dry_run_of_an_object_that_is_not_there_makes_none(self, world: ObjectsWorld) -> None:
        await world.store.apply(world.deployments, deployment(), dry_run=True)
        assert await world.store.get(world.deployments, "d") is None

    async def test_what_has_changed_since_it_was_read_is_not_overwritten(self, world: ObjectsWorld) -> None:
        made = await world.store.apply(world.deployments, deployment())
        await world.change("d", {"spec": {"replicas": 1}})
        late = deployment(resourceVersion=made["metadata"]["resourceVersion"])
        with pytest.raises(BackendConflict):
            await world.store.apply(world.deployments, late)
        change = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"ours": "no"}}}
        with pytest.raises(BackendConflict):
            await world.store.patch(world.deployments, "d", change)
        found = await world.store.get(world.deployments, "d")
        assert found is not None
        assert found["spec"]["replicas"] == 1
        assert found["metadata"]["labels"] == {"ours": "yes"}

    async def test_with_the_version_that_it_has_it_is_written(self, world: ObjectsWorld) -> None:
        await world.store.apply(world.deployments, deployment())
        await world.change("d", {"spec": {"replicas": 1}})
        after = None
        while after is None:
            found = await world.store.get(world.deployments, "d")
            assert found is not None
            item = deployment(args=["--model", "b"], resourceVersion=found["metadata"]["resourceVersion"])
            item["spec"]["replicas"] = 1
            with contextlib.suppress(BackendConflict):  # its controller may have written its status meanwhile
                after = await world.store.apply(world.deployments, item)
        assert (args_of(after), after["spec"]["replicas"]) == (["--model", "b"], 1)

    async def test_only_the_object_that_is_meant_is_deleted(self, world: ObjectsWorld, seen: SeenObjects) -> None:
        made = await world.store.apply(world.deployments, deployment())
        await seen.until(lambda objects: "d" in objects)
        await world.store.delete(world.deployments, "d", "another-uid")
        assert await world.store.get(world.deployments, "d") is not None
        await world.store.delete(world.deployments, "d", made["metadata"]["uid"])
        await seen.until(lambda objects: not objects)

    async def test_with_a_finalizer_it_stays_until_that_is_taken_away(
        self, world: ObjectsWorld, seen: SeenObjects
    ) -> None:
        made = await world.store.apply(world.deployments, deployment())
        await world.store.patch(world.deployments, "d", {"metadata": {"finalizers": ["example.com/ours"]}})
        await world.store.delete(world.deployments, "d", made["metadata"]["uid"])
        await seen.until(lambda objects: bool(objects["d"]["metadata"].get("deletionTimestamp")))
        await world.store.patch(world.deployments, "d", {"metadata": {"finalizers": []}})
        await seen.until(lambda objects: not objects)

    async def test_the_status_is_written_apart_from_the_rest(self, world: ObjectsWorld) -> None:
        made = await world.store.apply(world.deployments, deployment())
        condition = {"type": "Ours", "status": "True"}
        written = await world.store.patch_status(world.deployments, "d", {"conditions": [condition]})
        assert written is not None
        assert [(c["type"], c["status"]) for c in written["status"]["conditions"]] == [("Ours", "True")]
        assert written["metadata"]["generation"] == made["metadata"]["generation"]

    async def test_the_same_said_again_raises_a_count(self, world: ObjectsWorld) -> None:
        made = await world.store.apply(world.deployments, deployment())
        for _ in range(3):
            await world.store.record(made, "Drift", "somebody changed it")
        await world.store.record(made, "Drift", "somebody changed something else", warning=True)
        assert sorted(await world.said("d")) == [
            ("Normal", "Drift", "somebody changed it", 3),
            ("Warning", "Drift", "somebody changed something else", 1),
        ]
