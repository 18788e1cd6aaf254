"""What is seen of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiohttp import web

from vllm_chill.adapters.machine import engines, folder_trouble, is_program, listening, named_file


def process(root: Path, pid: int, parent: int, *words: str) -> None:
    folder = root / str(pid)
    folder.mkdir()
    (folder / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    (folder / "stat").write_text(f"{pid} (a) b) c) S {parent} 1 1")


@pytest.mark.parametrize(
    "words",
    [
        ("vllm", "serve", "m"),
        ("/usr/bin/python3", "/opt/venv/bin/vllm", "serve", "m"),
        ("python3", "-m", "vllm.entrypoints.openai.api_server"),
        ("/opt/llama-server", "-m", "x.gguf"),
        ("VLLM::EngineCore",),
    ],
    ids=lambda words: words[0],
)
def test_an_engine_that_somebody_else_has_started_is_found_once(words: tuple[str, ...], tmp_path: Path) -> None:
    process(tmp_path, 1, 0, "init")
    process(tmp_path, 7, 1, *words)
    process(tmp_path, 8, 7, "VLLM::EngineCore")
    assert [(one.pid, one.words) for one in engines(tmp_path)] == [(7, " ".join(words))]


def test_those_of_a_vllm_chill_are_its_own(tmp_path: Path) -> None:
    process(tmp_path, 5, 1, "/venv/bin/python", "/venv/bin/vllm-chill", "serve", "--", "vllm", "serve", "m")
    process(tmp_path, 6, 5, "python", "-I", "-S", "/venv/vllm_chill/adapters/process_guard.py", "vllm", "serve", "m")
    process(tmp_path, 7, 6, "vllm", "serve", "m")
    process(tmp_path, 9, 1, "grep", "vllm", "serve")
    process(tmp_path, 10, 1, "")
    (tmp_path / "self").mkdir()
    (tmp_path / "11").mkdir()
    assert engines(tmp_path) == ()


def test_where_no_processes_are_told_there_are_none(tmp_path: Path) -> None:
    assert engines(tmp_path / "none") == ()


async def test_a_port_of_a_vllm_chill_is_known_as_one(tmp_path: Path) -> None:
    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "1", "commit": "", "build_date": ""})

    app = web.Application()
    app.router.add_get("/proxy/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        found = await listening("--port", "127.0.0.1", port)
    finally:
        await runner.cleanup()
    assert (found.chill, bool(found.trouble)) == (True, True)
    assert (await listening("--port", "127.0.0.1", port)).trouble == ""


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    found = await listening("--port", "192.0.2.1", 8080)
    assert found.trouble == "cannot assign requested address"
    assert not found.chill


def test_a_program_is_looked_for_where_the_command_would_be(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\n")
    assert not is_program("engine", {"PATH": str(tmp_path)})
    program.chmod(0o755)
    assert is_program("engine", {"PATH": str(tmp_path)})
    assert not is_program("engine", {"PATH": ""})


def test_a_folder_need_not_be_there_yet(tmp_path: Path) -> None:
    assert folder_trouble(tmp_path / "a" / "b") == ""
    (tmp_path / "file").write_text("")
    assert folder_trouble(tmp_path / "file" / "b") == f"{tmp_path}/file is no folder"


def test_a_file_is_told_with_who_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert "cannot be read: No such file" in named_file("--tls-key", str(file), secret=True).trouble
    file.write_text("x")
    file.chmod(0o644)
    found = named_file("--tls-key", str(file), secret=True)
    assert (found.trouble, found.mode, found.secret) == ("", 0o644, True)
    assert os.path.sep in found.path
