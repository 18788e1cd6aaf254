"""`vllm-chill logs` as a program, in front of a proxy that runs one, and of what is none."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.serving import CHILL, clean_environment, serving

ENGINE = """
import http.server, os, sys
print("\\x1b[31mloading\\x1b[0m", sys.argv[2], "with", os.environ["HF_TOKEN"], flush=True)
if os.path.exists(sys.argv[3]):
    sys.exit("CUDA out of memory")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
    do_POST = do_GET
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def engine(broken: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", ENGINE, "{port}", "--api-key=KEYSECRET", str(broken))


async def run(*argv: str, url: str) -> tuple[int, str, str]:
    """The exit status of a command, and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *CHILL, *argv, "--url", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_from_sleep_to_a_failed_start_it_tells_what_the_engine_writes(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    async with serving(command=engine(broken), environment={"HF_TOKEN": "HFSECRET"}) as proxy:
        assert await run("logs", url=proxy.url) == (0, "", "")
        following = await asyncio.create_subprocess_exec(
            *CHILL, "logs", "-f", "--url", proxy.url, stdout=asyncio.subprocess.PIPE, env=clean_environment()
        )
        assert following.stdout is not None
        async with aiohttp.ClientSession() as session:
            async with session.post(proxy.url + "/v1/completions", json={}) as response:
                assert response.status == 200, await response.text()
            async with asyncio.timeout(20):
                assert await following.stdout.readline() == b"==> run-1 <==\n"
                assert await following.stdout.readline() == b"loading --api-key=*** with ***\n"
            following.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(following.wait(), 20) == 130
            async with session.post(proxy.url + "/proxy/operations/stop") as response:
                assert response.status == 200
            broken.touch()
            async with session.post(proxy.url + "/v1/completions", json={}) as response:
                said = await response.text()
                assert response.status == 503
                assert "CUDA out of memory" in said
                assert "SECRET" not in said
        status, out, _ = await run("logs", "-n", "2", url=proxy.url)
        assert (status, out) == (0, "==> run-2 <==\nloading --api-key=*** with ***\nCUDA out of memory\n")
        assert (await proxy.status())["output"][-1] == "CUDA out of memory"
        assert await run("logs", "--replica", "run-7", url=proxy.url) == (
            1,
            "",
            'vllm-chill: there is no output of a replica "run-7"; there is of: run-1, run-2\n',
        )
        assert not re.search("SECRET", str(proxy.log))


async def answered(
    answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *argv: str
) -> tuple[int, str, str]:
    """What the command makes of this answer."""
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        return await run("logs", *argv, url=f"http://{host}:{port}")
    finally:
        await runner.cleanup()


async def test_what_it_asks_for_is_what_it_was_given() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.path_qs == "/proxy/logs?lines=7&follow=true&model=a%2Fb+c&replica=pod-1"
        return web.Response(text="one\n")

    assert await answered(answer, "a/b c", "-f", "-n", "7", "--replica", "pod-1") == (0, "one\n", "")


async def test_a_terminal_obeys_nothing_of_what_a_proxy_says() -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"\x1b]0;title\x07a\x1b[2J\xffb\n", content_type="text/plain")

    assert await answered(answer) == (0, "a\ufffdb\n", "")


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [(200, "text/html", "<html>"), (502, "text/html", "<html>"), (404, "application/json", "{}")],
)
async def test_what_is_no_proxy_is_told(status: int, kind: str, text: str) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, text=text, content_type=kind)

    code, out, error = await answered(answer)
    assert (code, out) == (3, "")
    assert "is vllm-chill running there?" in error


async def test_a_reader_that_has_had_enough_ends_it_in_silence() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"line\n" * 1000)
        return response

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *CHILL, "logs", "--url", f"http://127.0.0.1:{runner.addresses[0][1]}",
        stdout=writing, stderr=asyncio.subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    os.close(writing)
    await asyncio.to_thread(os.read, reading, 100)
    os.close(reading)
    _, error = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, error) == (0, b"")
    await runner.cleanup()
