"""The suite of a real cluster: the one that KUBECONFIG names, or none.

`tests/cluster/run` starts a control plane on this machine and runs the suite against it. CONTROL_PLANE_DIR is then
its folder, for the tests that kill or hang the API server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.models import Models, install_crd
from vllm_chill.adapters.kubernetes.client import connect

_HERE = Path(__file__).parent
_WHY = "needs a cluster: set KUBECONFIG, or let tests/cluster/run start a control plane"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if not os.environ.get("KUBECONFIG"):
                item.add_marker(pytest.mark.skip(reason=_WHY))


@pytest.fixture
def kubeconfig() -> Path:
    """The path of an administrator's kubeconfig."""
    return Path(os.environ["KUBECONFIG"])


@pytest.fixture
async def cluster(kubeconfig: Path) -> AsyncIterator[Cluster]:
    """A fresh namespace, deleted with all that is in it afterwards."""
    namespace = f"chill-test-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    async with connect(str(kubeconfig)) as api:
        await api.call("POST", "/api/v1/namespaces", body=body)
        cluster = Cluster(api, kubeconfig, namespace)
        try:
            yield cluster
        finally:
            await cluster.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def control_plane() -> Path:
    """The folder of a control plane whose API server may be killed and hung."""
    folder = os.environ.get("CONTROL_PLANE_DIR")
    if not folder:
        pytest.skip("needs an API server that may be killed: let tests/cluster/run start a control plane")
    return Path(folder)


@pytest.fixture
async def models(cluster: Cluster) -> AsyncIterator[Models]:
    """A cluster that knows models, without any."""
    await install_crd(cluster.api)
    models = Models(cluster)
    try:
        yield models
    finally:
        await models.clean()
