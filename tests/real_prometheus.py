"""Debian's Prometheus, for tests that ask a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest


@contextlib.asynccontextmanager
async def running(
    folder: Path, config: Mapping[str, Any], web_config: Mapping[str, Any] | None = None, *, port: int = 0
) -> AsyncIterator[int]:
    """The port on 127.0.0.1 of one with this configuration, which may not listen yet. Its files are in the folder, and
    what one before it left there it has too. 0 for `port`: any that is free.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on this machine: Debian's package of that name has it")
    (folder / "prometheus.yml").write_text(json.dumps(config))
    (folder / "web.yml").write_text(json.dumps(web_config or {}))
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--web.config.file={folder}/web.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=DEVNULL,
        stderr=PIPE,
    )
    assert process.stderr is not None
    said = asyncio.create_task(process.stderr.read())
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()
        assert process.returncode == 0, (await said).decode()
