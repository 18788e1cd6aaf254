"""A real nginx in front of a server on this machine, as an ingress: everything of it lies in one folder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

_START_SECONDS = 10
_STOP_SECONDS = 10
_KEPT = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextlib.asynccontextmanager
async def nginx(
    folder: Path, upstream: str, directives: Sequence[str] = (), locations: Sequence[str] = ("/",)
) -> AsyncIterator[str]:
    """The URL of an nginx that passes what is at these locations to `upstream`, with these directives besides
    `proxy_pass`; all else is 404.
    """
    port, errors = _free_port(), folder / "error.log"
    file = _configured(folder, port, upstream, directives, locations)
    assert PROGRAM is not None
    command = (PROGRAM, "-p", str(folder), "-c", str(file), "-e", str(errors))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await _listens(port):
                assert process.returncode is None, errors.read_text()
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)


def _configured(folder: Path, port: int, upstream: str, directives: Sequence[str], locations: Sequence[str]) -> Path:
    """Write the file that says all of it."""
    folder.mkdir(exist_ok=True)
    file = folder / "nginx.conf"
    kept = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in _KEPT)
    more = " ".join(f"{directive};" for directive in directives)
    there = "\n    ".join(f"location {place} {{ proxy_pass {upstream}; {more} }}" for place in locations)
    if "/" not in locations:
        there += "\n    location / { return 404; }"
    file.write_text(f"""daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; {kept}
  server {{
    listen 127.0.0.1:{port};
    {there}
  }}
}}
""")
    return file


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
