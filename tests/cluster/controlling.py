"""`vllm-chill controller` as a process of its own on a real cluster, and hands to read what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import Cluster
from tests.cluster.forwarder import address_of, authority_of
from tests.serving import CHILL, Serving, clean_environment

_LISTEN = ("--metrics-bind-address", "127.0.0.1:0", "--health-probe-bind-address", "127.0.0.1:0")


@dataclass
class Controlling(Serving):
    """A controller that runs. `url` is where its metrics are; `probes` where its probes are."""

    probes: str = ""
    namespace: str = ""

    async def page(self, token: str = "") -> tuple[int, str]:
        """Its page of metrics, over HTTPS with a certificate that nobody has signed."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/metrics", headers=headers, ssl=unchecked) as response,
        ):
            return response.status, await response.text()

    async def figures(self, token: str = "", name: str = "wva_desired_replicas") -> dict[str, float]:
        """One of its metrics, by the variant's name, of the variants in the test's namespace."""
        status, text = await self.page(token)
        assert status == 200, text
        samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
        own = {"namespace": self.namespace}.items()
        return {
            one.labels["variant_name"]: one.value for one in samples if one.name == name and own <= one.labels.items()
        }

    def said(self, word: str) -> list[str]:
        """The lines of its log that have a word in them."""
        return [line for line in map(json.dumps, self.log) if word in line.lower()]


@contextlib.asynccontextmanager
async def controlling(
    cluster: Cluster, *flags: str, kubeconfig: Path | None = None, **environment: str
) -> AsyncIterator[Controlling]:
    """Run `vllm-chill controller`, whose own namespace is that of the test, once it listens; it is ended afterwards."""
    process = await asyncio.create_subprocess_exec(
        *CHILL, "controller", "--kubeconfig", str(kubeconfig or cluster.kubeconfig), "--log-format", "json",
        "--controller-namespace", cluster.namespace, *_LISTEN, *flags,
        stderr=asyncio.subprocess.PIPE, limit=1 << 20, env=clean_environment(**environment),
    )  # fmt: skip
    controller = Controlling(process, namespace=cluster.namespace)
    following = asyncio.create_task(controller.follow())
    try:
        metrics = await controller.until_logged("listening")
        probes = await controller.until_logged("listening", 2)
        secure = "http" if "--metrics-secure=false" in flags else "https"
        controller.url = f"{secure}://{metrics['host']}:{metrics['port']}"
        controller.probes = f"http://{probes['host']}:{probes['port']}"
        yield controller
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await following


async def token_for(cluster: Cluster, account: str) -> str:
    """A token of a ServiceAccount that there is."""
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{account}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return str((await cluster.api.call("POST", path, body=asked))["status"]["token"])


async def kubeconfig_of(cluster: Cluster, account: str, folder: Path) -> Path:
    """A kubeconfig with a token of a ServiceAccount and nothing else."""
    host, port = address_of(cluster.kubeconfig)
    authority = folder / "ca.crt"
    authority.write_bytes(authority_of(cluster.kubeconfig))
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "own",
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
        "clusters": [
            {"name": "own", "cluster": {"server": f"https://{host}:{port}", "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "own", "user": {"token": await token_for(cluster, account)}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path
