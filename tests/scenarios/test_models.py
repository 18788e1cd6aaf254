"""Several models behind one door, over real sockets: each request finds its own, whichever way it takes."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from tests.proxy.wire import Peer
from tests.scenarios.stage import Models, envelope, models_stage
from vllm_chill.core.catalogue import Adapter, Catalogue, ModelEntry
from vllm_chill.core.target import TargetRef

CHAT = "/v1/chat/completions"
AUDIO = "/v1/audio/transcriptions"
KEPT = 1000
MIB = 1 << 20
JSON = {"Content-Type": "application/json"}


def entry(name: str, **more: Any) -> ModelEntry:
    return ModelEntry(name, TargetRef("test", name), f"org/{name}", f"org/{name}", **more)


A = entry("a", aliases=("gpt-4o",), adapters=(Adapter("a-sql", "/adapters/sql"), Adapter("a-law", "/adapters/law")))
LOADING = replace(A, loads_adapters=True)
B = entry("b")
REWRITES = entry("c", rewrites_tool_calls=True)


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def post(body: bytes, path: str = CHAT, *fields: bytes, kind: bytes = b"application/json") -> bytes:
    lines = b"".join(field + b"\r\n" for field in (b"Host: a", b"Content-Type: " + kind, *fields))
    return b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), lines, len(body), body)


def named(model: str, size: int = 0, *, first: bool = True) -> bytes:
    name, filling = b'"model": "%b"' % model.encode(), b'"messages": "%b"' % (b"m" * size)
    return b"{" + b", ".join((name, filling) if first else (filling, name)) + b"}"


async def connected(s: Models) -> Peer:
    return Peer(*await asyncio.open_connection(*s.address))


async def answer(client: Peer) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(5):
        head, body = await client.response()
    return int(head.split(b" ")[1]), json.loads(body)


class TestTheNameDecides:
    @pytest.mark.parametrize(
        ("model", "at"),
        [("org/a", "a"), ("gpt-4o", "a"), ("a-sql", "a"), ("a", "a"), ("org/b", "b"), ("b", "b")],
        ids=["served name", "alias", "adapter", "the object's own name", "another model", "its object's own name"],
    )
    async def test_a_name_of_whatever_kind_wakes_its_own_model_alone(self, fast: bool, model: str, at: str) -> None:
        async with models_stage(A, B, awake=False, fast=fast) as s:
            body = named(model, 100)
            status, answered = await s.post(CHAT, data=BytesIO(body), headers=JSON)
            assert (status, answered["at"]) == (200, at)
            assert s.of[at].engine.hits == [(f"POST {CHAT}", body)]
            assert s.of["b" if at == "a" else "a"].is_asleep

    async def test_one_that_is_unknown_is_told_with_those_there_are_and_wakes_nothing(self, fast: bool) -> None:
        for awake in (False, True):
            async with models_stage(A, B, awake=awake, fast=fast) as s:
                status, body = await s.chat("gpt-9")
                assert (status, body["error"]["code"]) == (404, "model_not_found")
                assert body["error"]["message"] == 'The model "gpt-9" does not exist; known: org/a, org/b.'
                assert awake or all(one.is_asleep for one in s.of.values())
                assert not any(one.engine.hits for one in s.of.values())
                # The connection is as good as before.
                assert (await s.chat("org/a"))[1]["at"] == "a"

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b'{"messages": []}', 'names no model; say one in "model"'),
            (b'{"model": null}', "names no model"),
            (b'{"model": ""}', "org/a, org/b"),
            (b'{"model": 5}', "not a string"),
            (b'["org/a"]', "not an object"),
            (b'{"model": "org/a"', "not JSON"),
        ],
    )
    async def test_where_a_model_has_to_be_named_a_request_that_names_none_is_told_so(
        self, fast: bool, body: bytes, words: str
    ) -> None:
        async with models_stage(A, B, fast=fast) as s:
            client = await connected(s)
            await client.send(post(body) + post(named("org/a")))
            status, answered = await answer(client)
            assert status == 400
            assert words in answered["error"]["message"]
            assert (await answer(client))[1]["at"] == "a"
            client.reset()

    async def test_the_default_is_for_those_that_name_none(self, fast: bool) -> None:
        async with models_stage(A, B, default="org/b", fast=fast) as s:
            for body in ({}, {"model": None}, {"model": ""}):
                assert (await s.post(CHAT, json=body))[1]["at"] == "b"
            assert (await s.post(CHAT, json=["not a call"]))[0] == 400
            gzipped = gzip.compress(named("org/a"))
            headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            assert (await s.post(CHAT, data=gzipped, headers=headers))[1]["at"] == "b"
            assert (await s.post(CHAT + "?model=org%2Fa", data=gzipped, headers=headers))[1]["at"] == "a"

    async def test_a_default_may_be_an_objects_own_name(self, fast: bool) -> None:
        async with models_stage(A, B, default="b", fast=fast) as s:
            assert (await s.post(CHAT, json={}))[1]["at"] == "b"

    async def test_where_there_is_one_model_it_need_not_be_named(self, fast: bool) -> None:
        async with models_stage(B, fast=fast) as s:
            assert (await s.post(CHAT, json={}))[1]["at"] == "b"
            assert (await s.chat("org/a"))[0] == 404

    async def test_requests_without_a_body_go_by_their_query_or_to_the_default(self, fast: bool) -> None:
        async with models_stage(A, B, default="a", fast=fast) as s:
            for path, at in (("/v1/responses/r1", "a"), ("/v1/responses/r1?model=org%2Fb", "b")):
                for method in ("GET", "DELETE"):
                    async with s.session.request(method, s.url + path) as response:
                        assert (await response.json())["at"] == at
        async with models_stage(A, B, fast=fast) as s, s.session.get(s.url + "/v1/responses/r1") as response:
            assert response.status == 400
            assert "names no model" in envelope(await response.read())["message"]

    async def test_a_websocket_goes_by_its_query(self, fast: bool) -> None:
        async with models_stage(A, B, default="a", awake=False, fast=fast) as s:
            for query, at in (("?model=b", "b"), ("", "a")):
                async with s.session.ws_connect(s.url + "/v1/realtime" + query) as socket:
                    assert await socket.receive_str() == at
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await s.session.ws_connect(s.url + "/v1/realtime?model=no")
            assert error.value.status == 404


class TestOneConnection:
    async def test_requests_that_take_turns_each_reach_their_own(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast) as s:
            client = await connected(s)
            for number in range(10):
                model = "ab"[number % 2]
                await client.send(post(named(f"org/{model}", number)))
                assert (await answer(client))[1]["at"] == model
            client.reset()
            assert [len(one.engine.hits) for one in s.of.values()] == [5, 5]
            if fast:
                assert s.metrics.requests.proxied.by_answer == {("POST", 200): 10}

    async def test_requests_in_one_piece_are_answered_in_their_order(self, fast: bool) -> None:
        async with models_stage(A, B, REWRITES, fast=fast) as s:
            client = await connected(s)
            order = ["a", "b", "b", "a", "nobody", "b", "c", "a", "c", "b"]
            await client.send(b"".join(post(named(model)) for model in order))
            for model in order:
                status, body = await answer(client)
                assert status == 404 if model == "nobody" else body["at"] == model
            client.reset()

    async def test_a_body_may_come_in_any_two_pieces(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast) as s:
            client = await connected(s)
            for model in "ab":
                request = post(b'{"x": {"model": "no"}, "mod\\u0065l" : "org\\/%b", "y": 1}' % model.encode())
                for at in range(request.index(b"\r\n\r\n"), len(request)):
                    await client.send(request[:at])
                    await asyncio.sleep(0)
                    await client.send(request[at:])
                    assert (await answer(client))[1]["at"] == model
            client.reset()

    async def test_what_is_rewritten_goes_the_long_way_byte_for_byte(self, fast: bool) -> None:
        async with models_stage(A, REWRITES, replay_bytes=KEPT, fast=fast) as s:
            body, large = named("c", 100), named("c", 100_000)
            for cuts in ([], [200], [120, 180, 230]):
                client = await connected(s)
                await client.send(post(named("a")))
                assert (await answer(client))[1]["at"] == "a"
                request = post(body) + post(large)
                for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
                    await client.send(request[start:end])
                    await asyncio.sleep(0.005)
                assert (await answer(client))[1]["at"] == "c"
                assert (await answer(client))[1] == {"at": "c", "size": len(large)}
                await client.send(post(large)[:5000])
                await asyncio.sleep(0.01)
                await client.send(post(large)[5000:])
                assert (await answer(client))[1] == {"at": "c", "size": len(large)}
                client.reset()
            assert s.of["c"].engine.hits == [(f"POST {CHAT}", each) for each in (body, large, large)] * 3
            await s.until(lambda: s.at_rest)
            assert await s.server.drain(0, 1)

    async def test_a_large_one_that_is_rewritten_goes_the_long_way_too(self, fast: bool) -> None:
        async with models_stage(A, REWRITES, replay_bytes=KEPT, fast=fast) as s:
            large = named("c", 300_000, first=False)
            client = await connected(s)
            await client.send(post(named("a")))
            assert (await answer(client))[1]["at"] == "a"
            await client.send(post(large) + post(named("a")))
            assert (await answer(client))[1] == {"at": "c", "size": len(large)}
            assert (await answer(client))[1]["at"] == "a"
            assert s.of["c"].engine.hits == [(f"POST {CHAT}", large)]
            client.reset()


class TestForms:
    @staticmethod
    def form(model: str | None, size: int, *, first: bool) -> aiohttp.FormData:
        data = aiohttp.FormData()
        if model is not None and first:
            data.add_field("model", model)
        data.add_field("file", b"--\r\n" * (size // 4), filename="model", content_type="audio/wav")
        if model is not None and not first:
            data.add_field("model", model)
        return data

    @pytest.mark.parametrize("size", [100, 200_000], ids=["small", "large"])
    @pytest.mark.parametrize("first", [True, False], ids=["before the file", "behind the file"])
    async def test_a_field_of_audio_requests_names_the_model(self, fast: bool, size: int, first: bool) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=50_000) as s:
            for model in "ab":
                status, body = await s.post(AUDIO, data=self.form(f"org/{model}", size, first=first))
                assert (status, body["at"]) == (200, model)
                assert body["size"] >= size
            status, body = await s.post(AUDIO, data=self.form("nobody", size, first=first))
            assert (status, body["error"]["code"]) == (404, "model_not_found")
            status, body = await s.post(AUDIO, data=self.form(None, size, first=first))
            assert (status, body["error"]["code"]) == (400, "bad_request")


class TestLargeBodies:
    @pytest.mark.parametrize("first", [True, False], ids=["the name is first", "the name is last"])
    async def test_they_go_to_the_model_that_they_name_and_on_byte_for_byte(self, fast: bool, first: bool) -> None:
        async with models_stage(A, B, awake=False, fast=fast, replay_bytes=KEPT) as s:
            for model, size in (("a", 1000), ("b", 100_000), ("a", 2 * MIB)):
                body = named(f"org/{model}", size, first=first)
                status, answered = await s.post(CHAT, data=BytesIO(body), headers=JSON)
                assert (status, answered["at"]) == (200, model)
                assert s.of[model].engine.hits[-1] == (f"POST {CHAT}", body)

    async def test_those_in_chunks_too(self, fast: bool) -> None:
        async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
            for at in range(0, len(body), size):
                yield body[at : at + size]

        async with models_stage(A, B, awake=False, fast=fast, replay_bytes=KEPT) as s:
            for model, size in (("a", 10), ("b", 5000), ("a", 300_000)):
                body = named(f"org/{model}", size, first=False)
                data = pieces(body, max(7, size // 50))
                status, answered = await s.post(CHAT, data=data, headers=JSON)
                assert (status, answered["at"]) == (200, model)
                assert s.of[model].engine.hits[-1] == (f"POST {CHAT}", body)

    @pytest.mark.parametrize("cut", [1, 3, 10, 400])
    async def test_the_name_may_come_in_pieces_of_any_size(self, fast: bool, cut: int) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=100) as s:
            client = await connected(s)
            body = b'{"x": "%b", "model" : "org/b", "y": ["%b"]}' % (b"x" * 60, b"y" * 200)
            request = post(body)
            start = request.index(b'"model"') - 5
            await client.send(request[:start])
            for at in range(start, start + 30, cut):
                await asyncio.sleep(0.001)
                await client.send(request[at : min(at + cut, start + 30)])
            await client.send(request[start + 30 :])
            assert (await answer(client))[1] == {"at": "b", "size": len(body)}
            assert s.of["b"].engine.hits == [(f"POST {CHAT}", body)]
            client.reset()

    async def test_no_more_is_read_than_is_needed_to_refuse_one(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=KEPT) as s:
            for start, status in (
                (named("nobody", 0)[:-1], 404),
                (b'{"model": 5', 400),
                (b"hello", 400),
            ):
                client = await connected(s)
                await client.send(post(start + b"x" * MIB)[: 200 + len(start)])
                assert (await answer(client))[0] == status
                client.reset()
            await s.until(lambda: s.at_rest)

    async def test_beyond_the_bound_a_client_is_told_to_put_the_name_first(self, fast: bool) -> None:
        async with models_stage(A, B, awake=False, fast=fast, replay_bytes=KEPT, model_bytes=5000) as s:
            client = await connected(s)
            request = post(named("a", 20_000, first=False))
            await client.send(request[: request.index(b"\r\n\r\n") + 5004])
            status, body = await answer(client)
            assert status == 400
            assert 'first 5000 bytes of its body; put "model" first' in body["error"]["message"]
            client.reset()
            assert all(one.is_asleep for one in s.of.values())
            for size in (4900, 4970):
                body_within = named("a", size - 40, first=False)
                assert (await s.post(CHAT, data=body_within, headers=JSON))[0] == 200

    async def test_the_default_serves_those_of_a_kind_that_has_no_name(self, fast: bool) -> None:
        async with models_stage(A, B, default="b", fast=fast, replay_bytes=KEPT) as s:
            for kind in ("application/octet-stream", "audio/wav"):
                body = os.urandom(50_000)
                status, answered = await s.post(AUDIO, data=body, headers={"Content-Type": kind})
                assert (status, answered["at"]) == (200, "b")
                assert s.of["b"].engine.hits[-1][1] == body

    async def test_what_is_kept_meanwhile_is_a_share_of_the_budget(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=KEPT, body_budget=50_000) as s:
            first = await connected(s)
            await first.send(post(named("a", 100_000, first=False))[:40_000])
            await s.until(lambda: s.directory.budget.taken >= 39_000)
            second = await connected(s)
            await second.send(post(named("b", 100_000, first=False))[:30_000])
            status, body = await answer(second)
            assert (status, body["error"]["code"]) == (503, "hold_budget_spent")
            first.reset()
            second.reset()
            await s.until(lambda: s.at_rest)

    async def test_a_client_that_leaves_gives_its_share_back(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=KEPT) as s:
            client = await connected(s)
            await client.send(post(named("a", 100_000, first=False))[:40_000])
            await s.until(lambda: s.directory.budget.taken > 0)
            client.reset()
            await s.until(lambda: s.at_rest)

    async def test_a_client_that_waits_to_be_told_to_send_is_told(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast, replay_bytes=KEPT) as s:
            for size in (10, 50_000):
                client = await connected(s)
                request = post(named("b", size), CHAT, b"Expect: 100-continue")
                head, _, body = request.partition(b"\r\n\r\n")
                await client.send(head + b"\r\n\r\n")
                async with asyncio.timeout(5):
                    assert b"100 Continue" in await client.head()
                await client.send(body)
                assert (await answer(client))[1] == {"at": "b", "size": len(body)}
                client.reset()


class TestEachIsOnItsOwn:
    async def test_those_held_for_one_delay_nobody_who_wants_another(self, fast: bool) -> None:
        async with models_stage(A, B, awake=False, start=0.6, fast=fast) as s:
            s.of["b"].backend.start_seconds = 0.0
            held = [asyncio.create_task(s.chat("a")) for _ in range(20)]
            await s.until(lambda: s.of["a"].controller.target.waiting == 20)
            async with asyncio.timeout(0.4):
                assert (await s.chat("b"))[1]["at"] == "b"
            assert s.of["a"].controller.target.waiting == 20
            assert {(await task)[1]["at"] for task in held} == {"a"}

    async def test_their_held_bodies_share_one_budget(self, fast: bool) -> None:
        async with models_stage(A, B, awake=False, start=0.5, body_budget=10_000, fast=fast) as s:
            held = asyncio.create_task(s.chat("a", x="x" * 7000))
            await s.until(lambda: s.of["a"].controller.target.waiting == 1)
            status, body = await s.chat("b", x="x" * 7000)
            assert (status, body["error"]["code"]) == (503, "hold_budget_spent")
            assert (await s.chat("b", x="x" * 1000))[0] == 200
            assert (await held)[0] == 200

    async def test_where_the_budget_is_spent_a_warm_request_goes_through(self, fast: bool) -> None:
        async with models_stage(A, B, fast=fast, body_budget=5000) as s:
            client = await connected(s)
            request = post(named("b", 20_000))
            await client.send(request[:300])
            await asyncio.sleep(0.01)
            await client.send(request[300:])
            assert (await answer(client))[1]["at"] == "b"
            client.reset()


class TestTheCatalogue:
    async def test_what_is_not_known_yet_is_told(self, fast: bool) -> None:
        async with models_stage(fast=fast) as s:
            s.directory.trouble = "the API server cannot be reached"
            for body in (named("a"), b"{}", named("a", 2 * MIB)):
                status, answered = await s.post(CHAT, data=BytesIO(body), headers=JSON)
                assert status == 503
                assert "the API server cannot be reached" in answered["error"]["message"]
            s.directory.trouble = None
            status, answered = await s.chat("a")
            assert (status, answered["error"]["code"]) == (404, "model_not_found")

    async def test_it_may_change_while_requests_are_under_way(self, fast: bool) -> None:
        async with models_stage(A, B, awake=False, start=0.2, fast=fast) as s:
            held = asyncio.create_task(s.chat("a"))
            await s.until(lambda: s.of["a"].controller.target.waiting == 1)
            s.directory.replace(Catalogue([B]), [s.of["b"].served])
            assert (await s.chat("a"))[0] == 404
            assert (await s.chat("b"))[0] == 200
            assert (await held)[1]["at"] == "a"
