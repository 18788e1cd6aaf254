"""LoRA adapters that are loaded on demand, over real sockets and with vLLM's own answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.proxy.wire import upstream_of
from tests.scenarios.stage import models_stage
from tests.scenarios.test_models import CHAT, B, answer, connected, entry, named, post
from vllm_chill.core.catalogue import Adapter, Catalogue, ModelEntry
from vllm_chill.core.target import Observation

SQL, LAW = Adapter("sql", "/adapters/sql"), Adapter("law", "org/law")
A = entry("a", adapters=(SQL, LAW), loads_adapters=True)
LOADED = {"lora_name": "sql", "lora_path": "/adapters/sql"}


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def refusing(status: int, message: str, kind: str = "InternalServerError") -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def test_one_is_loaded_once_for_all_who_wait_for_it(fast: bool) -> None:
    async with models_stage(A, B, awake=False, fast=fast) as s:
        engine = s.of["a"].engine
        engine.load_seconds = 0.1
        answers = await asyncio.gather(*(s.chat(name) for name in ["sql", "law", "org/a", "org/b"] * 10))
        assert Counter(body["at"] for _, body in answers) == {"a": 30, "b": 10}
        assert sorted(asked["lora_name"] for asked in engine.loads) == ["law", "sql"]
        assert engine.adapters == {"sql": "/adapters/sql", "law": "org/law"}
        assert not s.of["b"].engine.loads
        for _ in range(5):
            assert (await s.chat("sql"))[0] == 200
        assert len(engine.loads) == 2


async def test_what_a_replica_had_goes_with_it(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        one = s.of["a"]
        assert (await s.chat("sql"))[0] == 200
        await one.controller.stop()
        one.engine.adapters.clear()
        assert (await s.chat("sql"))[0] == 200
        assert one.engine.loads == [LOADED, LOADED]


async def test_each_replica_has_its_own(fast: bool) -> None:
    async with models_stage(A, entry("other"), fast=fast) as s:
        both = [one.backend.endpoint for one in s.of.values()]
        s.of["a"].controller.observed(Observation(2, 2, tuple(both)))
        leases = [s.of["a"].controller.lease_now()]
        for _ in range(2):
            assert (await s.chat("sql"))[0] == 200
        leases[0].release() if leases[0] is not None else None
        for _ in range(2):
            assert (await s.chat("sql"))[0] == 200
        assert [one.engine.loads for one in s.of.values()] == [[LOADED], [LOADED]]


async def test_one_that_the_engine_has_already_counts_as_loaded(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        s.of["a"].engine.adapters["sql"] = "/adapters/sql"
        for _ in range(3):
            assert (await s.chat("sql"))[0] == 200
        assert s.of["a"].engine.loads == [LOADED]


async def test_other_weights_take_the_place_of_those_before(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        assert (await s.chat("sql"))[0] == 200
        newer = replace(A, adapters=(Adapter("sql", "/adapters/sql-2"),))
        s.directory.replace(Catalogue([newer, B]), [replace(s.of["a"].served, entry=newer), s.of["b"].served])
        for _ in range(2):
            assert (await s.chat("sql"))[0] == 200
        assert s.of["a"].engine.adapters == {"sql": "/adapters/sql-2"}
        assert len(s.of["a"].engine.loads) == 2
        assert (await s.chat("law"))[0] == 404


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        pytest.param(refusing(404, "No adapter found for /adapters/sql."), "No adapter found", id="no such weights"),
        pytest.param(refusing(500, "LoRA rank 64 is greater than max_lora_rank 16."), "rank 64", id="a rank too high"),
        pytest.param((404, {"detail": "Not Found"}), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", id="no such route"),
        pytest.param((500, {}), "status 500", id="no words"),
    ],
)
async def test_one_that_cannot_be_loaded_is_told_in_the_engines_words(
    fast: bool, refusal: tuple[int, dict[str, Any]], words: str
) -> None:
    async with models_stage(A, B, fast=fast) as s:
        engine = s.of["a"].engine
        engine.refusal = refusal
        client = await connected(s)
        for _ in range(2):
            await client.send(post(named("sql")))
            status, body = await answer(client)
            assert (status, body["error"]["code"]) == (502, "adapter_failed")
            assert words in body["error"]["message"]
        await client.send(post(named("org/a")))
        assert (await answer(client))[0] == 200
        engine.refusal = None
        await client.send(post(named("sql")))
        assert (await answer(client))[0] == 200
        assert [hit for hit, _ in engine.hits] == [f"POST {CHAT}"] * 2
        client.reset()
        await s.until(lambda: s.at_rest)


async def test_an_engine_that_refuses_the_callers_key_says_so_itself(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        engine = s.of["a"].engine
        engine.refusal = 401, {"error": "Unauthorized"}
        headers = {"Authorization": "Bearer wrong"}
        assert (await s.post(CHAT, json={"model": "sql"}, headers=headers))[0] == 200  # this engine's own answer
        engine.refusal = None
        assert (await s.post(CHAT, json={"model": "sql"}, headers={"Authorization": "Bearer right"}))[0] == 200
        assert engine.loads == [LOADED, LOADED]


async def test_the_engine_is_asked_with_the_callers_key(fast: bool) -> None:
    seen: list[bytes] = []

    async def script(peer: Any) -> None:
        while True:
            head, _ = await peer.request()
            seen.append(head)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with upstream_of(script) as upstream, models_stage(A, B, fast=fast) as s:
        s.of["a"].controller.observed(Observation(1, 1, (upstream.endpoint,)))
        await s.post(CHAT, json={"model": "sql"}, headers={"Authorization": "Bearer k"})
        assert [head.split(b" ")[1] for head in seen] == [b"/v1/load_lora_adapter", CHAT.encode()]
        assert b"\r\nAuthorization: Bearer k\r\n" in seen[0]


async def test_one_who_leaves_while_it_is_loaded_takes_it_from_nobody(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        s.of["a"].engine.load_seconds = 0.2
        leaves = await connected(s)
        await leaves.send(post(named("sql")))
        await s.until(lambda: len(s.of["a"].engine.loads) == 1)
        stays = asyncio.create_task(s.chat("sql"))
        await asyncio.sleep(0.02)
        leaves.reset()
        assert (await stays)[0] == 200
        assert s.of["a"].engine.loads == [LOADED]
        await s.until(lambda: s.at_rest)


async def test_a_replica_that_dies_while_it_loads_costs_no_request(fast: bool) -> None:
    async def dies(peer: Any) -> None:
        await peer.request()

    async with upstream_of(dies) as ill, models_stage(A, B, fast=fast) as s:
        well = s.of["a"].backend.endpoint
        s.of["a"].controller.observed(Observation(2, 2, (ill.endpoint, well)))
        assert (await s.chat("sql"))[0] == 200
        assert s.of["a"].engine.loads == [LOADED]


async def test_a_large_request_waits_for_its_adapter_too(fast: bool) -> None:
    async with models_stage(A, B, fast=fast, replay_bytes=1000) as s:
        body = named("sql", 100_000)
        client = await connected(s)
        await client.send(post(body))
        assert (await answer(client))[1] == {"at": "a", "size": len(body)}
        assert s.of["a"].engine.loads == [LOADED]
        client.reset()


async def test_a_websocket_waits_for_its_adapter_too(fast: bool) -> None:
    async with models_stage(A, B, fast=fast) as s:
        async with s.session.ws_connect(s.url + "/v1/realtime?model=sql") as socket:
            assert await socket.receive_str() == "a"
        assert s.of["a"].engine.loads == [LOADED]


async def test_those_that_come_with_the_engine_are_not_loaded(fast: bool) -> None:
    with_it: ModelEntry = replace(A, loads_adapters=False)
    async with models_stage(with_it, B, fast=fast) as s:
        assert (await s.chat("sql"))[0] == 200
        assert not s.of["a"].engine.loads
