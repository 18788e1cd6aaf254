"""A kind of its own that has a scale, and the small operator that runs pods for it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from tests.cluster.cluster import Cluster, deployment
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json
from vllm_chill.adapters.kubernetes.watch import ListWatch, Snapshot
from vllm_chill.core.target import Resource

ENGINES = Resource("tests.vllm-chill.io", "v1", "testengines", "TestEngine")
_CRD = f"{ENGINES.plural}.{ENGINES.group}"
_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


async def install(api: ApiClient) -> None:
    """Have the cluster know the kind; back when it does."""
    version = {
        "name": ENGINES.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _ANYTHING, "status": _ANYTHING}}},
        "subresources": {"status": {}, "scale": _SCALE},
    }
    names = {"kind": ENGINES.kind, "plural": ENGINES.plural, "singular": ENGINES.kind.lower()}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": _CRD},
        "spec": {"group": ENGINES.group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    query = {"fieldManager": "tests", "force": "true"}
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_CRD}"
    await api.call("PATCH", path, query=query, body=body, patch="apply")
    async with asyncio.timeout(20):
        while True:
            try:
                await api.call("GET", f"/apis/{ENGINES.api_version}/{ENGINES.plural}")
            except ApiError:
                await asyncio.sleep(0.05)
            else:
                return


class Engines:
    """The engines of a namespace, by their operator."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._path = f"/apis/{ENGINES.api_version}/namespaces/{cluster.namespace}/{ENGINES.plural}"
        self._pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._engine: Json | None = None
        self._own: dict[str, Json] = {}

    async def create(self, name: str = "vllm", *, load_seconds: float = 0.5) -> None:
        """One engine of the stub of vLLM without replicas; back when its operator has said which pods are its own."""
        template = deployment(name, 0, {"STUB_LOAD_SECONDS": f"{load_seconds}"})["spec"]["template"]
        spec = {"replicas": 0, "template": template}
        body = {"apiVersion": ENGINES.api_version, "kind": ENGINES.kind, "metadata": {"name": name}, "spec": spec}
        await self._cluster.api.call("POST", self._path, body=body)
        root = f"/apis/{ENGINES.api_version}"
        await self._cluster.until(root, ENGINES.plural, lambda items: all("status" in item for item in items))

    async def set_image(self, image: str, name: str = "vllm") -> None:
        """Have its next pods run another image."""
        engine = await self._cluster.api.call("GET", f"{self._path}/{name}")
        [container] = engine["spec"]["template"]["spec"]["containers"]
        change = {"template": {"spec": {"containers": [{**container, "image": image}]}}}
        await self._cluster.patch(f"{self._path}/{name}", {"spec": change})

    async def run(self) -> None:
        """What the operator does: as many pods as are asked for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(self._path, self._take_engines))
            tasks.create_task(self._follow(self._pods, self._take_pods))
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self._engine is not None:
                    await self._reconcile(self._engine)

    async def _follow(self, path: str, take: Callable[[dict[str, Json]], None]) -> None:
        watch: ListWatch[Json] = ListWatch(self._cluster.api, path, {}, lambda item: item)
        async with aclosing(watch.steps()) as steps:
            async for step in steps:
                if isinstance(step, Snapshot):
                    take(dict(step.objects))
                    self._changed.set()

    def _take_engines(self, engines: dict[str, Json]) -> None:
        self._engine = next(iter(engines.values()), None)

    def _take_pods(self, pods: dict[str, Json]) -> None:
        self._own = pods

    async def _reconcile(self, engine: Json) -> None:
        name = engine["metadata"]["name"]
        live = [pod for pod in self._own.values() if "deletionTimestamp" not in pod["metadata"]]
        status = {"replicas": len(live), "selector": f"app={name}"}
        if engine.get("status") != status:
            await self._cluster.patch(f"{self._path}/{name}/status", {"status": status})
        replicas = engine["spec"]["replicas"]
        for pod in live[replicas:]:
            await self._cluster.delete(f"{self._pods}/{pod['metadata']['name']}")
        for _ in range(replicas - len(live)):
            template = engine["spec"]["template"]
            metadata = {**template["metadata"], "name": f"{name}-{next(self._numbers)}"}
            made = await self._cluster.create({"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata})
            # What was just made may be seen later than the next change.
            self._own = {**self._own, made["metadata"]["name"]: made}


@asynccontextmanager
async def operated(cluster: Cluster) -> AsyncIterator[Engines]:
    """The engines of a namespace while their operator runs."""
    await install(cluster.api)
    engines = Engines(cluster)
    running = asyncio.create_task(engines.run())
    try:
        yield engines
    finally:
        running.cancel()
        await asyncio.wait([running])
