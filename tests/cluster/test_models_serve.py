"""`vllm-chill serve --models crd` as users run it: by name, through the door, on a real API server with real pods."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.models import Models, install_crd, model
from tests.cluster.serving import CHAT, caller
from tests.serving import Serving, serving

EXAMPLES = Path(__file__).parents[2] / "deploy" / "example" / "models"


@pytest.fixture
async def models(cluster: Cluster) -> AsyncIterator[Models]:
    """A cluster that knows models, without any."""
    await install_crd(cluster.api)
    models = Models(cluster)
    try:
        yield models
    finally:
        await models.clean()


class Door:
    """A proxy of all models of a cluster, and a caller of it."""

    def __init__(self, proxy: Serving, session: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.session = session

    async def ask(self, name: str | None, tokens: int = 1) -> tuple[int, dict[str, Any]]:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
        if name is not None:
            body["model"] = name
        async with self.session.post(self.proxy.url + CHAT, json=body) as response:
            return response.status, json.loads(await response.read())

    async def stream(self, name: str, tokens: int) -> int:
        """The pieces of a streamed answer; an answer that is cut raises."""
        body = {"model": name, "messages": [], "max_tokens": tokens, "stream": True}
        async with self.session.post(self.proxy.url + CHAT, json=body) as response:
            assert response.status == 200
            text = (await response.read()).decode()
        assert text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in text
        return text.count("data: ") - 1

    async def phases(self) -> dict[str, str]:
        async with self.session.get(self.proxy.url + "/proxy/status") as response:
            return {target["model"]: target["phase"] for target in (await response.json())["targets"]}

    async def until(self, name: str, phase: str, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while (await self.phases()).get(name) != phase:  # noqa: ASYNC110 - as a user would
                await asyncio.sleep(0.05)


@asynccontextmanager
async def door(cluster: Cluster, *flags: str) -> AsyncIterator[Door]:
    access = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", cluster.namespace, "--models", "crd")
    async with serving(*access, "--shutdown-delay", "0", *flags) as proxy, caller() as session:
        async with asyncio.timeout(20):
            while True:
                async with session.get(proxy.url + "/readyz") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.05)
        yield Door(proxy, session)


def grouped(name: str, **spec: Any) -> dict[str, Any]:
    return model(name, group="gpu", **spec)


async def test_the_example_models_are_woken_by_their_names(cluster: Cluster, models: Models) -> None:
    served = []
    async with door(cluster, "--min-residency", "0") as here:
        for file in sorted(EXAMPLES.glob("*-*.yaml")):
            item = yaml.safe_load(file.read_text())
            served.append(item["spec"]["servedModelName"])
            await models.create(item)
            await here.until(item["metadata"]["name"], "asleep")
        for name in served:
            status, answer = await here.ask(name)
            assert (status, answer["model"]) == (200, name)
        status, answer = await here.ask("nobody")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert all(name in answer["error"]["message"] for name in served)
        async with here.session.get(here.proxy.url + "/v1/models") as response:
            cards = {card["id"]: card["vllm_chill"]["state"] for card in (await response.json())["data"]}
        assert set(cards) >= set(served)


async def test_a_switch_under_twenty_streams_cuts_none(cluster: Cluster, models: Models) -> None:
    one, other = models.name("one"), models.name("other")
    await models.create(grouped(one))
    await models.create(grouped(other))
    async with door(cluster, "--min-residency", "0", "--max-switch-wait", "0") as here:
        await here.until(other, "asleep")
        await here.ask(one)
        streams = [asyncio.create_task(here.stream(one, 400)) for _ in range(20)]
        await asyncio.sleep(1)
        status, answer = await here.ask(other)
        assert (status, answer["model"]) == (200, other)
        assert all(stream.done() for stream in streams)
        assert set(await asyncio.gather(*streams)) == {max(stream.result() for stream in streams)}
        await models.until_phase(other, "Ready")
        assert await models.pods(one) == []


@pytest.mark.slow
async def test_two_clients_that_take_turns_for_a_minute(cluster: Cluster, models: Models) -> None:
    one, other = models.name("one"), models.name("other")
    await models.create(grouped(one))
    await models.create(grouped(other))
    seconds, residency = 60, 10
    async with door(cluster, "--min-residency", f"{residency}s") as here:
        await here.until(other, "asleep")
        end = asyncio.get_running_loop().time() + seconds
        counts = {one: 0, other: 0}

        async def client(name: str) -> None:
            while asyncio.get_running_loop().time() < end:
                status, answer = await here.ask(name)
                assert status == 200, answer
                counts[name] += 1
                await asyncio.sleep(0.05)

        await asyncio.gather(client(one), client(other))
        wakes = sum(line["event"] == "ready" for line in here.proxy.log)
        assert min(counts.values()) >= 20
        assert 3 <= wakes <= 2 + seconds / residency


async def test_an_edit_while_it_answers_replaces_it_only_then(cluster: Cluster, models: Models) -> None:
    name = models.name("edited")
    await models.create(model(name))
    async with door(cluster) as here:
        await here.until(name, "asleep")
        await here.ask(name)
        [before] = await models.pods(name)
        stream = asyncio.create_task(here.stream(name, 250))
        await asyncio.sleep(0.5)
        await models.change(name, {"spec": {"maxModelLen": 1024}})
        await models.until_condition(name, "UpToDate", "False", "WaitsForIdle")
        assert (await here.ask(name))[0] == 200, "others are answered meanwhile"
        await stream
        await models.until_condition(name, "UpToDate", "True", "Applied")
        assert (await here.ask(name))[0] == 200
        [after] = await models.pods(name)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert "1024" in after["spec"]["containers"][0]["args"]


async def test_who_waits_for_a_model_that_is_deleted_is_told(cluster: Cluster, models: Models) -> None:
    name = models.name("deleted")
    await models.create(model(name, load_seconds=60))
    async with door(cluster) as here:
        await here.until(name, "asleep")
        asking = asyncio.create_task(here.ask(name))
        await here.until(name, "waking")
        await models.delete(name)
        status, answer = await asyncio.wait_for(asking, 10)
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert "was deleted" in answer["error"]["message"]
        await models.until(name, lambda item: item is None)
        await cluster.until("/api/v1", "pods", lambda items: not items)
        assert (await here.ask(name))[0] == 404


async def test_a_proxy_that_is_killed_leaves_what_runs_and_the_next_one_goes_on(
    cluster: Cluster, models: Models
) -> None:
    name, asleep = models.name("kept"), models.name("asleep")
    await models.create(model(name))
    await models.create(model(asleep))
    async with door(cluster) as here:
        await here.until(asleep, "asleep")
        await here.ask(name)
        await models.until_phase(name, "Ready")
        before = [(await models.deployment(one))["metadata"]["generation"] for one in (name, asleep)]
        [pod] = await models.pods(name)
        await here.proxy.stop(signal.SIGKILL)
    async with door(cluster) as here:
        assert (await here.phases())[name] in {"waking", "ready"}
        assert (await here.ask(name))[0] == 200
        await asyncio.sleep(1)
        assert [(await models.deployment(one))["metadata"]["generation"] for one in (name, asleep)] == before
        assert [one["metadata"]["uid"] for one in await models.pods(name)] == [pod["metadata"]["uid"]]


async def test_kubectl_shows_the_phase_that_it_is_in(cluster: Cluster, models: Models) -> None:
    name = models.name("shown")
    await models.create(model(name, load_seconds=3))
    async with door(cluster, "--idle-timeout", "3s") as here:
        shown: list[str] = []

        async def watch() -> None:
            while True:
                status = (await models.columns(name))["Status"]
                if status and (not shown or shown[-1] != status):
                    shown.append(status)
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        await here.until(name, "asleep")
        await models.until_phase(name, "Asleep")
        await here.ask(name)
        await models.until_phase(name, "Ready")
        await models.until_phase(name, "Asleep")
        await asyncio.sleep(0.3)
        watching.cancel()
        passing = {"Unknown", "Draining"}
        assert [phase for phase in shown if phase not in passing] == ["Asleep", "Waking", "Ready", "Asleep"]


async def test_with_the_model_id_alone_the_models_are_served_as_by_the_predecessor(
    cluster: Cluster, models: Models
) -> None:
    name = models.name("only")
    await models.create(model(name))
    access = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", cluster.namespace, "--shutdown-delay", "0")
    async with serving(*access, environment={"MODEL_ID": name}) as proxy, caller() as session:
        here = Door(proxy, session)
        await here.until(name, "asleep")
        status, answer = await here.ask(None)
        assert (status, answer["model"]) == (200, name)
