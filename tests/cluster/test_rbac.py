"""The Role in deploy/ suffices, and is the least: with it the backend wakes and sleeps, and without any of it not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.adapters.contract import is_gone, is_ready
from tests.cluster.cluster import Cluster, Troubled
from tests.cluster.forwarder import address_of, authority_of

from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import BackendRefused

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLE, BINDING = yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())
ACCOUNT = yaml.safe_load((DEPLOY / "serviceaccount.yaml").read_text())
NAME = ACCOUNT["metadata"]["name"]

RIGHTS = [
    pytest.param(i, verb, resource, id=f"{verb} {resource}")
    for i, rule in enumerate(ROLE["rules"])
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


async def wake_and_sleep(api: ApiClient, ref: TargetRef) -> str | None:
    """Scale it up and down by the backend; what came in the way, or None."""
    backend, seen = KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=Pace(watch_seconds=2)), Troubled()

    async def cycle() -> str | None:
        await seen.until(lambda _: True)
        try:
            await backend.scale(ref, 1)
        except BackendRefused as error:
            return error.message
        await seen.until(is_ready)
        # Long enough for the watches to end and be begun anew.
        await asyncio.sleep(3)
        await backend.scale(ref, 0)
        await seen.until(is_gone)
        return None

    watching, cycling = asyncio.create_task(backend.watch(ref, seen)), asyncio.create_task(cycle())
    try:
        async with asyncio.timeout(60):
            either: list[asyncio.Future[Any]] = [cycling, seen.trouble]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return seen.trouble.result() if seen.trouble.done() else cycling.result()
    finally:
        for task in (watching, cycling):
            task.cancel()
        await asyncio.gather(watching, cycling, return_exceptions=True)


@asynccontextmanager
async def in_a_pod(cluster: Cluster, folder: Path) -> AsyncIterator[ApiClient]:
    """A client with the credentials that a pod of the ServiceAccount has, found where a pod has them."""
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{NAME}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = await cluster.api.call("POST", path, body=asked)
    (folder / "token").write_text(token["status"]["token"])
    (folder / "ca.crt").write_bytes(authority_of(cluster.kubeconfig))
    host, port = address_of(cluster.kubeconfig)
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
    async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
        yield api


async def install(cluster: Cluster, role: Json) -> None:
    """The ServiceAccount, a Role and its binding, in this namespace; back when the API server honours them."""
    subjects = [{**subject, "namespace": cluster.namespace} for subject in BINDING["subjects"]]
    for item in (ACCOUNT, role, {**BINDING, "subjects": subjects}):
        await cluster.create(item)
    rule = role["rules"][0]
    attributes = {
        "namespace": cluster.namespace,
        "verb": rule["verbs"][0],
        "group": rule["apiGroups"][0],
        "resource": rule["resources"][0].split("/")[0],
        "subresource": rule["resources"][0].partition("/")[2],
        "name": rule.get("resourceNames", [""])[0],
    }
    spec = {"user": f"system:serviceaccount:{cluster.namespace}:{NAME}", "resourceAttributes": attributes}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": spec}
    async with asyncio.timeout(20):
        while True:
            path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
            if (await cluster.api.call("POST", path, body=review))["status"]["allowed"]:
                return
            await asyncio.sleep(0.05)


async def test_the_role_suffices(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment()
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path) as api:
        assert await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm")) is None


@pytest.mark.parametrize(("index", "verb", "resource"), RIGHTS)
async def test_without_one_right_it_does_not_work_and_says_which(
    index: int, verb: str, resource: str, cluster: Cluster, tmp_path: Path
) -> None:
    role = copy.deepcopy(ROLE)
    role["rules"][index]["verbs"].remove(verb)
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    await cluster.create_deployment()
    await install(cluster, role)
    async with in_a_pod(cluster, tmp_path) as api:
        trouble = await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm"))
    assert trouble is not None
    assert f'cannot {verb} resource "{resource}"' in trouble
    assert "deploy/rbac.yaml" in trouble


async def test_the_role_lets_it_touch_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment("other")
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path) as api:
        backend = KubernetesBackend(api, Endpoint("vllm-svc", 80))
        with pytest.raises(BackendRefused, match=r'grant the verb "patch" on "deployments/scale"'):
            await backend.scale(TargetRef(cluster.namespace, "other"), 1)
    assert await cluster.replicas("other") == 0
