from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web

from tests.adapters.kubernetes.stub_api import Json, StubApi, Watch, line, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot, pause_seconds

QUICK = Pace(watch_seconds=30, grace_seconds=1, pause_first_seconds=0.02, pause_most_seconds=0.1)
LOST_FOR_LONG = Pace(watch_seconds=30, pause_first_seconds=60, pause_most_seconds=60)

Step = dict[str, str] | Outage


def thing(name: str, value: str = "") -> Json:
    return {"metadata": {"name": name}, "value": value}


def value_of(item: Json) -> str | None:
    return None if item["value"] == "left out" else str(item["value"])


class Steps:
    def __init__(self, api: ApiClient, pace: Pace) -> None:
        self.watch = ListWatch(api, "/api/v1/things", {"labelSelector": "a=b"}, value_of, pace)
        self.kept: list[Step] = []
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with aclosing(self.watch.steps()) as steps:
            async for step in steps:
                self.kept.append(dict(step.objects) if isinstance(step, Snapshot) else step)
                self._changed.set()

    async def until(self, holds: Callable[[Step], bool]) -> Step:
        async with asyncio.timeout(5):
            while not self.kept or not holds(self.kept[-1]):
                self._changed.clear()
                await self._changed.wait()
        return self.kept[-1]

    @property
    def outages(self) -> list[str]:
        return [step.cause for step in self.kept if isinstance(step, Outage)]


@asynccontextmanager
async def stepping(api: ApiClient, pace: Pace = QUICK) -> AsyncIterator[Steps]:
    steps = Steps(api, pace)
    running = asyncio.create_task(steps.run())
    try:
        await steps.until(lambda _: True)
        yield steps
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


def saying(*chunks: bytes, then: Callable[[web.Request], None] | None = None) -> Watch:
    async def script(request: web.Request, response: web.StreamResponse) -> None:
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.002)
        if then is not None:
            then(request)

    return script


def abort(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def silence(request: web.Request, response: web.StreamResponse) -> None:
    await asyncio.Event().wait()


async def test_the_first_step_is_what_is_and_each_change_is_a_step(server: StubApi, api: ApiClient) -> None:
    await server.put(thing("a", "1"))
    async with stepping(api) as steps:
        await server.put(thing("b", "2"))
        await steps.until(lambda step: step == {"a": "1", "b": "2"})
        await server.put(thing("a", "3"))
        await steps.until(lambda step: step == {"a": "3", "b": "2"})
        await server.delete("b")
        await steps.until(lambda step: step == {"a": "3"})
    assert server.count == {"list": 1, "watch": 1}
    assert {request.query["labelSelector"] for request in server.requests} == {"a=b"}


async def test_what_the_parser_leaves_out_is_not_there_and_leaves_when_it_becomes_so(
    server: StubApi, api: ApiClient
) -> None:
    await server.put(thing("a", "left out"))
    await server.put(thing("b", "1"))
    async with stepping(api) as steps:
        assert steps.kept == [{"b": "1"}]
        await server.put(thing("b", "left out"))
        await steps.until(lambda step: step == {})


async def test_a_watch_goes_on_from_a_bookmark(server: StubApi, api: ApiClient) -> None:
    async with stepping(api) as steps:
        await server.until_asked("watch")
        await server.bookmark(500)
        await asyncio.sleep(0.05)
        server.forget()
        server.cut()
        await server.until_asked("watch", 2)
        await server.put(thing("a", "1"))
        await steps.until(lambda step: step == {"a": "1"})
        assert steps.kept == [{}, {"a": "1"}]
    assert server.requests[-1].query["resourceVersion"] == "500"
    assert server.count["list"] == 1


async def test_a_version_that_is_gone_is_listed_anew_without_an_outage(server: StubApi, api: ApiClient) -> None:
    await server.put(thing("a", "1"))
    gone = asyncio.Event()

    async def expire(request: web.Request, response: web.StreamResponse) -> None:
        await gone.wait()
        await response.write(line("ERROR", status(410, "too old", "Expired")))

    server.scripts = [expire]
    async with stepping(api) as steps:
        await server.until_asked("watch")
        await server.put(thing("b", "2"))
        await server.delete("a")
        server.forget()
        gone.set()
        await steps.until(lambda step: step == {"b": "2"})
        assert steps.outages == []
    assert server.count["list"] == 2
    assert "resourceVersion" not in server.requests[2].query


async def test_a_watch_refused_as_gone_is_listed_anew_without_an_outage(server: StubApi, api: ApiClient) -> None:
    async with stepping(api) as steps:
        await server.until_asked("watch")
        server.refusals = [(410, status(410, "too old", "Expired"))]
        server.cut()
        await server.until_asked("watch", 3)
        await server.put(thing("a", "1"))
        await steps.until(lambda step: step == {"a": "1"})
        assert steps.outages == []


async def test_a_server_that_keeps_no_version_is_not_hammered(server: StubApi, api: ApiClient) -> None:
    server.last_script = saying(line("ERROR", status(410, "too old", "Expired")))
    async with stepping(api):
        await asyncio.sleep(0.5)
    assert 2 <= server.count["list"] <= 16


@pytest.mark.parametrize("said", [b"", b"\n", b"\n\r\n"], ids=["nothing", "an empty line", "empty lines"])
async def test_a_server_that_ends_each_watch_at_once_is_not_hammered(
    said: bytes, server: StubApi, api: ApiClient
) -> None:
    server.last_script = saying(said)
    async with stepping(api) as steps:
        await asyncio.sleep(0.5)
        assert steps.outages == []
    assert 2 <= server.count["watch"] <= 16


@pytest.mark.parametrize(
    ("failures", "chance", "seconds"),
    [
        pytest.param(0, 0.0, 0.0, id="no failure, no pause"),
        pytest.param(1, 0.0, 0.2, id="the first"),
        pytest.param(3, 0.0, 0.8, id="twice as long after each"),
        pytest.param(1000, 0.0, 4.0, id="bounded"),
        pytest.param(1000, 1.0, 2.0, id="up to half is taken off by chance"),
    ],
)
def test_pauses_grow_and_are_bounded_and_jittered(failures: int, chance: float, seconds: float) -> None:
    assert pause_seconds(Pace(), failures, chance) == pytest.approx(seconds)


async def test_a_watch_cut_in_the_middle_of_an_event_goes_on_from_the_event_before(
    server: StubApi, api: ApiClient
) -> None:
    event = line("ADDED", {"metadata": {"name": "a", "resourceVersion": "11"}, "value": "1"})
    cut = line("ADDED", {"metadata": {"name": "b", "resourceVersion": "12"}, "value": "2"})[:-9]
    server.scripts = [saying(event, cut, then=abort)]
    async with stepping(api) as steps:
        await server.until_asked("watch", 2)
        assert server.requests[-1].query["resourceVersion"] == "11"
        assert steps.kept == [{}, {"a": "1"}]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"<html>login</html>\n", id="a page"),
        pytest.param(b'{"type": "ADDED"}\n', id="an event without an object"),
        pytest.param(b'["ADDED"]\n', id="a list"),
        pytest.param(b"\xff\xfe\n", id="bytes that are no text"),
        pytest.param(b'{"type": "ADDED", "object": {"metadata": {"name": "a"}}}\n', id="an object without a version"),
    ],
)
async def test_a_line_that_is_no_event_is_an_outage_and_then_listed_anew(
    said: bytes, server: StubApi, api: ApiClient
) -> None:
    server.scripts = [saying(said)]
    async with stepping(api) as steps:
        await steps.until(lambda step: isinstance(step, Outage))
        await server.put(thing("a", "1"))
        await steps.until(lambda step: step == {"a": "1"})
        assert len(steps.outages) == 1
        assert steps.outages[0].startswith("the API server sent")


async def test_an_error_event_that_is_not_410_is_an_outage_and_then_listed_anew(
    server: StubApi, api: ApiClient
) -> None:
    server.scripts = [saying(line("ERROR", status(500, "etcd is away.")))]
    async with stepping(api) as steps:
        await server.until_asked("watch", 2)
        assert steps.kept == [{}, Outage("the API server answered 500: etcd is away"), {}]


async def test_a_silence_beyond_the_end_of_a_watch_is_an_outage(server: StubApi, api: ApiClient) -> None:
    server.scripts = [silence]
    async with stepping(api, Pace(watch_seconds=0, grace_seconds=0.1, pause_first_seconds=0.02)) as steps:
        await steps.until(lambda step: isinstance(step, Outage))
        assert "silent for 0.1 s beyond the end of a watch" in steps.outages[0]


async def test_a_server_that_does_not_answer_is_an_outage(server: StubApi, api: ApiClient) -> None:
    async with stepping(api) as steps:
        await server.until_asked("watch")
        server.delay = 10
        server.cut()
        await steps.until(lambda step: isinstance(step, Outage))
        assert "did not answer within 2 s" in steps.outages[0]


async def test_what_was_deleted_during_an_outage_is_gone(server: StubApi, api: ApiClient) -> None:
    await server.put(thing("a", "1"))
    await server.put(thing("b", "2"))
    async with stepping(api) as steps:
        await server.until_asked("watch")
        server.refusals = [(503, status(503, "starting"))] * 3
        server.cut()
        await steps.until(lambda step: isinstance(step, Outage))
        await server.delete("a")
        await steps.until(lambda step: step == {"b": "2"})
        assert len(steps.outages) == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "does not accept the credentials"),
        (403, "User cannot list things; grant it that right"),
        (500, "answered 500: User cannot list things"),
    ],
)
async def test_a_list_that_is_refused_is_an_outage_that_says_what_to_do(
    code: int, words: str, server: StubApi, api: ApiClient
) -> None:
    server.refusals = [(code, status(code, "User cannot list things"))] * 2
    async with stepping(api) as steps:
        assert words in steps.outages[0]
        await steps.until(lambda step: step == {})


async def test_a_server_that_asks_to_be_left_alone_is(server: StubApi, api: ApiClient) -> None:
    server.refusals = [(429, status(429, "too many requests"))]
    server.retry_after = "1"
    now = asyncio.get_running_loop().time
    begun = now()
    async with stepping(api) as steps:
        await steps.until(lambda step: step == {})
    assert 1 <= now() - begun < 2
    assert server.count["list"] == 2


NONSENSE = [
    pytest.param(b"[]", id="no object"),
    pytest.param(b"null", id="nothing"),
    pytest.param(b"{}", id="empty"),
    pytest.param(b"[" * 100_000, id="nested without end"),
    pytest.param(b"\xff\x00", id="no text"),
    pytest.param(b'{"metadata": 7}', id="metadata that is a number"),
    pytest.param(b'{"metadata": {"resourceVersion": "1"}, "items": {}}', id="items that are no list"),
    pytest.param(b'{"metadata": {"resourceVersion": "1"}, "items": [7]}', id="an item that is a number"),
    pytest.param(b'{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {}}]}', id="an item without a name"),
    pytest.param(b'{"metadata": {"resourceVersion": "\xc2\xb2"}, "items": []}', id="a version that only looks it"),
]


@pytest.mark.parametrize("body", NONSENSE)
async def test_a_list_of_nonsense_is_an_outage(body: bytes, server: StubApi, api: ApiClient) -> None:
    server.refusals = [(200, body)]
    async with stepping(api) as steps:
        await steps.until(lambda step: step == {})
        assert len(steps.outages) == 1


@pytest.mark.parametrize(
    "event",
    [
        b'{"type": "ADDED", "object": 7}',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "50"}}}',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "50", "name": "a"}}}',
        b'{"type": "ERROR", "object": 7}',
        b"[" * 100_000,
        b"\xff",
    ],
)
async def test_an_event_of_nonsense_is_an_outage(event: bytes, server: StubApi, api: ApiClient) -> None:
    server.scripts = [saying(event + b"\n")]
    async with stepping(api) as steps:
        await steps.until(lambda step: isinstance(step, Outage))
        await steps.until(lambda step: step == {})
        assert "sent a" in steps.outages[0]


async def test_the_newest_version_is_asked_of_the_server(server: StubApi, api: ApiClient) -> None:
    server.last_script = silence
    async with stepping(api) as steps:
        assert await steps.watch.newest() == 0
        for name in ("a", "b"):
            last = await server.put(thing(name))
        assert await steps.watch.newest() == int(last["metadata"]["resourceVersion"])
        assert steps.kept == [{}]


async def test_an_object_of_megabytes_comes_in_one_event(server: StubApi, api: ApiClient) -> None:
    async with stepping(api) as steps:
        await server.put(thing("a", "x" * 3_000_000))
        await steps.until(lambda step: isinstance(step, dict) and len(step.get("a", "")) == 3_000_000)


async def test_events_come_in_whatever_pieces(server: StubApi, api: ApiClient) -> None:
    events = b"".join(
        line("ADDED", {"metadata": {"name": name, "resourceVersion": f"{20 + i}"}, "value": "ü"})
        for i, name in enumerate("abc")
    )
    server.scripts = [saying(*(events[i : i + 7] for i in range(0, len(events), 7))), silence]
    async with stepping(api) as steps:
        await steps.until(lambda step: step == dict.fromkeys("abc", "ü"))
    server.scripts = [saying(events), silence]
    async with stepping(api) as steps:
        await steps.until(lambda step: step == dict.fromkeys("abc", "ü"))


async def test_thousands_of_objects_are_listed_in_pages(server: StubApi, api: ApiClient) -> None:
    names = [f"t{i:04}" for i in range(1050)]
    server.objects = {name: thing(name) for name in names}
    async with stepping(api) as steps:
        assert steps.kept == [dict.fromkeys(names, "")]
    assert server.count["list"] == 11


async def test_a_list_that_expires_between_two_pages_is_begun_anew(server: StubApi, api: ApiClient) -> None:
    names = [f"t{i:04}" for i in range(150)]
    server.objects = {name: thing(name) for name in names}

    async def expire() -> None:
        await server.until_asked("list")
        server.refusals = [(410, status(410, "continue token expired", "Expired"))]

    expiring = asyncio.create_task(expire())
    async with stepping(api) as steps:
        assert steps.kept == [dict.fromkeys(names, "")]
    await expiring
    assert server.count["list"] == 4


async def test_a_relist_sees_what_a_silent_watch_does_not_say(server: StubApi, api: ApiClient) -> None:
    server.scripts = [silence]
    async with stepping(api) as steps:
        await server.until_asked("watch")
        await server.put(thing("a", "1"))
        steps.watch.relist()
        await steps.until(lambda step: step == {"a": "1"})
        assert steps.outages == []


async def test_a_relist_cuts_a_pause_short(server: StubApi, api: ApiClient) -> None:
    server.refusals = [(503, status(503, "starting"))]
    async with stepping(api, LOST_FOR_LONG) as steps:
        assert len(steps.outages) == 1
        await asyncio.sleep(0)
        steps.watch.relist()
        await steps.until(lambda step: step == {})


async def test_one_that_is_closed_leaves_no_connection(server: StubApi, api: ApiClient) -> None:
    async with stepping(api):
        await server.until_asked("watch")
    async with asyncio.timeout(5):
        await server.left.wait()
