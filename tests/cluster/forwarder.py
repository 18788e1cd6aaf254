"""A TCP forwarder in front of an API server: the network between the two, with hands to make it fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import yaml


class Forwarder:
    """Forwards a free loopback port to `host`:`port`. Invariant: `_pairs` are the connections that are open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Take connections, always on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """End all connections and take no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        while self._pairs:
            await asyncio.wait([pair.task for pair in self._pairs])

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for pair in self._pairs:
            pair.task.cancel()

    def freeze(self) -> None:
        """Let the open connections live and carry nothing, as those through a machine that is gone; new ones work."""
        for pair in self._pairs:
            pair.frozen.set()

    def hold(self) -> None:
        """Carry nothing, for open connections and for new ones: a network that is parted."""
        self._flowing.clear()

    def release(self) -> None:
        """Carry again, first of all what was held: so TCP has it, even for who has long left."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        pair = _Pair(task, self._flowing)
        self._pairs.add(pair)
        try:
            await self._flowing.wait()
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(pair.pipe(reader, up_writer))
                    tasks.create_task(pair.pipe(up_reader, writer))
            finally:
                up_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._pairs.discard(pair)


class _Pair:
    def __init__(self, task: asyncio.Task[None], flowing: asyncio.Event) -> None:
        self.task = task
        self.flowing = flowing
        self.frozen = asyncio.Event()

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # ENOTCONN is no ConnectionError
            while data := await reader.read(65536):
                if self.frozen.is_set():
                    await asyncio.Event().wait()
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()


def address_of(kubeconfig: Path) -> tuple[str, int]:
    """Where the current cluster of a kubeconfig is."""
    server = urlsplit(_cluster(yaml.safe_load(kubeconfig.read_text()))["server"])
    assert server.hostname is not None
    return server.hostname, server.port or 443


def authority_of(kubeconfig: Path) -> bytes:
    """The certificate of the authority that vouches for the current cluster."""
    cluster = _cluster(yaml.safe_load(kubeconfig.read_text()))
    if data := cluster.get("certificate-authority-data"):
        return base64.b64decode(data)
    return (kubeconfig.parent / cluster["certificate-authority"]).read_bytes()


def through(kubeconfig: Path, port: int, copy: Path) -> Path:
    """Write a copy of a kubeconfig whose cluster is reached through a loopback port, under its own name."""
    config = yaml.safe_load(kubeconfig.read_text())
    host, _ = address_of(kubeconfig)
    _cluster(config).update({"server": f"https://127.0.0.1:{port}", "tls-server-name": host})
    copy.write_text(yaml.safe_dump(config))
    return copy


def _cluster(config: Any) -> dict[str, str]:
    clusters: dict[str, dict[str, str]] = {entry["name"]: entry["cluster"] for entry in config["clusters"]}
    contexts = {entry["name"]: entry["context"] for entry in config["contexts"]}
    return clusters[contexts[config["current-context"]]["cluster"]]
