"""The rights in deploy/controller, as kustomize renders them: a real API server grants what they say, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, path_of
from tests.deploy.kustomized import DEPLOY, Built, build_with, needs_kubectl
from vllm_chill.adapters.kubernetes.client import Json

pytestmark = needs_kubectl

READ = ("get", "list", "watch")
VERBS = (*READ, "create", "update", "patch", "delete")
RESOURCES = {
    "llmd.ai": ("variantautoscalings", "variantautoscalings/status"),
    "apps": ("deployments", "deployments/scale", "statefulsets", "statefulsets/scale", "replicasets"),
    "": ("pods", "pods/log", "pods/exec", "nodes", "namespaces", "configmaps", "secrets", "services", "events"),
    "coordination.k8s.io": ("leases",),
    "authentication.k8s.io": ("tokenreviews",),
    "authorization.k8s.io": ("subjectaccessreviews",),
    "rbac.authorization.k8s.io": ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
    "autoscaling": ("horizontalpodautoscalers",),
}
Rights = set[tuple[str, str]]

SEES: Rights = {
    *((verb, of) for verb in READ for of in (
        "variantautoscalings", "deployments", "statefulsets", "replicasets", "pods", "configmaps")),
    ("patch", "variantautoscalings/status"),
    *((verb, "events") for verb in ("get", "create", "patch")),
}  # fmt: skip
CLUSTER: Rights = {(verb, of) for verb in READ for of in ("nodes", "namespaces")}
REVIEWS: Rights = {("create", "tokenreviews"), ("create", "subjectaccessreviews")}
LEASES: Rights = {(verb, "leases") for verb in ("get", "create", "update")}
DIRECT: Rights = {("patch", "deployments/scale"), ("patch", "statefulsets/scale")}


@asynccontextmanager
async def installed(cluster: Cluster, components: Sequence[str], folder: Path) -> AsyncIterator[Built]:
    """The accounts and rights of a controller in this namespace, with names of their own in the cluster."""
    built = build_with(
        DEPLOY / "controller", components, folder, namespace=cluster.namespace, nameSuffix=f"-{cluster.namespace}"
    )
    kinds = ("ServiceAccount", "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding")
    items = [item for kind in kinds for item in built.all(kind)]
    made: list[Json] = []
    try:
        for item in items:
            await cluster.api.call("POST", path_of(item), body=item)
            made.append(item)
        yield built
    finally:
        for item in made:
            await cluster.delete(f"{path_of(item)}/{item['metadata']['name']}")


async def may(cluster: Cluster, account: str, **attributes: Any) -> bool:
    """Whether an account of this namespace may do something."""
    spec: dict[str, Any] = {"user": f"system:serviceaccount:{cluster.namespace}:{account}-{cluster.namespace}"}
    kind = "nonResourceAttributes" if "path" in attributes else "resourceAttributes"
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    said = await cluster.api.call("POST", path, body={**review, "spec": {**spec, kind: attributes}})
    return bool(said["status"]["allowed"])


async def rights(cluster: Cluster, account: str, namespace: str) -> Rights:
    """Every right of the grid that an account has in a namespace, "" for all of them."""
    found: Rights = set()
    for group, resources in RESOURCES.items():
        for name in resources:
            resource, _, part = name.partition("/")
            asked = {"namespace": namespace, "group": group, "resource": resource, "subresource": part}
            found |= {(verb, name) for verb in VERBS if await may(cluster, account, verb=verb, **asked)}
    return found


async def until_rights(cluster: Cluster, account: str, namespace: str, expected: Rights) -> None:
    """Wait until they are these: an authorizer learns of a binding a moment later."""
    found: Rights = set()
    for _ in range(20):
        found = await rights(cluster, account, namespace)
        if found == expected:
            return
        await asyncio.sleep(0.1)
    assert found == expected


async def test_it_sees_all_namespaces_and_writes_nothing_but_status_and_events(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with installed(cluster, [], tmp_path):
        account = "vllm-chill-controller"
        await until_rights(cluster, account, "", SEES | CLUSTER | REVIEWS)
        await until_rights(cluster, account, cluster.namespace, SEES | CLUSTER | REVIEWS | LEASES)
        assert not await may(cluster, account, verb="get", path="/metrics")


async def test_with_direct_it_may_scale_and_change_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    async with installed(cluster, ["direct"], tmp_path):
        await until_rights(cluster, "vllm-chill-controller", "", SEES | CLUSTER | REVIEWS | DIRECT)


async def test_in_one_namespace_it_has_no_right_in_another_but_to_ask_who_scrapes(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with installed(cluster, ["direct", "namespaced"], tmp_path):
        account = "vllm-chill-controller"
        await until_rights(cluster, account, cluster.namespace, SEES | DIRECT | LEASES | REVIEWS)
        await until_rights(cluster, account, "default", REVIEWS)
        await until_rights(cluster, account, "", REVIEWS)


async def test_who_scrapes_may_get_the_metrics_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    async with installed(cluster, ["monitor"], tmp_path):
        account = "vllm-chill-scraper"
        await until_rights(cluster, account, cluster.namespace, set())
        assert await may(cluster, account, verb="get", path="/metrics")
        assert not await may(cluster, account, verb="post", path="/metrics")
        assert not await may(cluster, account, verb="get", path="/debug/pprof")
