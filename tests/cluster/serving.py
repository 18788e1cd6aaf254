"""`vllm-chill serve` in front of a Deployment of a real cluster, and callers of it.

Requests go to the address of a Service, so these tests run where Services can be reached: on a node, or in a pod.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.account import mount
from tests.cluster.cluster import Cluster
from tests.serving import Serving, clean_environment, followed, serving

CHAT = "/v1/chat/completions"
_ACCOUNT = "/var/run/secrets/kubernetes.io"
# A file system of its own on /run, in a mount namespace of its own: what a pod finds, where a pod finds it.
_AS_A_POD = f"""
mount -t tmpfs none /run && mkdir -p {_ACCOUNT} && cp -r "$1" {_ACCOUNT}/serviceaccount && shift && exec "$@"
"""


@asynccontextmanager
async def in_front_of(
    cluster: Cluster, *flags: str, kubeconfig: Path | None = None, address: str = ""
) -> AsyncIterator[Serving]:
    """Run the proxy in front of the Deployment vllm, which need not exist, and its Service, which is created."""
    address = address or await cluster.create_service()
    access = ("--kubeconfig", str(kubeconfig or cluster.kubeconfig))
    async with serving(*access, *_target(cluster, address), *flags) as proxy:
        yield proxy


@asynccontextmanager
async def in_a_pod(cluster: Cluster, folder: Path, *flags: str) -> AsyncIterator[Serving]:
    """The same, with the credentials that a pod of the ServiceAccount has, where a pod has them."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:  # noqa: ASYNC221
        pytest.skip("needs user namespaces, for a file system with a pod's service account in it")
    environment = await mount(cluster, folder)
    address = await cluster.create_service()
    command = (sys.executable, "-m", "vllm_chill", "serve", "--host", "127.0.0.1", "--port", "0")
    process = await asyncio.create_subprocess_exec(
        "unshare", "-rm", "sh", "-c", _AS_A_POD, "sh", str(folder), *command,
        "--log-format", "json", *_target(cluster, address), *flags,
        stderr=asyncio.subprocess.PIPE, limit=1 << 20, env=clean_environment(**environment),
    )  # fmt: skip
    async with followed(process) as proxy:
        yield proxy


def _target(cluster: Cluster, address: str) -> tuple[str, ...]:
    return ("--namespace", cluster.namespace, "--target-host", address, "--target-port", "80", "--shutdown-delay", "0")


@dataclass(frozen=True)
class Answer:
    """What a caller got; `body` as it came, but for the moment at which the engine made it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def chunks(self) -> int:
        """How many pieces a streamed answer had, its end not counted."""
        return self.body.count(b"data: ") - self.body.count(b"data: [DONE]\n\n")


def question(tokens: int = 1, *, stream: bool = False) -> dict[str, Any]:
    """The body of a chat request for so many tokens."""
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": stream}


async def ask(
    url: str, tokens: int = 1, *, stream: bool = False, session: aiohttp.ClientSession | None = None
) -> Answer:
    """One chat request, on a connection of its own or one of the session's."""
    if session is None:
        async with caller() as session:
            return await ask(url, tokens, stream=stream, session=session)
    async with session.post(url + CHAT, json=question(tokens, stream=stream)) as response:
        body = re.sub(rb'"created": \d+', b'"created": 0', await response.read())
        return Answer(response.status, dict(response.headers), body)


async def get(url: str) -> tuple[int, str]:
    async with caller() as session, session.get(url) as response:
        return response.status, await response.text()


async def metric(proxy: Serving, sample: str) -> float:
    """The value of one of the proxy's own metrics, with its labels as they are exposed."""
    _, text = await get(proxy.url + "/proxy/metrics")
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample + " "))


def caller() -> aiohttp.ClientSession:
    """A session without a bound on its connections."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120))


def peak_memory(pid: int) -> float:
    """The most memory that a process has had resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024
