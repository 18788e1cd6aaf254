"""A namespace of a real cluster, and hands to do things in it that users and operators do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tests.adapters.contract import Seen
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Query
from vllm_chill.adapters.kubernetes.watch import ListWatch, Snapshot

IMAGE = os.environ.get("CLUSTER_IMAGE", "vllm/vllm-openai:v0.11.0")
"""What stands for vLLM: the control plane's node runs a stub in its place; any image with its /health will do."""

_PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}
_CLUSTER_SCOPED = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}


def path_of(item: Json, namespace: str | None = None) -> str:
    """The path of the collection that an object belongs in."""
    group, kind = item["apiVersion"], item["kind"]
    root = f"/apis/{group}" if "/" in group else f"/api/{group}"
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    if kind in _CLUSTER_SCOPED:
        return f"{root}/{plural}"
    return f"{root}/namespaces/{namespace or item['metadata']['namespace']}/{plural}"


def waits(reason: str, restarts: int = 0) -> Callable[[list[Json]], bool]:
    """Whether a container of one of these pods waits for this reason."""
    return lambda pods: any(
        status["state"].get("waiting", {}).get("reason") == reason and status["restartCount"] >= restarts
        for pod in pods
        for status in pod["status"].get("containerStatuses", [])
    )


class Troubled(Seen):
    """An observer that can be waited on for the first loss."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def lost(self, cause: str) -> None:
        super().lost(cause)
        if not self.trouble.done():
            self.trouble.set_result(cause)


class Cluster:
    """One fresh namespace. `kubeconfig` is an administrator's."""

    def __init__(self, api: ApiClient, kubeconfig: Path, namespace: str) -> None:
        self.api = api
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    async def create(self, item: Json) -> Json:
        """Create an object in this namespace, whatever namespace it names."""
        item = {**item, "metadata": {**item["metadata"], "namespace": self.namespace}}
        return await self.api.call("POST", path_of(item), body=item)

    async def create_deployment(
        self, name: str = "vllm", *, replicas: int = 0, load_seconds: float = 0.5, env: dict[str, str] | None = None
    ) -> Json:
        """A Deployment of the stub of vLLM, which takes `load_seconds` to load."""
        return await self.create(deployment(name, replicas, {"STUB_LOAD_SECONDS": f"{load_seconds}", **(env or {})}))

    async def create_service(self, name: str = "vllm-svc", *, app: str = "vllm") -> str:
        """A Service for a Deployment's pods, port 80 to 8000; its cluster IP."""
        ports = [{"port": 80, "targetPort": "http"}]
        spec = {"selector": {"app": app}, "ports": ports}
        service = await self.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
        return str(service["spec"]["clusterIP"])

    async def deployment(self, name: str = "vllm") -> Json:
        return await self.api.call("GET", f"{self._deployments}/{name}")

    async def generation(self, name: str = "vllm") -> int:
        """How often the Deployment's spec has been written, plus one."""
        return int((await self.deployment(name))["metadata"]["generation"])

    async def replicas(self, name: str = "vllm") -> int:
        return int((await self.deployment(name))["spec"]["replicas"])

    async def scale(self, replicas: int, name: str = "vllm") -> None:
        """Scale it as someone else would."""
        await self.patch(f"{self._deployments}/{name}/scale", {"spec": {"replicas": replicas}})

    async def set_image(self, image: str, name: str = "vllm") -> None:
        await self._set_container({"image": image}, name)

    async def set_gpus(self, gpus: int, name: str = "vllm") -> None:
        """Have each pod ask for so many GPUs."""
        await self._set_container({"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}, name)

    async def set_variable(self, variable: str, value: str, name: str = "vllm") -> None:
        """Set a variable of the engine."""
        await self._set_container({"env": [{"name": variable, "value": value}]}, name)

    async def make_of(self, pod: Json, state: Json) -> None:
        """Write another state of a pod's only container, as its kubelet would; the node must have left it alone."""
        [status] = pod["status"]["containerStatuses"]
        path = f"{self._pods}/{pod['metadata']['name']}/status"
        await self.patch(path, {"status": {"containerStatuses": [{**status, "state": state}]}})

    async def limit_pods(self, pods: int) -> None:
        """Give the namespace a quota of so many pods, called pods; back when it counts."""
        body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}}
        await self.create({**body, "spec": {"hard": {"pods": str(pods)}}})
        await self.until("/api/v1", "resourcequotas", lambda quotas: all("hard" in q["status"] for q in quotas))

    async def say_of(self, pod: Json, reason: str, message: str) -> None:
        """An event of a pod's container, as its kubelet would write it."""
        about = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": pod["metadata"]["name"],
            "namespace": self.namespace,
            "uid": pod["metadata"]["uid"],
            "fieldPath": "spec.containers{vllm}",
        }
        metadata = {"generateName": pod["metadata"]["name"] + "."}
        said = {"involvedObject": about, "reason": reason, "message": message, "type": "Normal"}
        await self.create({"apiVersion": "v1", "kind": "Event", "metadata": metadata, **said})

    async def delete_deployment(self, name: str = "vllm") -> None:
        await self.api.call("DELETE", f"{self._deployments}/{name}", query={"propagationPolicy": "Background"})

    async def pods(self, name: str = "vllm") -> list[Json]:
        listing = await self.api.call("GET", self._pods, query={"labelSelector": f"app={name}"})
        return list(listing["items"])

    async def delete_pods(self, name: str = "vllm") -> None:
        for pod in await self.pods(name):
            await self.api.call("DELETE", f"{self._pods}/{pod['metadata']['name']}")

    async def until_pods(
        self, holds: Callable[[list[Json]], bool], name: str = "vllm", seconds: float = 30
    ) -> list[Json]:
        """Wait until the Deployment's pods are such that `holds` is true."""
        return await self.until("/api/v1", "pods", holds, {"labelSelector": f"app={name}"}, seconds)

    async def until(
        self,
        root: str,
        plural: str,
        holds: Callable[[list[Json]], bool],
        query: Query | None = None,
        seconds: float = 30,
    ) -> list[Json]:
        """Wait until a collection of this namespace is such that `holds` is true."""
        path = f"{root}/namespaces/{self.namespace}/{plural}"
        watch: ListWatch[Json] = ListWatch(self.api, path, query or {}, lambda item: item)
        async with asyncio.timeout(seconds), aclosing(watch.steps()) as steps:
            async for step in steps:
                if isinstance(step, Snapshot) and holds(list(step.objects.values())):
                    return list(step.objects.values())
        raise AssertionError("a watch does not end by itself")

    async def patch(self, path: str, body: Json, kind: str = "merge") -> Json:
        return await self.api.call("PATCH", path, body=body, patch=kind)

    async def _set_container(self, change: Json, name: str) -> None:
        body = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", **change}]}}}}
        await self.patch(f"{self._deployments}/{name}", body, "strategic-merge")

    async def delete(self, path: str) -> None:
        try:
            await self.api.call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    @property
    def _deployments(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments"

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"


def deployment(name: str, replicas: int, env: dict[str, str]) -> Json:
    """A Deployment like the one in deploy/example, made to be quick."""
    labels = {"app": name}
    container: dict[str, Any] = {
        "name": "vllm",
        "image": IMAGE,
        "args": ["--model", "stub"],
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 2, "enableServiceLinks": False, "containers": [container]},
            },
        },
    }
