"""Who may read the metrics, by a real API server, with the tokens of real ServiceAccounts and those that it would give
anybody; and what a controller may ask with no more than its rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.api_server import answers, away
from tests.cluster.cluster import Cluster
from tests.cluster.forwarder import address_of, authority_of
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.reviews import KubernetesReviews
from vllm_chill.adapters.serving_certificate import self_signed
from vllm_chill.core.access import Access, Denied, Granted, Unauthenticated
from vllm_chill.core.listening import ListenAddress
from vllm_chill.errors import BackendRefused, BackendUnavailable
from vllm_chill.web.controller_server import ControllerServer

RBAC = "rbac.authorization.k8s.io"
MAY_READ = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
MAY_ASK = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
]


async def token_of(cluster: Cluster, name: str, seconds: int = 3600) -> str:
    """A token of a ServiceAccount, which is made."""
    await cluster.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}/token"
    spec = {"expirationSeconds": seconds}
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str((await cluster.api.call("POST", path, body=asked))["status"]["token"])


class Grants:
    """ClusterRoles and their bindings for ServiceAccounts of a namespace, removed at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._paths: list[str] = []

    async def grant(self, account: str, rules: list[Json]) -> None:
        name = f"{self._cluster.namespace}-{account}"
        role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
        binding = {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self._cluster.namespace}],
        }
        for plural, item in (("clusterroles", role), ("clusterrolebindings", binding)):
            path = f"/apis/{RBAC}/v1/{plural}"
            await self._cluster.api.call("POST", path, body=item)
            self._paths.append(f"{path}/{name}")

    async def revoke(self) -> None:
        while self._paths:
            await self._cluster.delete(self._paths.pop())


@pytest.fixture
async def grants(cluster: Cluster) -> AsyncIterator[Grants]:
    grants = Grants(cluster)
    yield grants
    await grants.revoke()


async def until(reviews: KubernetesReviews, token: str, access: Access) -> None:
    """Wait until the API server has taken notice of what was granted or taken away."""
    async with asyncio.timeout(30):
        while await reviews.may(token, "get", "/metrics") != access:  # noqa: ASYNC110 - as a scraper would find out
            await asyncio.sleep(0.1)


async def test_whoever_has_the_right_may_and_whoever_has_not_is_named(cluster: Cluster, grants: Grants) -> None:
    reviews = KubernetesReviews(cluster.api, granted_seconds=0, refused_seconds=0)
    reader, other = await token_of(cluster, "reader"), await token_of(cluster, "other")
    who = f"system:serviceaccount:{cluster.namespace}"
    assert await reviews.may(reader, "get", "/metrics") == Denied(f"{who}:reader")
    await grants.grant("reader", MAY_READ)
    await until(reviews, reader, Granted())
    assert await reviews.may(reader, "get", "/debug") == Denied(f"{who}:reader")
    assert await reviews.may(other, "get", "/metrics") == Denied(f"{who}:other")
    await grants.revoke()
    await until(reviews, reader, Denied(f"{who}:reader"))
    for nobodys in ("no-token", reader[:-8] + "AAAAAAAA", "a.b.c", "ü"):
        assert await reviews.may(nobodys, "get", "/metrics") == Unauthenticated()


async def test_a_token_whose_account_is_gone_is_nobodys(cluster: Cluster) -> None:
    reviews = KubernetesReviews(cluster.api, granted_seconds=0, refused_seconds=0)
    token = await token_of(cluster, "reader")
    await cluster.delete(f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/reader")
    await until(reviews, token, Unauthenticated())


async def test_a_scrape_with_its_token_over_https_as_a_pod_asks_with_no_more_than_its_rights(
    cluster: Cluster, grants: Grants, tmp_path: Path
) -> None:
    reader = await token_of(cluster, "reader")
    await grants.grant("reader", MAY_READ)
    host, port = address_of(cluster.kubeconfig)
    (tmp_path / "token").write_text(await token_of(cluster, "controller"))
    (tmp_path / "ca.crt").write_bytes(authority_of(cluster.kubeconfig))
    places = Places({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}, tmp_path)
    async with connect(places=places) as api:
        with pytest.raises(
            BackendRefused, match=r'tokenreviews .* \(403\): .*; grant "create" on it to its ServiceAccount'
        ):
            await KubernetesReviews(api).may(reader, "get", "/metrics")
        await grants.grant("controller", MAY_ASK)
        await honoured(api, reader)
        server = ControllerServer(lambda: b"up 1\n", lambda: True, KubernetesReviews(api))
        [(where, at)] = await server.serve_metrics(ListenAddress("127.0.0.1", 0), self_signed("controller"))
        url = f"https://{where}:{at}/metrics"
        async with aiohttp.ClientSession() as session:
            for token, status in ((reader, 200), (reader + "x", 401), (None, 401)):
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                async with session.get(url, headers=headers, ssl=False) as response:
                    assert response.status == status
        await server.close()


async def honoured(api: ApiClient, token: str) -> None:
    """Wait until the API server lets this client ask, and the token read."""
    reviews = KubernetesReviews(api, granted_seconds=0, refused_seconds=0)
    async with asyncio.timeout(20):
        while True:
            try:
                if await reviews.may(token, "get", "/metrics") == Granted():
                    return
            except BackendRefused:
                pass
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_while_the_server_is_away_an_answer_counts_for_its_time_and_then_it_is_unavailable(
    cluster: Cluster, grants: Grants, control_plane: Path
) -> None:
    reader = await token_of(cluster, "reader")
    await grants.grant("reader", MAY_READ)
    await until(KubernetesReviews(cluster.api, refused_seconds=0), reader, Granted())
    time = 0.0
    reviews = KubernetesReviews(cluster.api, now=lambda: time)
    assert await reviews.may(reader, "get", "/metrics") == Granted()
    try:
        async with away(control_plane):
            assert await reviews.may(reader, "get", "/metrics") == Granted()
            time = 60.0
            with pytest.raises(BackendUnavailable, match="cannot be reached"):
                await reviews.may(reader, "get", "/metrics")
    finally:
        await answers(cluster.api)
        # A server that has just begun has yet to read who may do what.
        await until(KubernetesReviews(cluster.api, refused_seconds=0), reader, Granted())
    assert await reviews.may(reader, "get", "/metrics") == Granted()
