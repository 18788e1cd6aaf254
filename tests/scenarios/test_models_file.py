"""Several models on one machine, as a user runs them: `vllm-chill serve --backend process --models FILE`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.serving import CHILL, Serving, clean_environment, serving


@dataclass
class Door:
    """A proxy with several models, and hands to talk to it."""

    proxy: Serving
    session: aiohttp.ClientSession

    async def ask(self, model: str | None, tokens: int = 2, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, **fields}
        if model is not None:
            body["model"] = model
        async with self.session.post(self.proxy.url + "/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    async def stream(self, model: str, tokens: int) -> list[str]:
        """The pieces of a streamed answer; an answer that is cut raises."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "repeat"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        async with self.session.post(self.proxy.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200
            text = await response.text()
        pieces = [line[6:].strip() for line in text.splitlines() if line.startswith("data: ")]
        assert pieces[-1] == "[DONE]"
        assert not any('"error"' in piece for piece in pieces)
        return pieces

    async def get(self, path: str) -> Any:
        async with self.session.get(self.proxy.url + path) as response:
            return await response.json()

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.post(self.proxy.url + path, json=body) as response:
            return response.status, await response.json()

    async def phases(self) -> dict[str, str]:
        targets = (await self.get("/proxy/status"))["targets"]
        return {target["target"].partition("/")[2]: target["phase"] for target in targets}


def model(name: str, **fields: Any) -> dict[str, Any]:
    engine = [sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}", "--load-seconds", "0.1"]
    command = [*engine, "--model", name, "--tokens-per-second", "100"]
    return {"modelName": f"org/{name}", "servedModelName": name, "command": command, **fields}


@contextlib.asynccontextmanager
async def door(folder: Path, models: dict[str, dict[str, Any]], *flags: str) -> AsyncIterator[Door]:
    path = folder / "models.yaml"
    path.write_text(json.dumps({"models": models}))  # JSON is YAML
    async with (
        serving("--backend", "process", "--models", str(path), *flags) as proxy,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Door(proxy, session)


async def test_a_request_wakes_the_model_that_it_names_and_no_other(tmp_path: Path) -> None:
    async with door(tmp_path, {"a": model("alpha", aliases=["first"]), "b": model("beta")}) as here:
        status, answer = await here.ask("beta")
        assert (status, answer["model"]) == (200, "beta")
        assert await here.phases() == {"a": "asleep", "b": "ready"}
        listed = {card["id"]: card["vllm_chill"]["state"] for card in (await here.get("/v1/models"))["data"]}
        assert listed["alpha"] == "asleep"
        assert listed["beta"] == "ready"


async def test_an_unknown_name_is_told_those_there_are_and_wakes_nothing(tmp_path: Path) -> None:
    async with door(tmp_path, {"a": model("alpha"), "b": model("beta")}) as here:
        status, answer = await here.ask("gamma")
        assert status == 404
        assert answer["error"]["code"] == "model_not_found"
        assert "alpha, beta" in answer["error"]["message"]
        status, answer = await here.ask(None)
        assert status == 400
        assert set((await here.phases()).values()) == {"asleep"}


async def test_requests_that_name_none_go_to_the_model_id(tmp_path: Path) -> None:
    async with door(tmp_path, {"a": model("alpha"), "b": model("beta")}, "--model-id", "beta") as here:
        assert (await here.ask(None))[0] == 200
        assert await here.phases() == {"a": "asleep", "b": "ready"}


async def test_a_switch_under_twenty_streams_cuts_none(tmp_path: Path) -> None:
    models = {"a": model("alpha", group="gpu"), "b": model("beta", group="gpu")}
    async with door(tmp_path, models, "--min-residency", "0", "--max-switch-wait", "0") as here:
        assert (await here.ask("alpha"))[0] == 200
        streams = [asyncio.create_task(here.stream("alpha", 200)) for _ in range(20)]
        await asyncio.sleep(0.5)
        status, answer = await here.ask("beta")
        assert (status, answer["model"]) == (200, "beta")
        assert all(stream.done() for stream in streams), "it was woken beside the streams of the other one"
        for pieces in await asyncio.gather(*streams):
            assert sum('"content"' in piece for piece in pieces) >= 190
        assert await here.phases() == {"a": "asleep", "b": "ready"}


@pytest.mark.slow
async def test_two_clients_that_take_turns_see_no_error_and_few_switches(tmp_path: Path) -> None:
    models = {"a": model("alpha", group="gpu"), "b": model("beta", group="gpu")}
    async with door(tmp_path, models, "--min-residency", "2s") as here:
        end = asyncio.get_running_loop().time() + 7
        counts = {"alpha": 0, "beta": 0}

        async def client(name: str) -> None:
            while asyncio.get_running_loop().time() < end:
                status, answer = await here.ask(name, tokens=1)
                assert status == 200, answer
                counts[name] += 1
                await asyncio.sleep(0.02)

        await asyncio.gather(client("alpha"), client("beta"))
        assert min(counts.values()) > 5
        wakes = sum(line["event"] == "ready" for line in here.proxy.log)
        assert 2 <= wakes <= 2 + 7 / 2


async def test_each_model_has_an_idle_time_of_its_own(tmp_path: Path) -> None:
    models = {"a": model("alpha", idleTimeout="200ms"), "b": model("beta"), "c": model("gamma", minReplicas=1)}
    async with door(tmp_path, models) as here:
        await asyncio.gather(here.ask("alpha"), here.ask("beta"))
        async with asyncio.timeout(20):
            while await here.phases() != {"a": "asleep", "b": "ready", "c": "ready"}:  # noqa: ASYNC110 - as a user
                await asyncio.sleep(0.05)


async def test_a_budget_puts_the_unused_one_to_sleep(tmp_path: Path) -> None:
    models = {name: model(name, gpuCount=1) for name in ("x", "y", "z")} | {"vast": model("vast", gpuCount=4)}
    async with door(tmp_path, models, "--gpu-budget", "2", "--min-residency", "0") as here:
        for name in ("x", "y", "z"):
            assert (await here.ask(name))[0] == 200
        assert await here.phases() == {"x": "asleep", "y": "ready", "z": "ready", "vast": "asleep"}
        status, answer = await here.ask("vast")
        assert status == 503
        assert "needs 4 GPUs, and --gpu-budget has 2" in answer["error"]["message"]


async def test_a_switch_by_hand(tmp_path: Path) -> None:
    models = {"a": model("alpha", group="gpu"), "b": model("beta", group="gpu")}
    async with door(tmp_path, models, "--model-id", "alpha") as here:
        assert (await here.ask(None))[1]["model"] == "alpha"
        status, answer = await here.post("/proxy/models/switch?wait=true", {"model_id": "beta"})
        assert (status, answer["active_model"]) == (200, "beta")
        assert await here.phases() == {"a": "asleep", "b": "asleep"}
        assert (await here.ask(None))[1]["model"] == "beta"
        status, _ = await here.post("/proxy/models/switch?wait=true", {"model_id": "alpha", "wake": True})
        assert status == 200
        assert (await here.phases())["a"] == "ready"
        assert (await here.post("/proxy/models/switch", {"model_id": "gamma"}))[0] == 404


async def test_a_file_that_cannot_be_used_ends_the_program_with_a_line_for_each_mistake(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: {a: {maxModelLen: 0}, b: {modelName: m, servedModelName: b, command: [engine]}}")
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--backend", "process", "--models", str(path), "--port", "0",
        stderr=asyncio.subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    lines = errors.decode().splitlines()
    assert process.returncode == 2
    assert len(lines) >= 3
    assert all(line.startswith("vllm-chill: --models ") for line in lines)


async def test_a_model_id_that_is_nobodys_is_told_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"models": {"a": model("alpha"), "b": model("beta")}}))
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--backend", "process", "--models", str(path), "--model-id", "gamma", "--port", "0",
        stderr=asyncio.subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert '--model-id: "gamma" is none of the models' in errors.decode().splitlines()[-1]
    assert errors.decode().endswith("give one of alpha, beta\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--backend", "process", "--models", "m.yaml", "--gpu-stats-url", "dcgm:9400"), "an http or https URL"),
        (("--backend", "process", "--models", "crd"), "give the path of a YAML file"),
        (("--models", "models.yaml"), "add --backend process"),
        (("--backend", "process", "--model-id", "a"), "give them with --models FILE"),
        (("--backend", "process", "--models", "m.yaml", "--", "engine", "{port}"), "give the command in that file"),
    ],
    ids=["no URL", "objects without a cluster", "a file with a cluster", "a choice of one", "a command too"],
)
async def test_settings_that_do_not_fit_together_are_refused(flags: tuple[str, ...], words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", *flags, stderr=asyncio.subprocess.PIPE, env=clean_environment()
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert words in errors.decode()
