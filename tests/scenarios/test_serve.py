"""The whole program as a user runs it: `vllm-chill serve --backend process` with a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import sys
from contextlib import aclosing

import aiohttp
import pytest

from tests.adapters.contract import Seen, is_ready
from tests.engines import ask, ask_streamed, question, running
from tests.probing import probed
from tests.serving import CHILL, clean_environment, serving
from vllm_chill.adapters.process import Command, ProcessBackend
from vllm_chill.core.target import TargetRef
from vllm_chill.proxy.upstream import UpstreamPool

DEMO_ENGINE = (sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}", "--load-seconds", "0.2")


async def asked_directly(command: list[str], body: dict[str, object]) -> tuple[str, list[str]]:
    seen = Seen()
    async with ProcessBackend(Command(tuple(command)), lambda _: None) as process, aclosing(UpstreamPool()) as pool:
        backend = probed(process, pool)
        watching = asyncio.create_task(backend.watch(TargetRef("process", "direct"), seen))
        await backend.scale(TargetRef("process", "direct"), 1)
        [endpoint] = (await seen.until(is_ready)).endpoints
        answers = await ask(f"http://{endpoint}", body), await ask_streamed(f"http://{endpoint}", body)
        watching.cancel()
    return answers


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
async def test_from_zero_to_an_answer_and_back_and_again_with_the_same_tokens(
    llama_cpp_command: list[str], loop: str
) -> None:
    model = llama_cpp_command[-2]
    body = question("What holds the request?")
    direct = await asked_directly(llama_cpp_command, body)
    async with serving("--idle-timeout", "500ms", "--event-loop", loop, command=llama_cpp_command) as proxy:
        for wake in (1, 2):
            assert running(model) == [proxy.process.pid], "nothing runs but the proxy"
            assert await ask_streamed(proxy.url, body) == direct[1]
            assert await ask(proxy.url, body) == direct[0]
            assert len(running(model)) > 1
            await proxy.until_logged("asleep", wake)
        assert running(model) == [proxy.process.pid]
        assert await proxy.stop() == 0


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
async def test_sigterm_lets_a_stream_finish_and_leaves_no_engine(loop: str) -> None:
    async with serving(
        "--event-loop", loop, "--idle-timeout", "1m", "--shutdown-delay", "0", command=DEMO_ENGINE
    ) as proxy:
        body = {
            "model": "demo",
            "stream": True,
            "max_tokens": 20,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "x"}],
        }
        async with aiohttp.ClientSession() as session, session.post(proxy.url + "/v1/chat/completions", json=body) as r:
            await r.content.readany()
            proxy.process.send_signal(signal.SIGTERM)
            text = (await r.read()).decode()
        assert text.endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(proxy.process.wait(), 10) == 0
        assert [line["event"] for line in proxy.log if line["logger"] == "vllm_chill"] == [
            "listening",
            "draining",
            "drained",
        ]


async def until_it_answers(url: str, requests: int, seconds: float) -> None:
    """Return once the engine says that it answers so many requests."""
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/metrics") as response:
                found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", await response.text(), re.MULTILINE)
            if found is not None and float(found[1]) == requests:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False], ids=["within the stream", "before the head"])
async def test_a_client_that_leaves_frees_the_engine(stream: bool) -> None:
    async with serving("--idle-timeout", "1m", "--shutdown-delay", "0", command=DEMO_ENGINE) as proxy:
        body = json.dumps(
            {"model": "demo", "stream": stream, "max_tokens": 2000, "ignore_eos": True}
            | {"messages": [{"role": "user", "content": "x"}]}
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        await until_it_answers(proxy.url, 1, seconds=10)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        await until_it_answers(proxy.url, 0, seconds=1)
        await proxy.until(lambda s: s["in_flight"] == 0, seconds=1)
        await writer.wait_closed()


async def test_a_second_signal_ends_it_at_once() -> None:
    async with serving("--idle-timeout", "1m", "--shutdown-delay", "1m", command=DEMO_ENGINE) as proxy:
        proxy.process.send_signal(signal.SIGTERM)
        await proxy.until_logged("draining")
        async with aiohttp.ClientSession() as session, session.get(proxy.url + "/readyz") as response:
            assert response.status == 503
        assert await proxy.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_engine_outlives_the_proxy(number: signal.Signals, llama_cpp_command: list[str]) -> None:
    model = llama_cpp_command[-2]
    async with serving("--shutdown-delay", "0", command=llama_cpp_command) as proxy:
        await ask(proxy.url, question("x"))
        engine = [pid for pid in running(model) if pid != proxy.process.pid]
        assert engine
        await proxy.stop(number)
        async with asyncio.timeout(5):
            while any(pid in engine for pid in running(model)):  # noqa: ASYNC110 - they tell nobody of their end
                await asyncio.sleep(0.02)


async def test_an_engine_that_dies_is_seen_and_started_again_by_the_next_request(llama_cpp_command: list[str]) -> None:
    async with serving(command=llama_cpp_command) as proxy:
        first = await ask(proxy.url, question("x"))
        engine = max(pid for pid in running(llama_cpp_command[-2]) if pid != proxy.process.pid)
        os.kill(engine, signal.SIGKILL)
        await proxy.until(lambda s: s["phase"] == "failed")
        assert await ask(proxy.url, question("x")) == first


async def test_the_last_words_of_an_engine_that_cannot_start_are_in_the_answer() -> None:
    last_words = "import sys; sys.exit('torch.OutOfMemoryError: CUDA out of memory, {port}')"
    async with (
        serving(command=(sys.executable, "-c", last_words)) as proxy,
        aiohttp.ClientSession() as session,
        session.post(proxy.url + "/v1/chat/completions", json={}) as response,
    ):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) == 5
        error = (await response.json())["error"]
        assert "exited with status 1" in error["message"]
        assert "CUDA out of memory" in error["message"]
        assert error["code"] == "wake_failed"


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *CHILL, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=clean_environment(**environment),
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        pytest.param(["--idle-timeout", "0"], {}, ['--idle-timeout: "0"', "such as 5m"], id="a flag"),
        pytest.param([], {"PORT": "http"}, ['PORT: "http"', "from 1 to 65535"], id="a variable"),
        pytest.param(["--", "vllm"], {}, ["add --backend process"], id="a command without its backend"),
        pytest.param(["--backend", "process"], {}, ["needs the command"], id="the backend without its command"),
        pytest.param(["--backend", "process", "--", "vllm"], {}, ["{port}"], id="a command without a port"),
        pytest.param(
            ["--backend", "process", "--readiness", "kubernetes", "--", "x", "{port}"], {}, ["there is no pod"],
            id="a kubelet's word on a command",
        ),
        pytest.param(["--kubeconfig", "/nowhere"], {}, ["/nowhere"], id="a kubeconfig that is not there"),
        pytest.param([], {"HOME": "/nowhere"}, ["demo", "--backend process"], id="no credentials at all"),
        pytest.param(
            ["--backend", "process", "--host", "192.0.2.1", "--", "x", "{port}"], {}, ["cannot listen"],
            id="an address that is not here",
        ),
    ],
)  # fmt: skip
async def test_what_cannot_work_ends_with_status_2_and_one_line(
    arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    code, out, err = await run("serve", *arguments, **environment)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("vllm-chill: ")]
    assert lines == err.splitlines()
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


async def test_the_port_that_kubernetes_writes_for_a_service_called_vllm_is_ignored_with_a_warning() -> None:
    async with serving(command=DEMO_ENGINE, environment={"VLLM_PORT": "tcp://10.0.0.1:80"}) as proxy:
        assert any("VLLM_PORT is ignored" in line["event"] for line in proxy.log)
        assert await ask(proxy.url, question("Hello", model="demo"))


async def test_asleep_its_models_are_those_of_its_command_and_only_a_path_that_wakes_does() -> None:
    command = (*DEMO_ENGINE, "--model", "small")
    async with (
        serving("--wake-paths", "/tokenize", "--shutdown-delay", "0", command=command) as proxy,
        aiohttp.ClientSession(proxy.url) as session,
    ):
        async with session.get("/v1/models") as response:
            [model] = (await response.json())["data"]
            assert (model["id"], model["vllm_chill"]["state"]) == ("small", "asleep")
        async with session.post("/v1/completions", json={"model": "small", "prompt": "x"}) as response:
            assert response.status == 404
        assert (await proxy.status())["phase"] == "asleep"
        async with session.post("/tokenize", json={"model": "small", "prompt": "so it is"}) as response:
            assert (await response.json())["count"] == 3
        async with session.get("/v1/models") as response:
            [model] = (await response.json())["data"]
            assert (model["id"], model["owned_by"]) == ("small", "vllm-chill-demo")
            assert "vllm_chill" not in model


async def test_it_may_open_as_many_files_as_there_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        async with serving(command=DEMO_ENGINE) as proxy:
            limits = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits == (hard, hard)


async def test_version_and_help() -> None:
    assert (await run("version"))[1].startswith("vllm-chill 0.")
    assert (await run("--version"))[1] == (await run("version"))[1]
    code, out, _ = await run("serve", "--help")
    assert code == 0
    assert "--idle-timeout DURATION" in out
    assert "IDLE_TIMEOUT" in out


async def test_status_tells_a_person_and_a_program() -> None:
    async with serving(command=DEMO_ENGINE) as proxy:
        code, out, _ = await run("status", "--url", proxy.url)
        assert code == 0
        assert "asleep" in out
        code, out, _ = await run("status", "--url", proxy.url, "--json")
        assert json.loads(out)["targets"][0]["phase"] == "asleep"
    code, _, err = await run("status", "--url", proxy.url)
    assert code == 3
    assert "--url" in err
    assert "Traceback" not in err
    assert (await run("status", "--url", "nonsense"))[0] == 2
