"""`vllm-chill serve --models crd` with what the predecessor's users have, and as kubectl shows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.models import Models, model
from tests.cluster.serving import CHAT, caller
from tests.serving import Serving, serving

EXAMPLES = Path(__file__).parents[2] / "deploy" / "example" / "models"


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
