"""`vllm-chill wait`, as a script uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.cli.main import Ended, ended
from tests.cli.serves import asks_no_more
from tests.web.several import several
from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli import feed
from vllm_chill.cli.wait import target_of
from vllm_chill.errors import AskFailed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(feed, "_POLL_SECONDS", 0.02)
    with capture_logs():
        yield


async def wait(url: str, *arguments: str) -> Ended:
    told = await asyncio.to_thread(ended, "wait", "--url", url, *arguments)
    await asyncio.to_thread(asks_no_more, "feed")
    return told


async def test_it_returns_when_the_model_is_as_it_is_wanted() -> None:
    async with several(start=0.3) as s:
        waiting = asyncio.create_task(wait(s.url, "org/b", "--timeout", "10s"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await s.post("/proxy/operations/start?wait=false", json={"model_id": "b"})
        assert await waiting == Ended(0, "b is ready.\n", "")
        told = await wait(s.url, "b", "--json", "--timeout", "0s")
        assert (told.status, json.loads(told.out)["phase"]) == (0, "ready")
        assert (await wait(s.url, "a", "--for", "asleep")).status == 0
        assert s.hits == []


async def test_a_time_that_is_over_has_a_status_of_its_own() -> None:
    async with several() as s:
        told = await wait(s.url, "b", "--timeout", "0s")
        assert told == Ended(5, "", "vllm-chill: b is asleep, and not ready\n")
        told = await wait(s.url, "b", "--timeout", "100ms", "--json")
        assert told.status == 5
        assert json.loads(told.err)["error"]["code"] == "time_over"


async def test_a_start_that_fails_ends_the_wait_with_its_cause() -> None:
    async with several(start=0.2) as s:
        s.backends["b"].fail_start = "no such image"
        await s.post("/proxy/operations/start?wait=false", json={"model_id": "b"})
        waiting = asyncio.create_task(wait(s.url, "b"))
        assert await waiting == Ended(1, "", "vllm-chill: b has failed: no such image\n")


async def test_a_model_that_is_not_there_is_not_waited_for() -> None:
    async with several() as s:
        told = await wait(s.url, "c")
    assert told == Ended(1, "", 'vllm-chill: the model "c" does not exist; known: a, b\n')


def one(name: str | None, *names: str) -> TargetStatus:
    return TargetStatus(target=f"ns/{name}", model=name, served_names=[*names], phase="asleep", waiting=0, in_flight=0)


def test_a_target_is_found_by_every_name_and_without_one() -> None:
    status = ProxyStatus(version="1", draining=False, default_model="org/b", targets=[one("a", "x"), one("b", "org/b")])
    for name in ("a", "x", "ns/a"):
        assert target_of(status, name).model == "a"
    assert target_of(status, None).model == "b"
    single = ProxyStatus(version="1", draining=False, targets=[one(None)])
    assert target_of(single, None) == target_of(single, "anything") == single.targets[0]


def test_without_a_model_of_its_own_a_request_has_to_name_one() -> None:
    status = ProxyStatus(version="1", draining=False, targets=[one("a"), one("b")])
    with pytest.raises(AskFailed, match="say which one: a, b"):
        target_of(status, None)
    status = ProxyStatus(version="1", draining=False, trouble="the API server is away", targets=[])
    with pytest.raises(AskFailed, match="the models are not known: the API server is away"):
        target_of(status, "a")
