"""Who waits is listed for operators, who can send one away: on both lanes, and with nothing secret in the list."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenarios.stage import FAST_LANE, Stage, envelope, stage
from tests.web.several import several
from vllm_chill.control.lease import Bounds
from vllm_chill.core.admission import Priority
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.target import Asleep, Ready, Waking
from vllm_chill.proxy.gate import Gate
from vllm_chill.proxy.hold import Held
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.web.doorkeeper import Doorkeeper
from vllm_chill.web.held import MOST_SHOWN, shares

CHAT, REQUESTS, CANCEL = "/v1/chat/completions", "/proxy/requests", "/proxy/operations/cancel"


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


@asynccontextmanager
async def waited_for(s: Stage, count: int = 1, path: str = CHAT, **more: Any) -> Any:
    """So many requests that are held, as the tasks that wait for their answers."""
    before = s.controller.target.waiting
    asked = [asyncio.create_task(s.post(path, json=more.pop("json", {}), **more)) for _ in range(count)]
    await s.until(lambda: s.controller.target.waiting == before + count)
    yield asked
    for request in asked:
        request.cancel()
    await asyncio.wait(asked)


async def listed(s: Stage) -> tuple[int, list[dict[str, Any]]]:
    status, body = await s.get(REQUESTS)
    assert status == 200
    return body["count"], body["requests"]


@pytest.mark.usefixtures("lane")
class TestTheList:
    async def test_nobody_waits(self) -> None:
        async with stage() as s:
            assert await listed(s) == (0, [])

    async def test_who_waits_is_told_with_where_from_and_what_for(self) -> None:
        async with stage(start=60, hold=20) as s, waited_for(s, path=f"{CHAT}?token=hidden"):
            await asyncio.sleep(0.05)
            count, [one] = await listed(s)
            assert count == 1
            assert 0.04 < one.pop("waited_seconds") < 5
            assert 15 < one.pop("leaves_in_seconds") < 20
            assert len(one.pop("id")) > 4
            assert one == {
                "target": "test/vllm",
                "model": None,
                "place": 1,
                "phase": "waking",
                "why": "starting the engine",
                "eta_seconds": None,
                "client": "127.0.0.1",
                "key": None,
                "priority": "normal",
                "method": "POST",
                "path": CHAT,
            }

    async def test_a_key_is_told_by_its_name_alone(self) -> None:
        secret = "chill-secret"
        own = Key("ada", hashlib.sha256(secret.encode()).digest(), priority=Priority.LOW)
        doors = Doorkeeper(Gate(Keys([own]), asyncio.get_running_loop().time))
        said = {"Authorization": f"Bearer {secret}"}
        async with stage(start=60, doorkeeper=doors) as s, waited_for(s, headers=said):
            _, [one] = await listed(s)
            assert (one["key"], one["priority"]) == ("ada", "low")
            assert secret not in json.dumps(one)

    async def test_whose_turn_it_takes_is_not_told_without_keys(self) -> None:
        async with stage(start=60) as s, waited_for(s, headers={"Authorization": "Bearer of-the-engine"}):
            assert "of-the-engine" not in json.dumps(await listed(s))

    async def test_the_list_is_in_their_order_and_bounded_and_the_count_is_not(self) -> None:
        async with stage(start=60) as s, waited_for(s, MOST_SHOWN + 30):
            count, shown = await listed(s)
            assert (count, len(shown)) == (MOST_SHOWN + 30, MOST_SHOWN)
            assert [one["place"] for one in shown] == list(range(1, MOST_SHOWN + 1))
            ids = [one["id"] for one in shown]
            assert len(set(ids)) == MOST_SHOWN
            assert [one["id"] for one in (await listed(s))[1]] == ids, "an id stays"

    async def test_an_operators_own_wait_is_told_and_cannot_be_cancelled(self) -> None:
        async with stage(start=60) as s:
            await s.until(lambda: s.controller.synced)
            asked = asyncio.create_task(s.post("/proxy/operations/start"))
            await s.until(lambda: s.controller.target.waiting == 1)
            _, [one] = await listed(s)
            assert (one["id"], one["path"], one["client"]) == (None, "/proxy/operations/start", None)
            asked.cancel()

    async def test_awake_the_list_says_what_is_full(self) -> None:
        release = asyncio.Event()

        async def slow(request: Any) -> Any:
            from aiohttp import web

            await release.wait()
            return web.json_response({})

        async with stage(slow, awake=True, bounds=Bounds(in_flight=1)) as s:
            first = asyncio.create_task(s.post(CHAT, json={}))
            await s.until(lambda: s.controller.target.in_flight == 1)
            async with waited_for(s):
                _, [one] = await listed(s)
                assert one["phase"] == "ready"
                assert one["why"] == "every replica has as many requests as it may (1)"
                release.set()
                assert (await first)[0] == 200

    async def test_a_ticket_that_is_still_held_by_somebody_has_no_request_in_it(self) -> None:
        async with stage(start=60) as s:
            async with waited_for(s):
                [ticket] = s.controller.waiters()
                assert isinstance(ticket, Held)
                assert ticket.caller is not None
            await s.until(lambda: not s.controller.target.waiting)
            assert ticket.caller is None

    async def test_each_target_has_its_share(self) -> None:
        async with several(start=60) as s:
            for name, count in (("a", 3), ("b", 1)):
                for _ in range(count):
                    asyncio.create_task(s.post(CHAT, json={"model": f"org/{name}"}))  # noqa: RUF006
            async with asyncio.timeout(5):
                while (told := (await s.get(REQUESTS))[1])["count"] != 4:  # noqa: ASYNC110 - they come by themselves
                    await asyncio.sleep(0.01)
            assert [f"{one['model']}{one['place']}" for one in told["requests"]] == ["a1", "a2", "a3", "b1"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 150))
def test_shares_are_as_even_as_can_be(counts: list[int], most: int) -> None:
    shown = shares(counts, most)
    assert sum(shown) == min(most, sum(counts))
    assert all(0 <= share <= count for share, count in zip(shown, counts, strict=True))
    for share, count in zip(shown, counts, strict=True):
        assert share == count or share >= max(shown) - 1, "who has less than another has all that it needs"


@pytest.mark.usefixtures("lane")
class TestCancelling:
    async def test_the_caller_is_told_and_the_others_and_the_wake_go_on(self) -> None:
        async with stage(start=60) as s, waited_for(s) as [first], waited_for(s) as [second]:
            _, requests = await listed(s)
            status, body = await s.post(CANCEL, json={"id": requests[0]["id"]})
            assert (status, body["status"]) == (200, "success")
            status, answer = await asyncio.wait_for(first, 5)
            error = envelope(json.dumps(answer))
            assert (status, error["code"]) == (499, "cancelled_by_operator")
            assert error["message"].startswith("an operator has cancelled this request, which waited for test/vllm;")
            assert s.controller.target.waiting == 1
            assert s.phase_is(Waking)
            s.backend.ready()
            assert (await second)[0] == 200
            assert len(s.hits) == 1
            assert s.metric("vllm_chill_requests_total", method="POST", route="proxied", status="499") == 1

    async def test_a_stream_that_has_begun_ends_with_the_error(self) -> None:
        async with stage(start=60, terms=HoldOptions(beat_after_seconds=0.02, beat_seconds=0.02)) as s:
            async with s.session.post(s.url + CHAT, json={"stream": True}) as response:
                assert response.status == 200
                _, [one] = await listed(s)
                await s.post(CANCEL, json={"id": one["id"]})
                text = await response.text()
            assert '"code":"cancelled_by_operator"' in text.replace(" ", "")
            assert text.endswith("data: [DONE]\n\n")
            assert not s.desk.budget.taken

    async def test_the_connection_serves_the_next_request(self) -> None:
        async with stage(start=60) as s, waited_for(s) as [first]:
            _, [one] = await listed(s)
            await s.post(CANCEL, json={"id": one["id"]})
            assert (await first)[0] == 499
            s.backend.ready()
            await s.until(lambda: s.phase_is(Ready))
            assert (await s.post(CHAT, json={}))[0] == 200

    async def test_the_last_one_that_leaves_may_end_the_wake(self) -> None:
        async with stage(start=60, keep_abandoned=False) as s, waited_for(s):
            _, [one] = await listed(s)
            await s.post(CANCEL, json={"id": one["id"]})
            await s.until(lambda: s.phase_is(Asleep))

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            ({"json": {"id": "none"}}, (404, "request_not_held")),
            ({"json": {"id": ""}}, (404, "request_not_held")),
            ({"json": {}}, (400, "bad_request")),
            ({}, (400, "bad_request")),
        ],
        ids=["unknown", "empty", "no id", "no body"],
    )
    async def test_what_is_no_id_of_the_list_is_refused(self, sent: dict[str, Any], expected: tuple[int, str]) -> None:
        async with stage(start=60) as s, waited_for(s) as [first]:
            status, body = await s.post(CANCEL, **sent)
            assert (status, body["error"]["code"]) == expected
            assert not first.done()

    async def test_one_that_was_answered_meanwhile_is_not_held(self) -> None:
        async with stage(start=60) as s, waited_for(s) as [first]:
            _, [one] = await listed(s)
            s.backend.ready()
            assert (await first)[0] == 200
            assert (await s.post(CANCEL, json={"id": one["id"]}))[0] == 404
