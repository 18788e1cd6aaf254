"""Engines' load from a Prometheus that scrapes them: ports.LoadSource."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.core.saturation.places import LoadReading, PodPlace
from vllm_chill.core.saturation.series import Figure, Scraped, Series, expressions
from vllm_chill.errors import BackendUnavailable

_KEPT_SECONDS = 3.0


class PrometheusLoads:
    """ports.LoadSource: a namespace is nine queries, whatever the number of its pods and models.

    They are asked at the same time, as far as the Prometheus is asked several things at a time. Those of one namespace
    are asked no more than once within `kept_seconds`, so models that are looked at one after another share an answer.
    What one of them alone fails to tell is missing, and among the failures by its name, which no pod can have.
    """

    def __init__(self, prometheus: Prometheus, *, kept_seconds: float = _KEPT_SECONDS) -> None:
        self._prometheus = prometheus
        self._kept_seconds = kept_seconds
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._kept: dict[str, tuple[float, Scraped | str]] = {}

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        """What its last scrapes of these pods say, and who waits for a replica. A pod that no series is of is among the
        failures. Raises BackendUnavailable if no query was answered.
        """
        loop = asyncio.get_running_loop()
        async with self._asking[namespace]:
            self._kept = {name: kept for name, kept in self._kept.items() if loop.time() < kept[0] + self._kept_seconds}
            if namespace not in self._kept:
                # That nothing answers is kept too, or all who wait would find it out one after another.
                scraped = await self._ask(namespace)
                self._kept[namespace] = loop.time(), scraped
            scraped = self._kept[namespace][1]
        if isinstance(scraped, str):
            raise BackendUnavailable(scraped)
        return scraped.reading(pods)

    async def _ask(self, namespace: str) -> Scraped | str:
        """The answers; or why there is none at all."""
        asked = expressions(namespace)
        answers = dict(zip(asked, await asyncio.gather(*map(self._vector, asked.values())), strict=True))
        told = {figure: answer for figure, answer in answers.items() if not isinstance(answer, str)}
        failures = {figure: answer for figure, answer in answers.items() if isinstance(answer, str)}
        if not told:
            return failures[Figure.KV]
        # Of hundreds of replicas it takes longer than a request may be held up for, where a proxy is in this process.
        return await asyncio.to_thread(Scraped, told, failures)

    async def _vector(self, expression: str) -> list[Series] | str:
        try:
            return await self._prometheus.vector(expression)
        except BackendUnavailable as error:
            return error.message
