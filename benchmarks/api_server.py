"""An API server alone: a real etcd and a real kube-apiserver on this machine, and nothing that acts on objects.

What a controller manager and a node would make of objects is written by whoever needs it, so thousands of pods cost
what their objects do. The programs are those of tests/cluster/control-plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable, connect
from vllm_chill.adapters.kubernetes.credentials import Places

_START_SECONDS = 120


@dataclass(frozen=True, slots=True)
class ApiServer:
    """One that runs. `account` is the folder that a pod finds mounted, `environ` what it has besides."""

    api: ApiClient
    account: Path
    environ: dict[str, str]


def missing() -> str | None:
    """What is not on this machine, as a sentence; None if everything is."""
    if not _kube_apiserver().exists():
        return f"no kube-apiserver in {_kube_apiserver().parent} (CONTROL_PLANE_HOME names another folder than bin's)"
    return None if shutil.which("etcd") else "no etcd on this machine: Debian's package of that name has it"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in held]


@contextlib.asynccontextmanager
async def api_server() -> AsyncIterator[ApiServer]:
    """An empty one. Who asks it may do everything."""
    port, etcd_port, peer_port = free_ports(3)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="api-server-")))
        account = folder / "account"
        account.mkdir()
        token = secrets.token_hex(16)
        (account / "token").write_text(token)
        (folder / "tokens.csv").write_text(f"{token},benchmark,benchmark\n")
        key = folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)  # noqa: ASYNC221
        etcd = f"http://127.0.0.1:{etcd_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        await stack.enter_async_context(
            _running(
                "etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            )
        )  # fmt: skip
        server = await stack.enter_async_context(
            _running(
                str(_kube_apiserver()), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}",
                "--advertise-address=192.0.2.1", f"--cert-dir={folder}/pki", f"--token-auth-file={folder}/tokens.csv",
                "--authorization-mode=AlwaysAllow", "--service-cluster-ip-range=127.96.0.0/16",
                f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                f"--service-account-issuer=https://127.0.0.1:{port}", "--disable-admission-plugins=ServiceAccount",
            )
        )  # fmt: skip
        (account / "ca.crt").write_bytes(await _written(folder / "pki" / "apiserver.crt", server))
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        api = await stack.enter_async_context(connect(places=Places(environ, account, folder / "none")))
        await _until_ready(api, server)
        yield ApiServer(api, account, environ)


def _kube_apiserver() -> Path:
    home = os.environ.get("CONTROL_PLANE_HOME") or str(Path.home() / ".cache" / "control-plane")
    return Path(home, "bin", "kube-apiserver")


@contextlib.asynccontextmanager
async def _running(*command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # asked to end, it would let watches last for a minute
        await process.wait()


async def _written(file: Path, server: Process) -> bytes:
    """What it writes into a file, once it is there."""
    async with asyncio.timeout(_START_SECONDS):
        while True:
            _alive(server)
            with contextlib.suppress(FileNotFoundError):
                return await asyncio.to_thread(file.read_bytes)
            await asyncio.sleep(0.1)


async def _until_ready(api: ApiClient, server: Process) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while True:
            _alive(server)
            with contextlib.suppress(ApiError, Unreachable):
                await api.call("GET", "/api/v1/namespaces/default")
                return
            await asyncio.sleep(0.2)


def _alive(server: Process) -> None:
    if server.returncode is not None:
        raise SystemExit(f"kube-apiserver ended with {server.returncode} before it was ready")
