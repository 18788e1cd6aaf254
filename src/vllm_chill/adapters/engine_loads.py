"""Engines' load straight from the pods, without a Prometheus; and who waits, from the pages of those who hold them.

The rule: a pod or a page that says nothing is a failure with its sentence, and never a 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from vllm_chill.adapters.page import pieces
from vllm_chill.adapters.vllm import SECONDS
from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.saturation.held_page import HeldSample, held_sample
from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable, SettingError

_AT_A_TIME = 32
_HELD_SECONDS = 1.0
_PAGE_BYTES = 8 << 20

Scrape = Callable[[Endpoint], Awaitable[EngineSample]]
"""What the engine there says of itself now (vllm.EngineScraper.scrape). Raises BackendUnavailable."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What the pages said, when, and which of them said nothing."""

    at: float
    sample: HeldSample = field(default_factory=HeldSample)
    failures: dict[str, str] = field(default_factory=dict)


class EngineLoads:
    """ports.LoadSource. To be used within `async with`.

    Each of `held_urls` is the page of one proxy (its /proxy/metrics) or of one endpoint picker; what they tell of the
    same target or model is summed, and a page that cannot be had is in the failures by its address. Several questions
    within a second share one look at these pages.
    """

    def __init__(
        self,
        scrape: Scrape,
        *,
        held_urls: Sequence[str] = (),
        token: str | None = None,
        at_a_time: int = _AT_A_TIME,
        seconds: float = SECONDS,
    ) -> None:
        """`token` is the bearer token for `held_urls`, for each of which `seconds` are given; `at_a_time` pods are
        asked at once, over all questions. Raises SettingError for an address that is none.
        """
        for url in held_urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise SettingError(
                    f'"{url}" is no address of a page of metrics; give one such as http://vllm-chill/proxy/metrics'
                )
        self._scrape = scrape
        self._held_urls = tuple(dict.fromkeys(held_urls))
        self._headers = {} if token is None else {"Authorization": f"Bearer {token.removeprefix('Bearer ')}"}
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_a_time)
        self._held: _Held | None = None
        self._looking = asyncio.Lock()
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        """What the pods say now. It never raises: each of them is asked for itself."""
        async with asyncio.TaskGroup() as tasks:
            asked = [(pod.name, tasks.create_task(self._load(pod))) for pod in pods]
            looked = tasks.create_task(self._look())
        answers = [(name, task.result()) for name, task in asked]
        held = looked.result()
        return LoadReading(
            loads={name: answer for name, answer in answers if isinstance(answer, EngineLoad)},
            held=held.sample.by_model,
            failures={**{name: answer for name, answer in answers if isinstance(answer, str)}, **held.failures},
            held_by_target=held.sample.by_target,
        )

    async def _load(self, pod: PodPlace) -> EngineLoad | str:
        """What a pod says, or why it says nothing."""
        if pod.endpoint is None:
            return f"pod {pod.name} has no address yet"
        async with self._turns:
            try:
                sample = await self._scrape(pod.endpoint)
            except BackendUnavailable as error:
                return error.message
        return load_of(sample)

    async def _look(self) -> _Held:
        """What the pages say, or said a moment ago."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if self._held is None or now - self._held.at >= _HELD_SECONDS:
                self._held = await self._ask(now)
            return self._held

    async def _ask(self, now: float) -> _Held:
        answers = await asyncio.gather(*(self._page(url) for url in self._held_urls))
        samples = [answer for answer in answers if isinstance(answer, HeldSample)]
        failures = {
            url: answer for url, answer in zip(self._held_urls, answers, strict=True) if isinstance(answer, str)
        }
        return _Held(now, HeldSample.summed(samples), failures)

    async def _page(self, url: str) -> HeldSample | str:
        """What a page says, or why it says nothing."""
        asked = pieces(self._session, url, self._seconds, _PAGE_BYTES, headers=self._headers)
        try:
            async with aclosing(asked) as page:
                return held_sample(b"".join([piece async for piece in page]))
        except BackendUnavailable as error:
            return error.message


def load_of(sample: EngineSample) -> EngineLoad:
    """What an engine's page says of its load."""
    percent = sample.kv_cache_percent
    return EngineLoad(
        kv=None if percent is None else percent / 100,
        queue=sample.waiting,
        running=sample.running,
        successes=sample.successes,
        cache_tokens=sample.cache_tokens,
    )
