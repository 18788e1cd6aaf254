"""`vllm-chill serve` as a process of its own, and hands to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from vllm_chill.settings.parts import env_of
from vllm_chill.settings.serve import Settings

CHILL = (sys.executable, "-m", "vllm_chill")


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any of the proxy's settings in it.

    It has no certificate authorities: aiohttp reads them when it is imported, which is a fifth of a start's time, and
    nothing here asks a public server.
    """
    settings = {env_of(field) for field in Settings.model_fields.values()}
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return kept | {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull} | more


@dataclass
class Serving:
    """A proxy that runs."""

    process: asyncio.subprocess.Process
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_logged(self, event: str, count: int = 1, seconds: float = 20) -> dict[str, Any]:
        """The `count`th log line of this event, once it is there."""
        async with asyncio.timeout(seconds):
            while len(lines := [line for line in self.log if line["event"] == event]) < count:
                self._changed.clear()
                await self._changed.wait()
        return lines[count - 1]

    async def status(self) -> dict[str, Any]:
        """The status of its one target."""
        async with aiohttp.ClientSession() as session, session.get(self.url + "/proxy/status") as response:
            [target] = (await response.json())["targets"]
            return dict(target)

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """The status of its target, once it is one of which `holds` is true."""
        async with asyncio.timeout(seconds):
            while not holds(status := await self.status()):  # noqa: ASYNC110 - as any client would
                await asyncio.sleep(0.02)
        return status

    async def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20) -> int:
        """Send it a signal; its exit status."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def follow(self) -> None:
        """Take its log lines as they come."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode(errors="replace").rstrip(), "level": "raw"})
            self._changed.set()


@contextlib.asynccontextmanager
async def serving(
    *flags: str, command: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> AsyncIterator[Serving]:
    """Run `vllm-chill serve` with these flags on a free port of the loopback address; it is ended afterwards.

    It keeps nothing, unless the flags name a --state-dir.
    """
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json",
        "--state-dir", "", *flags, *command_of(command),
        stderr=asyncio.subprocess.PIPE, limit=1 << 20, env=clean_environment(**(environment or {})),
    )  # fmt: skip
    async with followed(process) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def followed(process: asyncio.subprocess.Process) -> AsyncIterator[Serving]:
    """A proxy that has just been started, with its log lines as JSON, once it listens; it is ended afterwards."""
    proxy = Serving(process)
    following = asyncio.create_task(proxy.follow())
    try:
        listening = await proxy.until_logged("listening", seconds=60)
        proxy.url = f"http://{listening['host']}:{listening['port']}"
        yield proxy
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await following


def command_of(command: Sequence[str]) -> tuple[str, ...]:
    """The flags and arguments that have this command run, if there is one."""
    return ("--backend", "process", "--", *command) if command else ()
