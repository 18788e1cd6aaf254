"""The models of a catalogue come, change and go, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import structlog
from prometheus_client import CollectorRegistry

from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.app.meters import open_meters
from vllm_chill.app.models import ServedModels
from vllm_chill.app.plan import Plan
from vllm_chill.app.targets import Made, TargetMaker
from vllm_chill.app.world import World
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.fleet import Fleet
from vllm_chill.control.savings import Savings
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.target import Asleep, Endpoint, Phase, Ready, TargetRef
from vllm_chill.errors import ModelNotFound
from vllm_chill.proxy.hold import Budget
from vllm_chill.proxy.served import Directory
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.settings.serve import load_settings
from vllm_chill.telemetry.metrics import Metrics

pytestmark = pytest.mark.looptime(start=100)


@dataclass
class House:
    """The models of one proxy; what they run on outlasts them, as a cluster does."""

    models: ServedModels
    directory: Directory
    metrics: Metrics
    savings: Savings
    backends: dict[str, MemoryBackend] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)

    def controller(self, name: str) -> ScaleController:
        found = self.models.controller_of(name)
        assert found is not None
        return found

    def is_in(self, name: str, phase: type[Phase]) -> bool:
        return isinstance(self.controller(name).target.phase, phase)

    async def use(self, name: str, seconds: float) -> None:
        with await self.directory.of_call(name).controller.lease(1000):
            await asyncio.sleep(seconds)


def entry(name: str, **fields: object) -> ModelEntry:
    made = ModelEntry(name, TargetRef("ai", name), f"served-{name}", f"org/{name}")
    return replace(made, **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def house(*entries: ModelEntry, **flags: str) -> AsyncIterator[House]:
    plan = Plan(load_settings({"models": "crd", "idle_timeout": "5m", **flags}))
    metrics, pool, budget = Metrics(CollectorRegistry(), "test"), UpstreamPool(), Budget(1 << 20)
    opened = open_meters(pods=False)
    savings = Savings()
    maker = TargetMaker(plan, metrics, pool, budget, await opened.__aenter__(), Autoscalers(), savings=savings)
    directory = Directory(budget, default=plan.settings.model_id)
    fleet = Fleet(plan.rules, metrics.switched)

    def make(one: ModelEntry) -> Made:
        endpoint = Endpoint("127.0.0.1", 9000 + len(here.backends))
        backend = here.backends.setdefault(one.name, MemoryBackend(endpoint, start_seconds=10, stop_seconds=2))

        async def close() -> None:
            here.closed.append(one.name)

        target = replace(plan.of_model(one), direct=False)
        return maker.make(target, World(backend, None, lambda: None, close, lambda: one.gpus))

    models = ServedModels(plan, directory, fleet, make)
    here = House(models, directory, metrics, savings)

    async def tell() -> None:
        models.catalogued(entries)

    running = asyncio.create_task(models.run(tell))
    await asyncio.sleep(0.001)
    yield here
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])
    await pool.aclose()
    await opened.__aexit__(None, None, None)


async def test_each_model_is_served_under_its_names() -> None:
    async with house(entry("a", aliases=("first",)), entry("b")) as here:
        assert [served.name for served in here.directory] == ["a", "b"]
        assert here.directory.of_call("first").name == "a"
        await here.use("served-b", 1)
        assert here.is_in("b", Ready)
        assert here.is_in("a", Asleep)


async def test_each_model_has_an_account_and_keeps_it_when_it_is_gone() -> None:
    async with house(entry("a", gpus=4), entry("b")) as here:
        await here.use("served-b", 10)
        here.models.catalogued([entry("b")])
        await asyncio.sleep(100)
        accounts = here.savings.ledger.accounts
        assert {name: (one.model, one.gpus) for name, one in accounts.items()} == {"ai/a": ("a", 4), "ai/b": ("b", 1)}
        a, b = accounts["ai/a"].total, accounts["ai/b"].total
        assert (a.awake, a.wakes, b.callers) == (0, 0, 1)
        assert (a.asleep, b.awake, b.waited) == pytest.approx((20 * 4, 120, 10), abs=0.5)
        assert [one.target for one in here.savings.gpu_seconds] == ["ai/b"]


async def test_a_change_is_taken_over_without_disturbing_what_runs() -> None:
    async with house(entry("a")) as here:
        stream = asyncio.create_task(here.use("served-a", 100))
        await asyncio.sleep(20)
        before = here.controller("a")
        here.models.catalogued([entry("a", served="renamed", idle_seconds=30.0, wake_seconds=7.0)])
        assert here.controller("a") is before
        assert here.directory.find("served-a") is None
        assert here.directory.of_call("renamed").desk.options.seconds == 7
        await stream
        await asyncio.sleep(29)
        assert here.is_in("a", Ready)
        await asyncio.sleep(5)
        assert here.is_in("a", Asleep)


async def test_a_model_that_is_taken_out_is_unknown_at_once_and_ends_with_its_last_lease() -> None:
    async with house(entry("a"), entry("b")) as here:
        stream = asyncio.create_task(here.use("served-a", 100))
        await asyncio.sleep(20)
        here.models.catalogued([entry("b")])
        with pytest.raises(ModelNotFound, match="served-b"):
            here.directory.of_call("served-a")
        assert here.models.controller_of("a") is not None
        await stream
        await asyncio.sleep(5)
        assert here.models.controller_of("a") is None
        assert here.closed == ["a"]
        assert here.backends["a"].seen.replicas == 0


async def test_who_waits_for_a_model_that_is_taken_out_is_told() -> None:
    async with house(entry("a")) as here:
        waiting = asyncio.create_task(here.use("served-a", 1))
        await asyncio.sleep(5)
        here.models.catalogued([])
        with pytest.raises(ModelNotFound, match="was deleted"):
            await waiting


async def test_a_model_that_comes_back_while_it_ends_is_served_again_once_it_has() -> None:
    async with house(entry("a")) as here:
        stream = asyncio.create_task(here.use("served-a", 50))
        await asyncio.sleep(20)
        here.models.catalogued([])
        here.models.catalogued([entry("a")])
        assert here.directory.find("served-a") is None
        await stream
        await asyncio.sleep(5)
        await here.use("served-a", 1)


async def test_a_model_that_is_gone_leaves_no_series() -> None:
    async with house(entry("a"), entry("b")) as here:
        await here.use("served-a", 1)
        here.models.catalogued([entry("b")])
        await asyncio.sleep(10)
        page, _ = here.metrics.exposition("")
        assert b"ai/b" in page
        assert b"ai/a" not in page


async def test_what_is_always_on_is_so_until_it_says_otherwise() -> None:
    async with house(entry("a", min_replicas=1)) as here:
        await asyncio.sleep(900)
        assert here.is_in("a", Ready)
        here.models.catalogued([entry("a")])
        await asyncio.sleep(310)
        assert here.is_in("a", Asleep)


async def test_models_that_cannot_be_seen_go_on_as_they_were() -> None:
    async with house(entry("a")) as here:
        here.models.lost("the API server cannot be reached")
        await here.use("served-a", 1)


async def test_a_name_that_two_claim_stays_with_the_older() -> None:
    async with house(entry("a", created="2026-02"), entry("b", served="served-a", created="2026-01")) as here:
        assert here.directory.of_call("served-a").name == "b"
        assert here.directory.of_call("a").name == "a"


async def test_a_catalogue_that_is_told_again_changes_nothing() -> None:
    async with house(entry("a", aliases=("first",))) as here:
        here.models.catalogued([entry("a", aliases=("first",))])
        [served] = here.directory
        assert served.entry is not None
        assert here.directory.catalogue.names_of(served.entry) == ("served-a", "first", "a")


async def test_a_model_id_that_is_nobodys_is_told_once_each_time_that_it_goes() -> None:
    with structlog.testing.capture_logs() as log:
        async with house(entry("a"), model_id="b") as here:
            here.models.catalogued([entry("a")])
            here.models.catalogued([entry("a"), entry("b")])
            here.models.catalogued([entry("a")])
    told = [line for line in log if line["event"] == "there is no model for requests that name none"]
    assert [(line["model_id"], line["known"]) for line in told] == [("b", "served-a")] * 2
