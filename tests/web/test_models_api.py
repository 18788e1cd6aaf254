"""Which models there are, which run, and which one requests get that name none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.scenarios.stage import envelope, stage
from tests.web.several import entry, several
from vllm_chill.core.target import Asleep, Draining, Ready, Waking
from vllm_chill.errors import BackendUnavailable, WakeFailed

AVAILABLE, RUNNING, SWITCH = "/proxy/models/available", "/proxy/models/running", "/proxy/models/switch"
START, STOP = "/proxy/operations/start", "/proxy/operations/stop"


class TestAvailable:
    async def test_every_model_is_told_with_what_is_known_of_it(self) -> None:
        async with several(awake=["b"]) as s:
            status, body = await s.get(AVAILABLE)
            assert (status, body["count"]) == (200, 2)
            a, b = body["models"]
            assert a == {
                "name": "a",
                "servedModelName": "org/a",
                "modelName": "weights/a",
                "maxModelLen": 4096,
                "gpuCount": 2,
                "aliases": ["alpha", "a-sql"],
                "group": "gpu",
                "state": "asleep",
                "eta_seconds": None,
                "replicas": 0,
                "ready_replicas": 0,
            }
            assert (b["replicas"], b["ready_replicas"]) == (1, 1)
            assert (b["name"], b["state"], b["maxModelLen"], b["aliases"]) == ("b", "ready", None, [])

    async def test_what_the_engine_said_of_its_context_is_right(self) -> None:
        async with several() as s:
            served = s.directory.find("a")
            assert served is not None
            served.knowledge.listed(b'{"data": [{"id": "org/a", "max_model_len": 2048}]}')
            assert (await s.get(AVAILABLE))[1]["models"][0]["maxModelLen"] == 2048

    async def test_without_a_catalogue_it_is_the_one_target(self) -> None:
        async with stage(served=lambda: (["vllm", "serve", "org/a", "--served-model-name", "a", "b"], "1")) as s:
            [model] = (await s.get(AVAILABLE))[1]["models"]
            assert (model["name"], model["servedModelName"], model["aliases"]) == ("test/vllm", "a", ["b"])
            assert (model["gpuCount"], model["group"], model["state"]) == (None, None, "asleep")

    async def test_before_the_catalogue_is_read_it_is_503_with_the_cause(self) -> None:
        async with several(read=False) as s:
            s.directory.trouble = "the API server is away"
            for path in (AVAILABLE, "/v1/models", "/v1/models/a"):
                async with s.session.get(s.url + path) as response:
                    assert (response.status, response.headers["Retry-After"]) == (503, "5")
                    error = envelope(await response.text())
                    assert error["code"] == "models_unknown"
                    assert error["message"] == "the models are not known yet: the API server is away"


class TestRunning:
    async def test_all_that_have_their_gpus_are_told_and_the_default_with_its_config(self) -> None:
        async with several(awake=["b"], default="alpha") as s:
            _, body = await s.get(RUNNING)
            assert body == {
                "active_model": "org/a",
                "running": False,
                "state": "asleep",
                "config": {
                    "modelName": "weights/a",
                    "servedModelName": "org/a",
                    "maxModelLen": 4096,
                    "toolCallParser": "hermes",
                    "reasoningParser": None,
                },
                "models": [
                    {
                        "name": "b",
                        "servedModelName": "org/b",
                        "state": "ready",
                        "replicas": 1,
                        "waiting": 0,
                        "in_flight": 0,
                    }
                ],
            }

    async def test_where_requests_have_to_name_one_none_is_active(self) -> None:
        async with several() as s:
            _, body = await s.get(RUNNING)
            assert body == {"active_model": None, "running": False, "state": None, "config": None, "models": []}


class TestSwitch:
    async def test_the_model_is_that_of_requests_which_name_none_and_the_next_one_wakes_it(self) -> None:
        async with several(awake=["a"], default="org/a") as s:
            status, body = await s.post(SWITCH, json={"model_id": "b"})
            assert (status, body["active_model"]) == (200, "org/b")
            assert body["note"] == "org/a goes to sleep once its answers have ended. The next request for it wakes it."
            await s.until("a", Asleep)
            assert s.backends["b"].writes == []
            assert (await s.post("/v1/completions", json={}))[1]["engine"] == "b"
            assert (await s.get("/proxy/status"))[1]["default_model"] == "org/b"

    async def test_awaited_it_answers_once_the_former_sleeps_and_the_new_one_is_ready(self) -> None:
        async with several(awake=["a"], default="org/a", stop=0.05) as s:
            status, body = await s.post(SWITCH + "?wait=true", json={"model_id": "org/b", "wake": True})
            assert (status, body["note"]) == (200, "It is ready.")
            assert s.phase_is("a", Asleep)
            assert s.phase_is("b", Ready)

    async def test_at_once_it_says_that_the_model_is_being_woken(self) -> None:
        async with several(start=60) as s:
            _, body = await s.post(SWITCH, json={"model_id": "org/b", "wake": True})
            assert body["note"] == "It is being woken; GET /proxy/status tells how far it is."
            assert s.phase_is("b", Waking)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            pytest.param(b"", "the body is empty", id="nothing"),
            pytest.param(b"{", "invalid JSON", id="no JSON"),
            pytest.param(b"[]", "object", id="no object"),
            pytest.param(b"{}", "object missing required field `model_id`", id="no model"),
            pytest.param(b'{"model_id": 1}', "model_id: expected `str`, got `int`", id="a number"),
            pytest.param(b'{"model_id": ""}', "model_id: expected `str` of length >= 1", id="an empty name"),
            pytest.param(b'{"model_id": "b", "wake": "yes"}', "wake: expected `bool`, got `str`", id="no boolean"),
            pytest.param(b'{"model": "b"}', "object contains unknown field `model`", id="another field"),
            pytest.param(b'{"model_id": "' + b"x" * 70_000 + b'"}', "longer than 64 KiB", id="too much"),
        ],
    )
    async def test_a_body_that_is_not_understood_is_400_and_says_why(self, body: bytes, says: str) -> None:
        async with several(awake=["a"], default="a") as s:
            status, answer = await s.post(SWITCH, data=body)
            assert (status, answer["error"]["code"]) == (400, "bad_request")
            assert says in answer["error"]["message"]
            assert s.directory.default == "a"

    async def test_a_name_that_nobody_has_is_404_with_those_there_are(self) -> None:
        async with several(default="a") as s:
            status, body = await s.post(SWITCH, json={"model_id": "c"})
            assert (status, body["error"]["code"]) == (404, "model_not_found")
            assert body["error"]["message"] == 'The model "c" does not exist; known: org/a, org/b.'
            assert s.directory.default == "a"

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            pytest.param(WakeFailed("org/b could not be woken: no such image."), "wake_failed", id="a failed wake"),
            pytest.param(BackendUnavailable("the API server is away"), "switch_failed", id="the backend"),
        ],
    )
    async def test_one_that_fails_is_503_with_the_cause(self, error: Any, code: str) -> None:
        async with several() as s:
            s.fleet.fails = error
            status, body = await s.post(SWITCH, json={"model_id": "b"})
            assert (status, body["error"]["code"]) == (503, code)
            assert error.message in body["error"]["message"]

    async def test_a_name_that_another_model_has_is_not_made_the_default(self) -> None:
        first = entry("first", created="1")
        second = entry("second", aliases=("mine",), created="2")
        clashing = type(second)(
            "second", second.ref, served="org/first", model=second.model, aliases=("mine",), created="2"
        )
        async with several([first, clashing]) as s:
            assert (await s.post(SWITCH, json={"model_id": "second"}))[1]["active_model"] == "mine"
            assert (await s.get(RUNNING))[1]["active_model"] == "mine"
            assert (await s.post("/v1/completions", json={}))[1]["engine"] == "second"

    async def test_with_one_target_it_says_how_there_would_be_several(self) -> None:
        async with stage() as s:
            status, body = await s.post(SWITCH, json={"model_id": "a"})
            assert (status, body["error"]["code"]) == (409, "no_catalogue")
            assert "--models" in body["error"]["message"]


class TestOperations:
    @pytest.mark.parametrize(
        ("path", "options"),
        [
            pytest.param(START, {"json": {"model_id": "org/b"}}, id="in the body"),
            pytest.param(START + "?model_id=b", {}, id="in the query"),
            pytest.param(START + "?model_id=a", {"json": {"model_id": "b"}}, id="in both: the body's"),
            pytest.param(START, {"data": b'{"model_id": "b"}', "expect100": True}, id="by a client that asks before"),
        ],
    )
    async def test_they_are_for_the_model_that_is_named(self, path: str, options: dict[str, Any]) -> None:
        async with several(default="a") as s:
            status, body = await s.post(path, **options)
            assert (status, body["message"]) == (200, "b is ready.")
            assert (body["target"]["model"], body["target"]["phase"]) == ("b", "ready")
            assert (s.backends["a"].writes, s.backends["b"].writes) == ([], [1])
            status, body = await s.post(STOP, json={"model_id": "b"})
            assert (status, body["message"]) == (200, "b is asleep.")

    async def test_without_a_name_they_are_for_the_default(self) -> None:
        async with several(default="org/a") as s:
            assert (await s.post(START))[1]["message"] == "a is ready."
            assert (await s.post(STOP))[1]["message"] == "a is asleep."

    async def test_where_it_cannot_be_told_which_one_is_meant_they_ask(self) -> None:
        async with several() as s:
            status, body = await s.post(START)
            assert status == 400
            assert body["error"]["message"] == (
                "this proxy serves several models; say which one in model_id: org/a, org/b"
            )
            assert (await s.post(STOP, json={"model_id": "c"}))[0] == 404
            assert (await s.post(START, data=b"now"))[0] == 400
            assert all(not backend.writes for backend in s.backends.values())

    async def test_a_single_model_need_not_be_named(self) -> None:
        async with several([entry("a")]) as s:
            assert (await s.post(START))[1]["message"] == "a is ready."

    async def test_where_there_is_none_they_say_so(self) -> None:
        async with several([]) as s:
            assert (await s.post(START))[1]["error"]["code"] == "model_not_found"

    async def test_stop_lets_answers_end(self) -> None:
        async with several(awake=["a"]) as s:
            lease = s.controller("a").lease_now()
            assert lease is not None
            stopping = asyncio.create_task(s.post(STOP, json={"model_id": "a"}))
            await s.until("a", Draining)
            await asyncio.sleep(0.02)
            assert s.backends["a"].writes == []
            lease.release()
            assert (await stopping)[0] == 200
