"""A running `vllm-chill serve` whose configuration changes, as an operator does it."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from pathlib import Path

import aiohttp
import yaml

from tests.serving import CHILL, Serving, clean_environment, serving
from vllm_chill.core.keys import hashed

ENGINE = (sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}", "--load-seconds", "0.1")


def swap(file: Path, text: str) -> None:
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


async def asked(proxy: Serving, path: str, method: str = "GET", **more: object) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, proxy.url + path, **more) as response:  # type: ignore[arg-type]
        return response.status, await response.text()


async def configuration(proxy: Serving) -> dict[str, object]:
    async with aiohttp.ClientSession() as session, session.get(proxy.url + "/proxy/status") as response:
        return dict((await response.json())["configuration"])


async def metric(proxy: Serving, name: str) -> float:
    _, text = await asked(proxy, "/proxy/metrics")
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


async def test_a_file_that_changes_and_is_broken_and_mended(tmp_path: Path) -> None:
    file = tmp_path / "chill.yaml"
    file.write_text("idle-timeout: 1h\nwake-timeout: 50s\n")
    async with serving("--config-file", str(file), command=ENGINE) as proxy:
        first = await configuration(proxy)
        assert (first["error"], first["needs_restart"]) == (None, [])
        assert (await asked(proxy, "/proxy/operations/start", "POST"))[0] == 200
        assert (await proxy.status())["sleeps_in_seconds"] > 3000

        swap(file, "idle-timeout: 2h\nwake-timeout: 50s\nconnect-timeout: 7s\n")
        said = await proxy.until_logged("the configuration was read anew")
        assert said["changed"] == ["idle-timeout"]
        assert (await proxy.status())["sleeps_in_seconds"] > 7000
        warning = await proxy.until_logged("these settings have changed, and count after a restart")
        assert warning["settings"] == ["connect-timeout"]
        loaded = await metric(proxy, "vllm_chill_config_last_reload_success_timestamp_seconds")

        swap(file, "idle-timeout: 1s\nwake-timeot: 50s\n")
        cause = (await proxy.until_logged("the configuration before holds on"))["cause"]
        assert cause == f'--config-file {file}: line 2: "wake-timeot" is no setting; did you mean wake-timeout?'
        assert (await configuration(proxy))["error"] == cause
        assert await metric(proxy, "vllm_chill_config_last_reload_successful") == 0
        assert await metric(proxy, "vllm_chill_config_last_reload_success_timestamp_seconds") == loaded
        assert (await proxy.status())["sleeps_in_seconds"] > 7000
        process = await asyncio.create_subprocess_exec(
            *CHILL, "status", "--url", proxy.url, stdout=asyncio.subprocess.PIPE, env=clean_environment()
        )
        assert f"The configuration before holds on: {cause}".encode() in (await process.communicate())[0]

        swap(file, "idle-timeout: 1s\nwake-timeout: 50s\n")
        await proxy.until_logged("the configuration was read anew", 2)
        await proxy.until(lambda target: target["phase"] == "asleep")
        assert (await configuration(proxy))["error"] is None
        assert await metric(proxy, "vllm_chill_config_last_reload_successful") == 1
        assert await proxy.stop() == 0


async def test_sighup_without_a_file_reads_keys_and_models_and_says_so(tmp_path: Path) -> None:
    keys, models = tmp_path / "keys.yaml", tmp_path / "models.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "ci", "key": hashed("chill-one")}]}))
    command = [sys.executable, "-c", "import time; time.sleep(60)", "{port}"]
    models.write_text(yaml.safe_dump({"models": {"a": {"modelName": "org/a", "command": command}}}))
    flags = ("--backend", "process", "--models", str(models), "--api-keys-file", str(keys))
    async with serving(*flags) as proxy:
        proxy.process.send_signal(signal.SIGHUP)
        await proxy.until_logged("the files of keys, models and certificates were read anew; there is no --config-file")
        files = [line["file"] for line in proxy.log if line["event"] == "the file was read anew"]
        assert files == [f"--api-keys-file {keys}", f"--models {models}"]

        spec = {"models": {name: {"modelName": f"org/{name}", "command": command} for name in ("a", "b")}}
        swap(models, yaml.safe_dump(spec))
        assert (await proxy.until_logged("model added", 2))["model"] == "b"
        swap(models, "models: {a: {modelName: org/a, command: [no-port]}}")
        await proxy.until_logged("the models before hold on")
        assert '"name": "b"' in (await asked(proxy, "/proxy/models/available"))[1]
        assert await proxy.stop() == 0


async def test_a_terminal_that_is_gone_ends_it_as_before() -> None:
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--host", "127.0.0.1", "--port", "0", "--state-dir", "", "--shutdown-delay", "0",
        "--backend", "process", "--", *ENGINE,
        stdin=follower, stderr=follower, start_new_session=True, env=clean_environment(),
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(follower)
    said = b""
    while b"listening" not in said:
        said += await asyncio.to_thread(os.read, leader, 4096)
    process.send_signal(signal.SIGHUP)
    while b"read anew" not in said:
        said += await asyncio.to_thread(os.read, leader, 4096)
    os.close(leader)
    assert await asyncio.wait_for(process.wait(), 20) == 0


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def checked(*argv: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--check", *argv,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=clean_environment(),
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_file_can_be_checked_before_it_is_used(tmp_path: Path) -> None:
    file, keys = tmp_path / "chill.yaml", tmp_path / "keys.yaml"
    file.write_text("idle-timeout: 1h\n")
    assert await checked("--config-file", str(file)) == (0, "All of this can be used.\n")
    file.write_text(f"idle-timout: 1h\nport: x\napi-keys-file: {keys}\n")
    assert await checked("--config-file", str(file)) == (
        2,
        f'vllm-chill: --config-file {file}: line 1: "idle-timout" is no setting; did you mean idle-timeout?\n',
    )
    file.write_text(f"api-keys-file: {keys}\nupstream-api-key-file: {tmp_path / 'none'}")
    code, said = await checked("--config-file", str(file))
    assert code == 2
    assert said.splitlines() == [
        f"vllm-chill: --api-keys-file {keys}: the file cannot be read: No such file or directory",
        f"vllm-chill: --upstream-api-key-file {tmp_path / 'none'}: the file cannot be read: No such file or directory",
    ]
