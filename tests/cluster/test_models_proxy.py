"""`vllm-chill serve --models crd` in front of a real cluster: what its callers get, and what is left of it all."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.models import Models, model
from tests.cluster.serving import CHAT, caller, get
from tests.serving import Serving, serving


def a_proxy(cluster: Cluster, *flags: str) -> AbstractAsyncContextManager[Serving]:
    access = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", cluster.namespace, "--shutdown-delay", "0")
    return serving(*access, "--models", "crd", *flags)


async def chat(
    session: aiohttp.ClientSession, proxy: Serving, name: str | None, tokens: int = 1, *, stream: bool = False
) -> tuple[int, bytes]:
    """One chat request for a model: the status and the body."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": stream}
    if name is not None:
        body["model"] = name
    async with session.post(proxy.url + CHAT, json=body) as response:
        return response.status, await response.read()


async def until_listed(proxy: Serving, *names: str) -> dict[str, str]:
    """The models that the proxy lists with their states, once these are among them."""
    async with asyncio.timeout(30):
        while True:
            status, text = await get(proxy.url + "/v1/models")
            listed = (
                {each["id"]: each["vllm_chill"]["state"] for each in json.loads(text)["data"]} if status == 200 else {}
            )
            if set(names) <= listed.keys():
                return listed
            await asyncio.sleep(0.05)


def pieces(body: bytes) -> int:
    return body.count(b"data: ") - body.count(b"data: [DONE]\n\n")


async def test_a_request_wakes_the_model_that_it_names_and_no_other(cluster: Cluster, models: Models) -> None:
    one, other = models.name("one"), models.name("other")
    await models.create(model(one, aliases=[f"alias-{one}"]))
    await models.create(model(other))
    async with a_proxy(cluster, "--idle-timeout", "2s") as proxy, caller() as session:
        await until_listed(proxy, one, other)
        await models.until_phase(one, "Asleep")
        assert set((await until_listed(proxy, one, other)).values()) == {"asleep"}
        assert (await chat(session, proxy, f"alias-{one}"))[0] == 404  # the stub knows one name only
        assert (await chat(session, proxy, one))[0] == 200
        assert (await models.columns(one))["Status"] in {"Ready", "Waking"}
        await models.until_phase(one, "Ready")
        assert (await models.columns(other))["Status"] == "Asleep"
        status, body = await chat(session, proxy, "nobody")
        assert status == 404
        assert one.encode() in body
        assert other.encode() in body
        assert (await chat(session, proxy, None))[0] == 400
        await models.until_phase(one, "Asleep")
        assert await models.pods(other) == []


async def test_a_switch_under_twenty_streams_cuts_none(cluster: Cluster, models: Models) -> None:
    one, other = models.name("one"), models.name("other")
    # Twenty streams of 2 s each, one behind another's back for long enough that the switch is asked for under all.
    for name in (one, other):
        await models.create(model(name, group="shared", maxNumSeqs=32))
    quick = ("--min-residency", "1s", "--max-switch-wait", "2s")
    async with a_proxy(cluster, *quick) as proxy, caller() as session:
        await until_listed(proxy, one, other)
        assert (await chat(session, proxy, one))[0] == 200
        streams = [asyncio.create_task(chat(session, proxy, one, 300, stream=True)) for _ in range(20)]
        await asyncio.sleep(1)
        wanted = asyncio.create_task(chat(session, proxy, other))
        await models.until_phase(other, "Queued")
        assert (await models.columns(one))["Status"] in {"Ready", "Draining"}
        bodies = await asyncio.gather(*streams)
        assert {status for status, _ in bodies} == {200}
        assert {pieces(body) for _, body in bodies} == {max(pieces(body) for _, body in bodies)}
        assert all(body.endswith(b"data: [DONE]\n\n") for _, body in bodies)
        assert min(pieces(body) for _, body in bodies) >= 300
        assert (await wanted)[0] == 200
        await models.until_phase(one, "Asleep")


@pytest.mark.slow
async def test_two_clients_that_take_turns_do_not_spend_the_gpus_on_loading(cluster: Cluster, models: Models) -> None:
    names = [models.name("one"), models.name("other")]
    for name in names:
        await models.create(model(name, group="shared"))
    async with a_proxy(cluster, "--min-residency", "10s", "--max-switch-wait", "60s") as proxy, caller() as session:
        await until_listed(proxy, *names)
        until = asyncio.get_running_loop().time() + 60

        async def ask(name: str) -> list[int]:
            statuses = []
            while asyncio.get_running_loop().time() < until:
                statuses.append((await chat(session, proxy, name, 2))[0])
            return statuses

        answers = await asyncio.gather(*map(ask, names))
        assert {status for statuses in answers for status in statuses} == {200}
        assert all(len(statuses) > 10 for statuses in answers)
        written = [(await models.deployment(name))["metadata"]["generation"] for name in names]
        # Each wake and each sleep is one write; a minute has room for six stays of ten seconds.
        assert sum(generation // 2 for generation in written) <= 7


async def test_who_waits_for_a_model_that_is_deleted_is_told(cluster: Cluster, models: Models) -> None:
    name = models.name("gone")
    await models.create(model(name, load_seconds=60))
    async with a_proxy(cluster) as proxy, caller() as session:
        await until_listed(proxy, name)
        waiting = asyncio.create_task(chat(session, proxy, name))
        await models.until_phase(name, "Waking")
        await models.delete(name)
        status, body = await waiting
        assert status == 404
        assert b"model_not_found" in body
        assert b"was deleted" in body
        await models.until(name, lambda item: item is None)
        await cluster.until("/api/v1", "pods", lambda pods: not pods)
        await cluster.until("/apis/apps/v1", "deployments", lambda items: not items)
        assert (await chat(session, proxy, name))[0] == 404


async def test_a_model_that_has_just_been_applied_can_be_asked_at_once(cluster: Cluster, models: Models) -> None:
    name = models.name("new")
    async with a_proxy(cluster) as proxy, caller() as session:
        await proxy.until_logged("listening")
        await models.create(model(name))
        await until_listed(proxy, name)
        assert (await chat(session, proxy, name))[0] == 200


async def test_an_edit_under_a_stream_waits_for_its_end(cluster: Cluster, models: Models) -> None:
    name = models.name("busy")
    await models.create(model(name))
    async with a_proxy(cluster) as proxy, caller() as session:
        await until_listed(proxy, name)
        assert (await chat(session, proxy, name))[0] == 200
        [before] = await models.pods(name)
        stream = asyncio.create_task(chat(session, proxy, name, 200, stream=True))
        await asyncio.sleep(0.5)
        await models.change(name, {"spec": {"maxModelLen": 1024}})
        await models.until_condition(name, "UpToDate", "False", "WaitsForIdle")
        assert not stream.done()
        assert [pod["metadata"]["uid"] for pod in await models.pods(name)] == [before["metadata"]["uid"]]
        status, body = await stream
        assert (status, pieces(body) >= 200, body.endswith(b"data: [DONE]\n\n")) == (200, True, True)
        await models.until_condition(name, "UpToDate", "True", "Applied")
        assert (await chat(session, proxy, name))[0] == 200
        [after] = await models.pods(name)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_a_proxy_that_is_killed_is_followed_by_one_that_adopts_what_runs(
    cluster: Cluster, models: Models
) -> None:
    name = models.name("kept")
    quick = ("--lease-duration", "3s")  # what was served by one that is killed is waited for
    await models.create(model(name))
    async with caller() as session:
        async with a_proxy(cluster, *quick) as proxy:
            await until_listed(proxy, name)
            assert (await chat(session, proxy, name))[0] == 200
            await models.until_phase(name, "Ready")
            [pod] = await models.pods(name)
            generation = (await models.deployment(name))["metadata"]["generation"]
            await proxy.stop(signal.SIGKILL)
        assert (await models.columns(name))["Status"] == "Ready"
        async with a_proxy(cluster, "--idle-timeout", "3s", *quick) as proxy:
            assert (await until_listed(proxy, name))[name] in {"ready", "waking", "unknown"}
            assert (await chat(session, proxy, name))[0] == 200
            assert [each["metadata"]["uid"] for each in await models.pods(name)] == [pod["metadata"]["uid"]]
            assert (await models.deployment(name))["metadata"]["generation"] == generation
            await models.until_phase(name, "Asleep")
            assert (await models.columns(name))["Status"] == "Asleep"
