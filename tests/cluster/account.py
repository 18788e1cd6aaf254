"""The proxy's ServiceAccount and Role of deploy/, made in a test's namespace, and what a pod of it has mounted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.forwarder import address_of, authority_of
from vllm_chill.adapters.kubernetes.client import Json

_DEPLOY = Path(__file__).parents[2] / "deploy"
ROLE, _BINDING = yaml.safe_load_all((_DEPLOY / "rbac.yaml").read_text())
_ACCOUNT = yaml.safe_load((_DEPLOY / "serviceaccount.yaml").read_text())
NAME = _ACCOUNT["metadata"]["name"]


async def create_account(cluster: Cluster) -> None:
    """The ServiceAccount, without any right."""
    await cluster.create(_ACCOUNT)


async def install(cluster: Cluster, role: Json) -> None:
    """The ServiceAccount, a Role and its binding, in this namespace; back when the API server honours them."""
    subjects = [{**subject, "namespace": cluster.namespace} for subject in _BINDING["subjects"]]
    for item in (_ACCOUNT, role, {**_BINDING, "subjects": subjects}):
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


async def mount(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Write what a pod of the ServiceAccount finds mounted into `folder`; the environment that it has besides."""
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{NAME}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = await cluster.api.call("POST", path, body=asked)
    (folder / "token").write_text(token["status"]["token"])
    (folder / "ca.crt").write_bytes(authority_of(cluster.kubeconfig))
    host, port = address_of(cluster.kubeconfig)
    return {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
