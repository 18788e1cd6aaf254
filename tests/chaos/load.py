"""Steady load on a proxy: every request that is sent is accounted for, with what came of it and how long that took."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from tests.cluster.serving import CHAT, question

ANSWERED = "answered"
_MOST_SECONDS = 30.0
_PAUSE_SECONDS = 0.2
"""Before the next stream, where one has failed."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, sent in an interval of the scenario; `outcome` is ANSWERED or the class of its failure."""

    interval: str
    streamed: bool
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Of plain requests that were answered, in seconds."""

    p50: float
    p99: float
    most: float


class Load:
    """`per_second` plain requests a second, whether or not those before have been answered, and `streams` streams one
    after another all the time, each of `tokens` tokens. They go to each of the proxies in turn. What is sent belongs to
    the `interval` that is set then.

    Invariant: once it is left, `sent` has every request, and each has an outcome.
    """

    def __init__(self, *urls: str, per_second: int = 40, streams: int = 4, tokens: int = 50) -> None:
        self.interval = "before"
        self.sent: list[Sent] = []
        self._urls = itertools.cycle(url + CHAT for url in urls)
        self._per_second = per_second
        self._streams = streams
        self._tokens = tokens
        self._over = asyncio.Event()
        self._session: aiohttp.ClientSession
        self._sending: list[asyncio.Task[None]] = []
        self._asked: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_MOST_SECONDS)
        )
        self._sending = [asyncio.create_task(self._keep_asking())]
        self._sending += [asyncio.create_task(self._keep_streaming()) for _ in range(self._streams)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        await asyncio.gather(*self._sending)
        await asyncio.gather(*self._asked)
        await self._session.close()

    def of(self, *intervals: str) -> list[Sent]:
        """What was sent in these intervals; in all of them if none is named."""
        return [one for one in self.sent if not intervals or one.interval in intervals]

    def failures(self, *intervals: str) -> Counter[str]:
        """What was not answered, by class."""
        return Counter(one.outcome for one in self.of(*intervals) if one.outcome != ANSWERED)

    def latency(self, interval: str) -> Latency:
        """How long plain requests of an interval took."""
        taken = [one.seconds for one in self.of(interval) if one.outcome == ANSWERED and not one.streamed]
        return Latency(quantile(taken, 0.5), quantile(taken, 0.99), max(taken, default=math.nan))

    async def _keep_asking(self) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while not self._over.is_set():
            asking = asyncio.create_task(self._ask(streamed=False))
            self._asked.add(asking)
            asking.add_done_callback(self._asked.discard)
            due += 1 / self._per_second
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), max(0.0, due - now()))

    async def _keep_streaming(self) -> None:
        while not self._over.is_set():
            await self._ask(streamed=True)
            if self.sent[-1].outcome != ANSWERED:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, *, streamed: bool) -> None:
        now = asyncio.get_running_loop().time
        begun, interval = now(), self.interval
        try:
            async with self._session.post(next(self._urls), json=self._question(streamed)) as response:
                outcome = self._judged(response.status, await response.read(), streamed)
        except aiohttp.ServerTimeoutError:
            outcome = "timeout"
        except TimeoutError:
            outcome = "timeout"
        except aiohttp.ClientConnectorError:
            outcome = "refused"
        except aiohttp.ClientPayloadError:
            outcome = "cut"
        except (aiohttp.ClientError, ConnectionError):
            outcome = "reset"
        self.sent.append(Sent(interval, streamed, outcome, now() - begun))

    def _question(self, streamed: bool) -> dict[str, object]:
        return question(self._tokens, stream=True) if streamed else question()

    def _judged(self, status: int, body: bytes, streamed: bool) -> str:
        if status != 200:
            return str(status)
        if not streamed:
            return ANSWERED if _is_answer(body) else "wrong body"
        whole = body.endswith(b"data: [DONE]\n\n") and body.count(b'"delta"') == self._tokens
        return ANSWERED if whole else "cut"


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _is_answer(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["choices"][0]["message"]["content"] == "t0 ")
    except (ValueError, KeyError, IndexError, TypeError):
        return False
