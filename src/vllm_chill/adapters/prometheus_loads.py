"""Engines' load from a Prometheus that scrapes them: ports.LoadSource."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.core.saturation.places import LoadReading, PodPlace
from vllm_chill.core.saturation.series import Figure, Series, expressions, reading
from vllm_chill.errors import BackendUnavailable


class PrometheusLoads:
    """ports.LoadSource: a namespace is eight queries, whatever the number of its pods and models.

    They are asked at the same time, as far as the Prometheus is asked several things at a time. What one of them alone
    fails to tell is missing, and among the failures by its name, which no pod can have.
    """

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        """What its last scrapes of these pods say, and who waits for a replica. A pod that no series is of is among the
        failures. Raises BackendUnavailable if no query was answered.
        """
        asked = expressions(namespace)
        answers = dict(zip(asked, await asyncio.gather(*map(self._ask, asked.values())), strict=True))
        told = {figure: answer for figure, answer in answers.items() if not isinstance(answer, BackendUnavailable)}
        failed = {figure: answer for figure, answer in answers.items() if isinstance(answer, BackendUnavailable)}
        if not told:
            raise failed[Figure.KV]
        return reading(pods, told, {figure: error.message for figure, error in failed.items()})

    async def _ask(self, expression: str) -> list[Series] | BackendUnavailable:
        try:
            return await self._prometheus.vector(expression)
        except BackendUnavailable as error:
            return error
