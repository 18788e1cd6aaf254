"""What `vllm-chill doctor` looks at on this machine, read once; nothing is started, and nothing stays open.

The rule: what cannot be told is not there, as processes of others mostly cannot.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import aiohttp

from vllm_chill.adapters.gpu import NvmlStats
from vllm_chill.core.doctor.finding import Unseen
from vllm_chill.core.doctor.machine import Listening, NamedFile, Running
from vllm_chill.core.gpu import Gpu
from vllm_chill.errors import BackendUnavailable

_SECONDS = 1.0
_WORDS_CHARACTERS = 80
_VLLM_MODULE = "vllm.entrypoints.openai.api_server"


def is_program(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a program is there and may be run, as the command would find it."""
    return shutil.which(name, path=environment.get("PATH")) is not None


async def listening(flag: str, host: str, port: int) -> Listening:
    """Whether an address can be listened on, and by whom it is if not."""
    trouble = await asyncio.to_thread(_trouble_with, host, port)
    if trouble is None:
        return Listening(flag, host, port)
    number, why = trouble
    chill = number == errno.EADDRINUSE and await _is_chill(host, port)
    return Listening(flag, host, port, why, chill)


def _trouble_with(host: str, port: int) -> tuple[int, str] | None:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return 0, error.strerror or str(error)
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as made:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind(address)
                made.listen(1)
        except OSError as error:
            return error.errno or 0, (error.strerror or str(error)).lower()
    return None


async def _is_chill(host: str, port: int) -> bool:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is not listened on
    url = f"http://{f'[{here}]' if ':' in here else here}:{port}/proxy/version"
    try:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            return response.status in (200, 401) and b"build_date" in await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return False


async def gpus() -> tuple[Gpu, ...] | Unseen:
    """The GPUs that NVML shows."""
    try:
        return (await NvmlStats().read()).gpus
    except BackendUnavailable as error:
        return Unseen(error.message)


def open_files() -> int | None:
    """How many files a process may have open, once it has raised its limit; None for any number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def has_uvloop() -> bool:
    """Whether uvloop is installed."""
    return find_spec("uvloop") is not None


def folder_trouble(folder: Path) -> str:
    """Why a folder, which need not be there yet, cannot be written; "" if it can."""
    try:
        there = folder.expanduser()
        while not there.exists() and there != there.parent:
            there = there.parent
    except (OSError, RuntimeError) as error:
        return str(error)
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written"


def named_file(flag: str, path: str, *, secret: bool) -> NamedFile:
    """A file that a setting names."""
    try:
        there = Path(path).expanduser()
        mode = there.stat().st_mode & 0o777
        with there.open("rb") as file:
            file.read(1)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return NamedFile(flag, path, f"{path} ({flag}) cannot be read: {why}", secret=secret)
    return NamedFile(flag, path, mode=mode, secret=secret)


def engines(processes: Path = Path("/proc")) -> tuple[Running, ...]:
    """The engines that run on this machine and that no vllm-chill has started, the first of each."""
    found = {pid: process for pid in _pids(processes) if (process := _process(processes, pid)) is not None}
    running = []
    for pid, (parent, words) in found.items():
        above = list(_above(found, parent))
        if not _is_engine(words) or any(_is_engine(one) or _is_ours(one) for one in above):
            continue
        line = " ".join(words)
        running.append(Running(pid, line if len(line) <= _WORDS_CHARACTERS else f"{line[: _WORDS_CHARACTERS - 1]}…"))
    return tuple(running)


_Processes = Mapping[int, tuple[int, Sequence[str]]]


def _pids(processes: Path) -> list[int]:
    try:
        return sorted(int(entry.name) for entry in processes.iterdir() if entry.name.isdecimal())
    except OSError:
        return []


def _process(processes: Path, pid: int) -> tuple[int, Sequence[str]] | None:
    try:
        words = (processes / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        # The name in brackets may have anything in it.
        parent = int((processes / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return parent, words


def _above(found: _Processes, parent: int) -> list[Sequence[str]]:
    above: list[Sequence[str]] = []
    while parent in found and len(above) < 64:
        parent, words = found[parent]
        above.append(words)
    return above


def _is_engine(words: Sequence[str]) -> bool:
    if _is_ours(words):
        return False
    # A script is the second word, after what runs it.
    command = list(words[1:] if words[0].rpartition("/")[2].startswith("python") else words)
    base = command[0].rpartition("/")[2] if command else ""
    if command[:1] == ["-m"]:
        return command[1:2] == [_VLLM_MODULE]
    return (base == "vllm" and command[1:2] == ["serve"]) or base == "llama-server" or words[0].startswith("VLLM::")


def _is_ours(words: Sequence[str]) -> bool:
    return any("vllm-chill" in word or "vllm_chill" in word for word in words[:6])
