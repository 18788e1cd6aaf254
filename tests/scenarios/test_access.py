"""Who may do what, on both lanes: what is refused wakes nothing, and reaches no engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.scenarios.stage import FAST_LANE, Models, Stage, echo, envelope, models_stage, stage
from vllm_chill.adapters.engine_access import EngineAccess
from vllm_chill.core.access import NEEDS, Need, Operators, Readers
from vllm_chill.core.admission import Priority
from vllm_chill.core.catalogue import Adapter, ModelEntry
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.rate import RateLimit
from vllm_chill.core.routing import Route
from vllm_chill.core.target import Asleep, TargetRef
from vllm_chill.proxy.gate import Gate
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.web.doorkeeper import Doorkeeper

CHAT = "/v1/chat/completions"
UPSTREAM = b"Bearer of-the-engine"


@pytest.fixture(params=[True, False], ids=["fast lane", "base"], autouse=True)
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


def key(name: str, **more: Any) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).digest(), **more)


def said(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer secret-{name}"}


def doors(*keys: Key, **how: Any) -> Doorkeeper:
    return Doorkeeper(Gate(Keys(keys), asyncio.get_running_loop().time), **how)


@asynccontextmanager
async def guarded(*keys: Key, engines: EngineAccess | None = None, **how: Any) -> AsyncIterator[Stage]:
    """A proxy that asks for keys."""
    rules = {name: how.pop(name) for name in ("operators", "metrics", "status") if name in how}
    engines = engines or EngineAccess(b"")
    async with stage(doorkeeper=doors(*keys, **rules), engines=engines, **how) as proxy:
        yield proxy


def is_untouched(proxy: Stage) -> bool:
    return proxy.phase_is(Asleep) and not proxy.hits and not proxy.backend.writes


class TestWithoutAKey:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "Basic c2VjcmV0LWE="},
            {"Authorization": "secret-a"},
            {"Authorization": "Bearer secret-a x"},
            {"X-Api-Key": "other"},
            {"Authorization": "Bearer other", "X-Api-Key": "secret-a"},
        ],
        ids=["none", "another", "basic", "bare", "more", "x-api-key", "both"],
    )
    async def test_the_answer_is_401_and_nothing_wakes(self, headers: dict[str, str]) -> None:
        async with guarded(key("a")) as proxy:
            async with proxy.session.post(proxy.url + CHAT, json={"model": "m"}, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                error = envelope(await response.text())
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert is_untouched(proxy)
            assert proxy.metric("vllm_chill_requests_total", method="POST", route="proxied", status="401")

    async def test_the_sentence_says_what_to_send(self) -> None:
        async with guarded(key("a")) as proxy:
            _, body = await proxy.post(CHAT, json={})
            assert body["error"]["message"] == (
                'this needs an API key; send it in the header "Authorization: Bearer KEY".'
            )
            _, body = await proxy.post(CHAT, json={}, headers=said("b"))
            assert body["error"]["message"] == (
                "the API key is not known here; see whether it is whole, and has not been withdrawn."
            )

    async def test_it_is_answered_before_its_body_is_there(self) -> None:
        async with guarded(key("a")) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx" % CHAT.encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
            writer.close()
            await writer.wait_closed()
            assert is_untouched(proxy)

    async def test_its_client_is_not_told_to_send_the_body(self) -> None:
        async with guarded(key("a")) as proxy:
            request = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(request % CHAT.encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 401 ")
            writer.close()
            await writer.wait_closed()

    async def test_the_connection_serves_the_next_request(self) -> None:
        async with guarded(key("a"), awake=True) as proxy:
            one = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n%b\r\n{}"
            good = one % (CHAT.encode(), b"Authorization: Bearer secret-a\r\nConnection: close\r\n")
            answer = await proxy.raw(one % (CHAT.encode(), b"") + good)
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"401", b"200"]

    @pytest.mark.parametrize("awake", [True, False], ids=["awake", "asleep"])
    @pytest.mark.parametrize(
        ("method", "path", "headers", "status"),
        [
            ("GET", "/health", {}, 200),
            ("GET", "/readyz", {}, 200),
            ("GET", "/ping", {}, 200),
            ("GET", "/robots.txt", {}, 200),
            ("GET", "/favicon.ico", {}, 204),
            ("OPTIONS", CHAT, {"Origin": "http://ui", "Access-Control-Request-Method": "POST"}, 204),
            ("POST", CHAT, {"User-Agent": "kube-probe/1.33"}, 200),
            ("GET", "/", {"User-Agent": "kube-probe/1.33"}, 200),
        ],
    )
    async def test_who_only_asks_whether_it_is_there_is_answered_by_the_proxy(
        self, method: str, path: str, headers: dict[str, str], status: int, awake: bool
    ) -> None:
        async with guarded(key("a"), awake=awake) as proxy:
            async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
                assert response.status == status
                assert b"secret" not in await response.read()
            assert not proxy.hits, "nothing of theirs reaches the engine"
            assert not proxy.backend.writes

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/load_lora_adapter", "/docs", "/sleep"])
    async def test_nothing_of_the_engine_is_for_them(self, path: str) -> None:
        async with guarded(key("a"), awake=True) as proxy:
            assert (await proxy.get(path))[0] == 401
            async with proxy.session.head(proxy.url + CHAT) as response:
                assert response.status == 401
            assert not proxy.hits

    async def test_no_browser_is_shown_a_page_or_wakes_anything(self) -> None:
        async with guarded(key("a")) as proxy:
            async with proxy.session.get(proxy.url + CHAT, headers={"Accept": "text/html"}) as response:
                assert response.status == 401
            assert is_untouched(proxy)

    async def test_no_websocket_is_opened(self) -> None:
        async with guarded(key("a"), awake=True) as proxy:
            headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
            async with proxy.session.get(proxy.url + "/v1/realtime", headers=headers) as response:
                assert response.status == 401
            assert not proxy.hits


class TestWithAKey:
    @pytest.mark.parametrize("headers", [said("a"), {"authorization": "bearer  secret-a"}, {"x-api-key": "secret-a"}])
    async def test_a_request_is_served_and_the_key_goes_no_further(self, headers: dict[str, str]) -> None:
        async with guarded(key("a"), key("b")) as proxy:
            status, seen = await proxy.post(CHAT, json={"model": "m"}, headers=headers)
            assert status == 200
            assert "secret-a" not in json.dumps(seen)
            assert not {"authorization", "x-api-key"} & {name.lower() for name, _ in seen["headers"]}

    async def test_the_engines_own_key_is_sent_in_its_place_and_the_new_one_once_there_is_one(self) -> None:
        engines = EngineAccess(UPSTREAM)
        async with guarded(key("a"), engines=engines, awake=True) as proxy:
            for expected in (UPSTREAM, UPSTREAM, b"Bearer new", b""):
                engines.authorization = expected
                _, seen = await proxy.post(CHAT, json={"model": "m"}, headers=said("a") | {"X-Api-Key": "secret-a"})
                found = [value for name, value in seen["headers"] if name.lower() in ("authorization", "x-api-key")]
                assert found == ([expected.decode()] if expected else [])

    async def test_without_keys_of_its_own_the_clients_goes_on_or_is_replaced(self) -> None:
        engines = EngineAccess()
        async with stage(engines=engines, awake=True) as proxy:
            _, seen = await proxy.post(CHAT, json={}, headers=said("a"))
            assert ["Authorization", "Bearer secret-a"] in seen["headers"]
            engines.authorization = UPSTREAM
            _, seen = await proxy.post(CHAT, json={}, headers=said("a"))
            assert [v for n, v in seen["headers"] if n == "Authorization"] == [UPSTREAM.decode()]
            _, seen = await proxy.post(CHAT, json={})
            assert [v for n, v in seen["headers"] if n == "Authorization"] == [UPSTREAM.decode()]

    async def test_a_large_body_is_let_in_by_its_head(self) -> None:
        async with guarded(key("a"), engines=EngineAccess(UPSTREAM), replay_bytes=1000, awake=True) as proxy:
            status, seen = await proxy.post(CHAT, data=io.BytesIO(b"x" * 800_000), headers=said("a"))
            assert (status, seen["size"]) == (200, 800_000)
            assert ["Authorization", UPSTREAM.decode()] in seen["headers"]
            assert (await proxy.post(CHAT, data=b"x" * 30_000, headers=said("b")))[0] == 401

    async def test_what_else_the_engine_can_is_for_admins(self) -> None:
        async with guarded(key("a"), key("root", admin=True), awake=True) as proxy:
            status, body = await proxy.post("/v1/load_lora_adapter", json={}, headers=said("a"))
            assert (status, body["error"]["code"]) == (403, "forbidden")
            assert body["error"]["message"] == 'the key "a" is no admin key, and POST /v1/load_lora_adapter needs one.'
            assert not proxy.hits
            assert (await proxy.post("/v1/load_lora_adapter", json={}, headers=said("root")))[0] == 200
            assert proxy.hits == ["POST /v1/load_lora_adapter"]

    async def test_a_key_that_is_withdrawn_is_let_in_no_more_on_the_same_connection(self) -> None:
        doorkeeper = doors(key("a"))
        async with stage(doorkeeper=doorkeeper, awake=True) as proxy:
            assert (await proxy.post(CHAT, json={}, headers=said("a")))[0] == 200
            assert doorkeeper.gate is not None
            doorkeeper.gate.replace(Keys())
            assert (await proxy.post(CHAT, json={}, headers=said("a")))[0] == 401


class TestRates:
    async def test_who_comes_too_fast_is_told_when_to_come_again_and_wakes_nothing(self) -> None:
        async with guarded(key("a", rate=RateLimit(2, 2)), key("b"), awake=True) as proxy:
            for _ in range(2):
                assert (await proxy.post(CHAT, json={}, headers=said("a")))[0] == 200
            async with proxy.session.post(proxy.url + CHAT, json={}, headers=said("a")) as response:
                assert response.status == 429
                assert 28 <= int(response.headers["Retry-After"]) <= 30
                error = envelope(await response.text())
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert len(proxy.hits) == 2
            assert (await proxy.post(CHAT, json={}, headers=said("b")))[0] == 200, "another's rate is another's"
            assert (await proxy.get("/v1/models", headers=said("a")))[0] == 200, "a list of models is no use of one"

    async def test_what_both_lanes_have_to_do_with_counts_once(self) -> None:
        async with rewriting(key("a", rate=RateLimit(1, 2))) as proxy:
            assert (await proxy.chat("r", key="a"))[0] == 200
            assert (await proxy.chat("r", key="a"))[0] == 200
            assert (await proxy.chat("r", key="a"))[0] == 429


class WithKeys:
    """A proxy of several models that asks for keys."""

    def __init__(self, models: Models) -> None:
        self.models = models

    async def chat(self, model: str | None, *, key: str, size: int = 0) -> tuple[int, dict[str, Any]]:
        body = {"x": "y" * size} | ({} if model is None else {"model": model})
        return await self.models.post(CHAT, json=body, headers=said(key))

    async def listed(self, key: str) -> list[str]:
        async with self.models.session.get(self.models.url + "/v1/models", headers=said(key)) as response:
            return [card["id"] for card in (await response.json())["data"]]

    @property
    def reached(self) -> set[str]:
        return {name for name, one in self.models.of.items() if one.engine.hits}


ENTRIES = (
    ModelEntry("qwen", TargetRef("t", "qwen"), "org/qwen", "m", aliases=("fast",), adapters=(Adapter("sql", "/sql"),)),
    ModelEntry("llama", TargetRef("t", "llama"), "llama-70b", "m"),
)


@asynccontextmanager
async def several(*keys: Key, **how: Any) -> AsyncIterator[WithKeys]:
    async with models_stage(*ENTRIES, doorkeeper=doors(*keys), **how) as models:
        yield WithKeys(models)


@asynccontextmanager
async def rewriting(*keys: Key) -> AsyncIterator[WithKeys]:
    entry = ModelEntry("r", TargetRef("t", "r"), "r", "m", rewrites_tool_calls=True)
    async with models_stage(entry, doorkeeper=doors(*keys)) as models:
        yield WithKeys(models)


class TestModels:
    @pytest.mark.parametrize("size", [0, 5000], ids=["whole", "streamed"])
    @pytest.mark.parametrize(
        ("models", "asked", "status"),
        [
            (None, "llama-70b", 200),
            (("llama-70b",), "llama-70b", 200),
            (("llama-*",), "llama-70b", 200),
            (("llama-*",), "llama", 200),
            (("llama-*",), "org/qwen", 403),
            (("llama-*",), "nobody", 403),
            (("llama-*",), "llama-7b", 404),
            (("org/qwen",), "fast", 200),
            (("fast",), "org/qwen", 200),
            (("org/qwen",), "sql", 403),
            (("sql",), "sql", 200),
            (("sql",), "org/qwen", 403),
            ((), "org/qwen", 403),
        ],
    )
    async def test_a_key_is_for_its_models(
        self, models: tuple[str, ...] | None, asked: str, status: int, size: int
    ) -> None:
        async with several(key("a", models=models), replay_bytes=1000) as proxy:
            found, body = await proxy.chat(asked, key="a", size=size)
            assert found == status
            if status != 200:
                assert not proxy.reached
                assert "llama-70b" not in json.dumps(body) or asked == "llama-70b", "it is told of none but its own"
                assert "qwen" not in json.dumps(body).replace(asked, "") or models == ("org/qwen",)

    async def test_the_sentence_says_which_it_may_use(self) -> None:
        async with several(key("a", models=("llama-*", "sql"))) as proxy:
            _, body = await proxy.chat("org/qwen", key="a")
            assert body["error"].pop("request_id")
            assert body["error"] == {
                "message": 'the key "a" may not use the model "org/qwen"; it may use: llama-*, sql',
                "type": "permission_error",
                "code": "model_not_allowed",
                "param": None,
            }

    async def test_it_has_to_name_one_where_no_name_leads_to_none_of_its_own(self) -> None:
        async with several(key("a", models=("llama-*",))) as proxy:
            status, body = await proxy.chat(None, key="a")
            assert status == 403
            assert body["error"]["message"] == 'the key "a" is for some models only; say one in "model": llama-*'

    @pytest.mark.parametrize(("default", "status"), [("llama-70b", 200), ("org/qwen", 403)])
    async def test_the_default_has_to_be_its_own(self, default: str, status: int) -> None:
        async with several(key("a", models=("llama-*",)), default=default) as proxy:
            assert (await proxy.chat(None, key="a"))[0] == status

    async def test_what_is_refused_wakes_nothing(self) -> None:
        async with several(key("a", models=("llama-*",)), awake=False) as proxy:
            assert (await proxy.chat("org/qwen", key="a"))[0] == 403
            assert all(one.is_asleep for one in proxy.models.of.values())

    async def test_the_list_has_its_models_alone(self) -> None:
        keys = key("all"), key("a", models=("llama-*",)), key("b", models=("sql",)), key("none", models=())
        async with several(*keys) as proxy:
            assert set(await proxy.listed("all")) == {"org/qwen", "fast", "sql", "llama-70b"}
            assert await proxy.listed("a") == ["llama-70b"]
            assert await proxy.listed("b") == ["sql"]
            assert await proxy.listed("none") == []
            for name, status in (("llama-70b", 200), ("org/qwen", 403), ("nobody", 403)):
                url = f"{proxy.models.url}/v1/models/{name}"
                async with proxy.models.session.get(url, headers=said("a")) as response:
                    assert response.status == status, name

    async def test_where_there_is_one_target_the_name_that_is_asked_for_counts(self) -> None:
        served = lambda: (["vllm", "serve", "org/a", "--served-model-name", "a", "b"], "1")  # noqa: E731
        async with guarded(key("k", models=("a",)), served=served, awake=True, replay_bytes=1000) as proxy:
            for size in (0, 5000):
                body = {"x": "y" * size}
                assert (await proxy.post(CHAT, json=body | {"model": "a"}, headers=said("k")))[0] == 200
                assert (await proxy.post(CHAT, json=body | {"model": "b"}, headers=said("k")))[0] == 403
                assert (await proxy.post(CHAT, json=body, headers=said("k")))[0] == 403
            assert len(proxy.hits) == 2
            _, listed = await proxy.get("/v1/models", headers=said("k"))
            assert [card["id"] for card in listed["data"]] == ["a"]
            assert (await proxy.get("/v1/models/a", headers=said("k")))[0] == 200
            assert (await proxy.get("/v1/models/b", headers=said("k")))[0] == 403
            assert len(proxy.hits) == 2, "the engine's list has more than it may see"


class TestPriorities:
    @pytest.mark.parametrize(
        ("name", "asks", "first"),
        [("high", None, True), ("low", None, False), ("low", "high", False), ("high", "low", False)],
    )
    async def test_a_keys_class_is_that_of_its_requests_and_it_may_ask_for_a_lower_one(
        self, name: str, asks: str | None, first: bool
    ) -> None:
        served: list[str] = []

        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            served.append((await request.read()).decode())
            await asyncio.sleep(0.01)
            return await echo(request)

        from vllm_chill.control.lease import Bounds

        keys = key("high", priority=Priority.HIGH), key("low", priority=Priority.LOW), key("usual")
        async with guarded(*keys, upstream=engine, start=0.2, bounds=Bounds(10, 1)) as proxy:
            usual = asyncio.create_task(proxy.post(CHAT, data=b"usual", headers=said("usual")))
            await proxy.until(lambda: proxy.controller.target.waiting == 1)
            asked = {} if asks is None else {"X-Priority": asks}
            other = asyncio.create_task(proxy.post(CHAT, data=b"other", headers=said(name) | asked))
            await asyncio.gather(usual, other)
            assert served == (["other", "usual"] if first else ["usual", "other"])

    async def test_who_is_among_the_priority_keys_may_still_choose(self) -> None:
        terms = HoldOptions(10, priority_keys=frozenset({"secret-low"}))
        async with guarded(key("low", priority=Priority.LOW), terms=terms, start=0.2) as proxy:
            headers = said("low") | {"X-Priority": "high"}
            request = asyncio.create_task(proxy.post(CHAT, json={}, headers=headers))
            await proxy.until(lambda: proxy.controller.target.waiting == 1)
            first = proxy.controller._room.first
            assert first is not None
            assert first.priority is Priority.HIGH
            await request


READS = [route for route, need in NEEDS.items() if need is Need.STATUS]
OPERATIONS = [
    ("POST", "/proxy/operations/start"),
    ("POST", "/proxy/operations/stop"),
    ("POST", "/proxy/operations/cancel"),
    ("POST", "/proxy/models/switch"),
    ("POST", "/proxy/scaling/replicas"),
    ("DELETE", "/proxy/scaling/replicas"),
]


class TestTheProxysOwnPaths:
    async def test_by_default_they_are_open(self) -> None:
        async with guarded(key("a")) as proxy:
            for path in ("/proxy/status", "/proxy/metrics", "/metrics"):
                async with proxy.session.get(proxy.url + path) as response:
                    assert response.status == 200
            async with proxy.session.post(proxy.url + "/proxy/operations/stop") as response:
                assert response.status == 200

    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    async def test_operations_are_for_admin_keys(self, method: str, path: str) -> None:
        async with guarded(key("a"), key("root", admin=True), operators=Operators.KEYS) as proxy:
            for headers, expected in (({}, 401), (said("b"), 401), (said("a"), 403)):
                async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
                    assert response.status == expected
            assert is_untouched(proxy)
            async with proxy.session.request(method, proxy.url + path, headers=said("root")) as response:
                assert response.status not in (401, 403)
            assert (await proxy.get("/proxy/status"))[0] == 200

    @pytest.mark.parametrize(
        ("readers", "expected"),
        [(Readers.ALL, (200, 200, 200)), (Readers.KEYS, (401, 200, 200)), (Readers.ADMIN, (401, 403, 200))],
    )
    async def test_who_may_read_is_said_of_metrics_and_of_all_else(
        self, readers: Readers, expected: tuple[int, ...]
    ) -> None:
        callers: tuple[dict[str, str], ...] = ({}, said("a"), said("root"))
        keys = key("a"), key("root", admin=True)
        async with guarded(*keys, operators=Operators.KEYS, metrics=readers, awake=True) as proxy:
            for headers, status in zip(callers, expected, strict=True):
                for path in ("/proxy/metrics", "/metrics"):
                    async with proxy.session.get(proxy.url + path, headers=headers) as response:
                        assert response.status == status
                assert (await proxy.get("/proxy/status", headers=headers))[0] == 200
        async with guarded(*keys, operators=Operators.KEYS, status=readers) as proxy:
            for headers, status in zip(callers, expected, strict=True):
                assert (await proxy.get("/proxy/status", headers=headers))[0] == status
                async with proxy.session.get(proxy.url + "/proxy/metrics", headers=headers) as response:
                    assert response.status == 200

    async def test_all_that_reads_asks_alike(self) -> None:
        async with guarded(key("a"), status=Readers.KEYS) as proxy:
            for route in READS:
                path = route.value.replace("{pod}", "p").replace("{model}", "m").replace("*", "none")
                assert (await proxy.get(path))[0] == 401, path

    async def test_with_a_port_of_its_own_the_other_has_none_of_it(self) -> None:
        async with guarded(key("a"), apart=True) as proxy:
            for path in ("/proxy/status", "/proxy/metrics", "/proxy", "/proxy/none", "/proxy/operations/start"):
                status, body = await proxy.get(path, headers=said("a"))
                assert (status, body["error"]["code"]) == (404, "not_found")
            assert is_untouched(proxy)
            async with proxy.session.get(proxy.admin_url + "/proxy/status") as response:
                assert response.status == 200
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/metrics")):
                async with proxy.session.request(method, proxy.admin_url + path, headers=said("a")) as response:
                    assert response.status == 404
            async with proxy.session.post(proxy.admin_url + "/proxy/operations/start") as response:
                assert response.status == 200
            assert (await proxy.post(CHAT, json={}, headers=said("a")))[0] == 200

    async def test_what_drains_can_still_be_looked_at_there(self) -> None:
        async with stage(apart=True) as proxy:
            assert await proxy.server.drain(0, 1)
            async with proxy.session.get(proxy.admin_url + "/proxy/status") as response:
                assert (await response.json())["draining"]


async def test_with_no_keys_nothing_is_asked_of_anybody() -> None:
    async with stage(awake=True) as proxy:
        assert (await proxy.post(CHAT, json={}))[0] == 200
        assert (await proxy.get("/docs"))[0] == 200
        assert Route.OTHER in NEEDS
