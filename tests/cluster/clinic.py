"""A namespace with deploy/ and deploy/example in it, as a user has it, and hands to spoil it and to ask the doctor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.account import ROLE, install
from tests.cluster.cluster import Cluster, path_of
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.app.doctor import Diagnosis, diagnose
from vllm_chill.core.doctor.finding import Finding, Outcome

_DEPLOY = Path(__file__).parents[2] / "deploy"
_FILES = ("deployment.yaml", "service.yaml", "ingress.yaml", "example/cache.yaml", "example/deployment.yaml")
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_DEFAULT = "storageclass.kubernetes.io/is-default-class"


class Clinic:
    """One namespace. `flags` are those of each look at it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace
        self.flags = {"namespace": cluster.namespace, "kubeconfig": str(cluster.kubeconfig)}

    async def diagnosis(self, flags: Mapping[str, str] | None = None) -> Diagnosis:
        """What the doctor says with these flags besides."""
        return await diagnose({**self.flags, **(flags or {})}, ())

    async def found(self, check: str, flags: Mapping[str, str] | None = None) -> list[Finding]:
        """What is wrong by one check."""
        findings = (await self.diagnosis(flags)).findings
        return [one for one in findings if one.check == check and one.outcome is not Outcome.OK]

    async def run(self, command: str) -> None:
        """Run what was told to paste, in a shell, as it is."""
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        process = await asyncio.create_subprocess_shell(
            command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, f"{command}\n{said.decode()}"

    async def create(self, kind: str, api_version: str, name: str, **fields: Any) -> None:
        """An object of this namespace."""
        await self.cluster.create({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **fields})

    async def delete(self, kind: str, api_version: str, name: str) -> None:
        item = {"apiVersion": api_version, "kind": kind}
        await self.cluster.api.call("DELETE", f"{path_of(item, self.namespace)}/{name}")

    async def patch(self, kind: str, api_version: str, name: str, body: Any, how: str = "merge") -> None:
        item = {"apiVersion": api_version, "kind": kind}
        await self.cluster.patch(f"{path_of(item, self.namespace)}/{name}", body, how)

    async def patch_pods(self, change: Json, deployment: str = "vllm") -> None:
        """Change the spec of a Deployment's pods; null takes something away."""
        body = {"spec": {"template": {"spec": change}}}
        await self.patch("Deployment", "apps/v1", deployment, body, "strategic-merge")

    async def patch_engine(self, **change: Any) -> None:
        """Change the engine's container."""
        await self.patch_pods({"containers": [{"name": "vllm", **change}]})

    async def annotate_ingress(self, annotation: str, value: str) -> None:
        body = {"metadata": {"annotations": {f"nginx.ingress.kubernetes.io/{annotation}": value}}}
        await self.patch("Ingress", "networking.k8s.io/v1", "vllm-chill", body)

    async def patch_ingress(self, path: str, value: Any) -> None:
        """Write a value at a path of the Ingress' first way."""
        change = [{"op": "replace", "path": f"/spec/rules/0/http/paths/0/{path}", "value": value}]
        await self.patch("Ingress", "networking.k8s.io/v1", "vllm-chill", change, "json")


@asynccontextmanager
async def clinic_of(cluster: Cluster) -> AsyncIterator[Clinic]:
    """deploy/ and deploy/example in a namespace, on a cluster that makes volumes. The proxy itself is not run."""
    name = f"on-demand-{cluster.namespace}"
    made = {"metadata": {"name": name, "annotations": {_DEFAULT: "true"}}, "volumeBindingMode": "WaitForFirstConsumer"}
    await cluster.api.call("POST", _CLASSES, body={**made, "provisioner": "example.com/disk"})
    try:
        await install(cluster, ROLE)
        for file in (*_FILES, "example/service.yaml"):
            [item] = yaml.safe_load_all((_DEPLOY / file).read_text())
            if item["metadata"]["name"] == "vllm-chill" and item["kind"] == "Deployment":
                item["spec"]["template"]["spec"]["containers"][0]["image"] = "bad/vllm-chill:0.1.0"
            await cluster.create(item)
        yield Clinic(cluster)
    finally:
        await cluster.delete(f"{_CLASSES}/{name}")
