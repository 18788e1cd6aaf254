"""A stage for chaos: targets in a namespace of a real cluster, and proxies before them, each as in a pod of its own.

A proxy is a process with its own token, and its own way to the API server: a network that can be cut, frozen or parted
(`network`), then a server that can fall ill (`api`), then the real one. Several proxies of one target are several calls
of `Stage.proxy`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.chaos.sick_server import Sickness, SickServer
from tests.cluster.account import ROLE, install, mount
from tests.cluster.cluster import Cluster
from tests.cluster.forwarder import Forwarder
from tests.cluster.peers import until_they_know
from tests.cluster.serving import CHAT, caller, question
from tests.serving import Serving, clean_environment, followed
from vllm_chill.adapters.kubernetes.client import Json

_ACCOUNT = "/var/run/secrets/kubernetes.io"
# What a pod finds, where a pod finds it: the folder itself, so that a token in it can be replaced.
_AS_A_POD = f"""
mount -t tmpfs none /run && mkdir -p {_ACCOUNT}/serviceaccount && mount --bind "$1" {_ACCOUNT}/serviceaccount &&
shift && exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A Deployment and its Service."""

    name: str
    address: str


@dataclass
class Proxy:
    """A proxy that runs. `folder` is its service account's, as mounted."""

    target: Target
    serving: Serving
    network: Forwarder
    api: SickServer
    folder: Path

    @property
    def url(self) -> str:
        return self.serving.url

    @property
    def token(self) -> str:
        """The token that it finds."""
        return (self.folder / "token").read_text()

    def said(self, event: str) -> int:
        """How often it has logged an event."""
        return sum(line["event"] == event for line in self.serving.log)

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """The status of its target, once it is one of which `holds` is true."""
        return await self.serving.until(holds, seconds)


class Stage:
    """Invariant: `proxies` are those that were started, in this order; all of it ends with the stage."""

    def __init__(self, cluster: Cluster, control_plane: Path, folder: Path) -> None:
        self.cluster = cluster
        self.control_plane = control_plane
        self.proxies: list[Proxy] = []
        self._folder = folder
        self._stack = AsyncExitStack()
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self.proxies:
            # Shown with a scenario that fails.
            lines = "\n".join(json.dumps(line) for line in proxy.serving.log)
            sys.stdout.write(f"--- {proxy.target.name}\n{lines}\n")
        await self._stack.__aexit__(kind, error, trace)

    async def targets(self, *names: str, awake: tuple[str, ...] = (), load_seconds: float = 0) -> dict[str, Target]:
        """Deployments of the stub of vLLM with their Services, and the right to scale them."""
        await install(self.cluster, role_for(names))
        made: dict[str, Target] = {}
        for name in names:
            replicas = int(name in awake)
            env = {"STUB_TOKENS_PER_SECOND": "50"}
            await self.cluster.create_deployment(name, replicas=replicas, load_seconds=load_seconds, env=env)
            made[name] = Target(name, await self.cluster.create_service(f"{name}-svc", app=name))
        return made

    async def proxy(self, target: Target, *flags: str, **environment: str) -> Proxy:
        """A proxy in front of a target, once it listens."""
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:  # noqa: ASYNC221
            pytest.skip("needs user namespaces, for a file system with a pod's service account in it")
        folder = self._folder / f"proxy-{next(self._numbers)}"
        folder.mkdir()
        surroundings = await mount(self.cluster, folder)
        api = await self._stack.enter_async_context(SickServer(self.cluster.kubeconfig))
        network = await self._stack.enter_async_context(Forwarder("127.0.0.1", api.port))
        api.authority.cert_pem.write_to_path(folder / "ca.crt")
        surroundings |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(network.port)}
        process = await asyncio.create_subprocess_exec(
            "unshare", "-rm", "sh", "-c", _AS_A_POD, "sh", str(folder), sys.executable, "-m", "vllm_chill", "serve",
            "--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--shutdown-delay", "0",
            "--namespace", self.cluster.namespace, "--deployment", target.name,
            "--target-host", target.address, "--target-port", "80", *flags,
            stderr=asyncio.subprocess.PIPE, limit=1 << 20, env=clean_environment(**surroundings, **environment),
        )  # fmt: skip
        serving = await self._stack.enter_async_context(followed(process))
        made = Proxy(target, serving, network, api, folder)
        self.proxies.append(made)
        return made

    async def two(self, target: Target, *flags: str, **environment: str) -> tuple[Proxy, Proxy]:
        """Two proxies of a target that know of one another, the one that leads first."""
        async with asyncio.TaskGroup() as starting:
            started = [starting.create_task(self.proxy(target, *flags, **environment)) for _ in range(2)]
        one, other = (task.result() for task in started)
        leader, _ = await until_they_know(one.serving, other.serving)
        return (one, other) if leader is one.serving else (other, one)

    def fall_ill(self, sickness: Sickness | None, *, last_words: bytes = b"") -> None:
        """Have the API server be so for all proxies, whose watches end; None: be well again."""
        for proxy in self.proxies:
            proxy.api.sickness = sickness
            if sickness is not None:
                proxy.api.end_watches(last_words)

    async def scaled(self) -> int:
        """How many writes of a scale the API server has carried out, for all proxies together."""
        await asyncio.sleep(0.5)  # who sees one may see it before its answer is on its way
        return sum(proxy.api.scaled for proxy in self.proxies)

    async def replicas_become(self, target: Target, replicas: int, seconds: float = 60) -> float:
        """Wait until so many are asked for; how long that took. More than `seconds` is an AssertionError."""
        begun = now()
        while await self.cluster.replicas(target.name) != replicas:
            assert now() < begun + seconds, f"{target.name} was not at {replicas} replicas within {seconds} s"
            await asyncio.sleep(0.05)
        return now() - begun


def role_for(names: tuple[str, ...]) -> Json:
    """The Role of deploy/, for Deployments of these names."""
    rules = [
        {**rule, "resourceNames": list(names)} if rule["apiGroups"] == ["apps"] else rule for rule in ROLE["rules"]
    ]
    return {**ROLE, "rules": rules}


def now() -> float:
    """The time on the loop's clock."""
    return asyncio.get_running_loop().time()


async def answered(url: str, *, hold: str = "60s", tokens: int = 1, stream: bool = False) -> tuple[int, bytes, float]:
    """One chat request on a connection of its own, held for so long: its status, its body and its seconds."""
    begun = now()
    async with caller() as session:
        asked = session.post(url + CHAT, json=question(tokens, stream=stream), headers={"X-Wake-Timeout": hold})
        async with asked as response:
            return response.status, await response.read(), now() - begun
