"""Loads straight from engines, and from the pages of those who hold requests, over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.adapters.test_vllm import Engine
from vllm_chill.adapters.engine_loads import EngineLoads
from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable, SettingError

PAGE = b"""\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 1
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:request_success_total{engine="0",finished_reason="stop"} 7
vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1
"""
WAITING = b'vllm_chill_requests_waiting{target="ai-apps/vllm"} %d\n'
QUEUED = b'inference_extension_flow_control_queue_size{model_name="m",target_model_name=""} 2\n'


async def nothing(endpoint: Endpoint) -> EngineSample:
    raise AssertionError(f"nobody asks {endpoint}")


def url_of(engine: Engine) -> str:
    return f"http://{engine.where}/metrics"


async def test_each_pod_says_its_load_or_why_it_says_nothing() -> None:
    async with AsyncExitStack() as stack:
        good, other = [await stack.enter_async_context(Engine(page).listening()) for page in (PAGE, b"python_info 1\n")]
        scraper = await stack.enter_async_context(EngineScraper())
        source = await stack.enter_async_context(EngineLoads(scraper.scrape))
        reading = await source.read(
            "ai-apps", [PodPlace("good", good.where), PodPlace("other", other.where), PodPlace("new")]
        )
    assert reading.loads == {"good": EngineLoad(0.25, 1, 3, 7, None, 1600)}
    assert reading.failures == {
        "other": f"http://{other.where}/metrics has no metrics of vLLM, nor of llama.cpp; "
        "vLLM has none with --disable-log-stats",
        "new": "pod new has no address yet",
    }
    assert (reading.held, reading.held_by_target) == ({}, {})


async def test_an_engine_that_does_not_say_a_figure_leaves_it_out() -> None:
    async def scrape(endpoint: Endpoint) -> EngineSample:
        return EngineSample(waiting=0)

    async with EngineLoads(scrape) as source:
        reading = await source.read("ai-apps", [PodPlace("a", Endpoint("10.0.0.1", 8000))])
    assert reading.loads == {"a": EngineLoad(queue=0)}


async def test_no_more_than_so_many_pods_are_asked_at_once_over_all_questions() -> None:
    asking = most = 0

    async def scrape(endpoint: Endpoint) -> EngineSample:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0.001)
        asking -= 1
        if endpoint.port % 2:
            raise BackendUnavailable("it is away")
        return EngineSample(waiting=endpoint.port)

    places = [PodPlace(str(port), Endpoint("10.0.0.1", port)) for port in range(20)]
    async with EngineLoads(scrape, at_a_time=3) as source:
        one, two = await asyncio.gather(source.read("a", places[:10]), source.read("b", places[10:]))
    assert most == 3
    assert {**one.loads, **two.loads} == {str(port): EngineLoad(queue=port) for port in range(0, 20, 2)}
    assert {**one.failures, **two.failures} == {str(port): "it is away" for port in range(1, 20, 2)}


async def test_who_waits_is_summed_over_the_pages_of_all_who_hold_requests() -> None:
    async with AsyncExitStack() as stack:
        pages = [WAITING % 1, WAITING % 2, QUEUED]
        held = [await stack.enter_async_context(Engine(page).listening()) for page in pages]
        urls = [url_of(each) for each in held]
        source = await stack.enter_async_context(EngineLoads(nothing, held_urls=[*urls, urls[0]], token="secret"))
        reading = await source.read("ai-apps", [])
        assert reading == LoadReading(held={"m": 2}, held_by_target={"ai-apps/vllm": 3})
        assert all(each.headers["Authorization"] == "Bearer secret" for each in held)
        assert all(len(each.connections) == 1 for each in held)


async def test_a_page_that_cannot_be_had_is_a_failure_by_its_address() -> None:
    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(Engine(WAITING % 1).listening())
        bad = await stack.enter_async_context(Engine(status=401).listening())
        source = await stack.enter_async_context(EngineLoads(nothing, held_urls=[url_of(good), url_of(bad)]))
        reading = await source.read("ai-apps", [])
    assert reading.held_by_target == {"ai-apps/vllm": 1}
    assert reading.failures == {url_of(bad): f"{url_of(bad)} answers with status 401"}
    assert "Authorization" not in good.headers


async def test_questions_of_one_moment_share_a_look_at_the_pages() -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(WAITING % 1, seconds=0.02).listening())
        source = await stack.enter_async_context(EngineLoads(nothing, held_urls=[url_of(engine)]))
        readings = await asyncio.gather(*(source.read(f"ns-{i}", []) for i in range(10)))
    assert [reading.held_by_target for reading in readings] == [{"ai-apps/vllm": 1}] * 10
    assert engine.asked == 1


async def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(SettingError, match='"proxy:8080" is no address of a page of metrics; give one such as'):
        EngineLoads(nothing, held_urls=["proxy:8080"])
