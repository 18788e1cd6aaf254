"""What balancing over replicas does for prefix caches: hit rate, time to first token and spread, by strategy.

    python benchmarks/balancing.py [--seconds 12] [--json FILE] [--plot FILE]

It needs no GPU: the replicas are stubs that model vLLM's prefix cache. A prompt is cut into blocks of 16 tokens, a
replica keeps the blocks that it used last, and the first token comes when the tokens that were not cached have been
computed, one prompt after the other. The callers hold conversations of several turns, those of a tenant with the same
system prompt before them, through the real proxy, each waiting for its answer before it says more. Everything runs in
this process and at the same length, so that the ratios count and the absolute times do not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from tests.scenarios.stage import Stage, stage  # noqa: E402 - not an installed package
from vllm_chill.control.lease import Bounds  # noqa: E402
from vllm_chill.core.balancing import Seats  # noqa: E402
from vllm_chill.core.target import Endpoint, Observation  # noqa: E402
from vllm_chill.proxy.affinity import Affinity  # noqa: E402

REPLICAS = 4
CALLERS = 32
TENANTS = 6
TURNS = 8

BLOCK_TOKENS = 16
CACHE_TOKENS = 36_000
TOKENS_PER_SECOND = 8_000.0
ANSWER_SECONDS = 0.15

SYSTEM_TOKENS = 1_000
SAID_TOKENS = 300
ANSWER_TOKENS = 100
THINK_SECONDS = 0.05

WARM_UP = 0.3  # of a run, which does not count


class RoundRobin(Seats):
    """One replica after the other, whatever they have to do: for comparison."""

    __slots__ = ()

    def take(
        self, endpoints: Sequence[Endpoint], key: int | None = None, besides: Endpoint | None = None
    ) -> Endpoint | None:
        self._turn += 1
        found = endpoints[self._turn % len(endpoints)]
        self._ranks[found] += 1 << 48
        return found


@dataclass(frozen=True)
class Strategy:
    name: str
    affinity: Affinity | None = None
    load_factor: float | None = None
    round_robin: bool = False


STRATEGIES = (
    Strategy("round robin", round_robin=True),
    Strategy("least-request"),
    Strategy("prefix-hash", Affinity(prefix_length=100), 1.25),
    Strategy("session header", Affinity("X-Session"), 1.25),
)


class Replica:
    """A stub of vLLM: it computes one prompt at a time, and keeps the blocks that it used last."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._computing = asyncio.Lock()
        self.outstanding = 0
        self.tokens = self.cached = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self.outstanding += 1
        try:
            asked = json.loads(await request.content.read())
            await self._compute(asked["messages"])
            with contextlib.suppress(ConnectionError):  # the run is over
                await response.prepare(request)
                await response.write(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
                await asyncio.sleep(ANSWER_SECONDS)
                await response.write(b"data: [DONE]\n\n")
                await response.write_eof()
            return response
        finally:
            self.outstanding -= 1

    async def _compute(self, messages: list[dict[str, str]]) -> None:
        async with self._computing:
            blocks = list(_blocks(messages))
            hits = 0
            while hits < len(blocks) and blocks[hits] in self._blocks:
                hits += 1
            for block in reversed(blocks):  # the end of a prompt is the first to go
                self._blocks[block] = None
                self._blocks.move_to_end(block)
            while len(self._blocks) > CACHE_TOKENS // BLOCK_TOKENS:
                self._blocks.popitem(last=False)
            self.tokens += len(blocks) * BLOCK_TOKENS
            self.cached += hits * BLOCK_TOKENS
            await asyncio.sleep((len(blocks) - hits) * BLOCK_TOKENS / TOKENS_PER_SECOND)


def _blocks(messages: list[dict[str, str]]) -> Iterator[int]:
    """Each block as the hash of all up to its end, as vLLM has it; a word is a token."""
    words = [word for message in messages for word in (message["role"], *message["content"].split())]
    before = 0
    for at in range(0, len(words) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *words[at : at + BLOCK_TOKENS]))
        yield before


@dataclass
class Found:
    """What one run has shown. `firsts` are seconds to the first token, `spread` how many times the mean the busiest
    replica had to do at a time.
    """

    strategy: str
    firsts: list[float] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    hit_rate: float = 0.0
    failed: int = 0

    @property
    def spread(self) -> float:
        means = [statistics.fmean(of_one) for of_one in zip(*self.samples, strict=True)]
        return max(means) / (statistics.fmean(means) or 1)

    def percentile(self, part: float) -> float:
        ordered = sorted(self.firsts)
        return ordered[min(len(ordered) - 1, math.floor(part * len(ordered)))]

    @property
    def figures(self) -> dict[str, float]:
        return {
            "hit_rate": round(self.hit_rate, 3),
            "ttft_p50_ms": round(self.percentile(0.5) * 1e3, 1),
            "ttft_p95_ms": round(self.percentile(0.95) * 1e3, 1),
            "spread": round(self.spread, 2),
            "requests": len(self.firsts),
            "failed": self.failed,
        }


class Callers:
    """Those who hold conversations. Each conversation is another one, and the same in every run."""

    def __init__(self, s: Stage, found: Found, since: float) -> None:
        self._s = s
        self._found = found
        self._since = since

    async def one(self, number: int) -> None:
        """Hold one conversation after the other, until cancelled."""
        chance = random.Random(number)
        await asyncio.sleep(chance.random())
        talk = 0
        while True:
            talk += 1
            await self._talk(chance, f"{number}-{talk}", chance.randrange(TENANTS))

    async def _talk(self, chance: random.Random, name: str, tenant: int) -> None:
        messages = [{"role": "system", "content": _words(random.Random(f"tenant {tenant}"), SYSTEM_TOKENS)}]
        for _ in range(chance.randint(2, TURNS)):
            messages.append({"role": "user", "content": _words(chance, SAID_TOKENS)})
            await self._ask(messages, name)
            messages.append({"role": "assistant", "content": _words(chance, ANSWER_TOKENS)})
            await asyncio.sleep(THINK_SECONDS * chance.random())

    async def _ask(self, messages: list[dict[str, str]], session: str) -> None:
        body = {"model": "stub", "stream": True, "messages": messages}
        begun = time.perf_counter()
        async with self._s.session.post(
            f"{self._s.url}/v1/chat/completions", json=body, headers={"X-Session": session}
        ) as response:
            first = await response.content.readany()
            seconds = time.perf_counter() - begun
            await response.read()
        if begun < self._since:
            return
        if response.status == 200 and first:
            self._found.firsts.append(seconds)
        else:
            self._found.failed += 1


def _words(chance: random.Random, count: int) -> str:
    return " ".join(f"w{chance.randrange(10_000)}" for _ in range(count))


@contextlib.asynccontextmanager
async def replicas() -> AsyncIterator[tuple[tuple[Replica, ...], tuple[Endpoint, ...]]]:
    """The stubs and where they listen: their addresses are the same in every run, as the ring is made of them."""
    async with contextlib.AsyncExitStack() as stack:
        made, endpoints = [], []
        for number in range(REPLICAS):
            replica = Replica()
            runner = web.ServerRunner(web.Server(replica, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, f"127.0.10.{number + 1}", 8000).start()
            made.append(replica)
            endpoints.append(Endpoint(*runner.addresses[0][:2]))
        yield tuple(made), tuple(endpoints)


async def run(strategy: Strategy, seconds: float) -> Found:
    """One run of so many seconds."""
    found = Found(strategy.name)
    async with (
        replicas() as (stubs, endpoints),
        stage(awake=True, affinity=strategy.affinity, bounds=Bounds(load_factor=strategy.load_factor)) as s,
    ):
        if strategy.round_robin:
            s.controller._seats = RoundRobin()
        s.controller.observed(Observation(REPLICAS, REPLICAS, endpoints))
        begun = time.perf_counter()
        callers = Callers(s, found, begun + WARM_UP * seconds)
        tasks = [asyncio.create_task(callers.one(number)) for number in range(CALLERS)]
        await asyncio.sleep(WARM_UP * seconds)
        for stub in stubs:
            stub.tokens = stub.cached = 0
        while time.perf_counter() - begun < seconds:
            await asyncio.sleep(0.05)
            found.samples.append([stub.outstanding for stub in stubs])
        found.hit_rate = sum(stub.cached for stub in stubs) / sum(stub.tokens for stub in stubs)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception) and not isinstance(ended, aiohttp.ClientError):
                raise ended
        await s.until(lambda: not s.controller.target.in_flight)
    return found


def table(found: Sequence[Found]) -> str:
    """As it stands in docs/balancing.md."""
    lines = [
        "| strategy | hit rate | TTFT p50 | TTFT p95 | busiest replica / mean | requests answered |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        shown = one.figures
        lines.append(
            f"| {one.strategy} | {shown['hit_rate']:.0%} | {shown['ttft_p50_ms']:.0f} ms | "
            f"{shown['ttft_p95_ms']:.0f} ms | {shown['spread']:.2f} | {shown['requests']:.0f} |"
        )
    return "\n".join(lines)


def plot(found: Sequence[Found], file: Path) -> None:
    """The part of requests that have their first token by then, a line for each strategy."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "vllm-chill"
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for one in found:
        ordered = sorted(one.firsts)
        parts = [(at + 1) / len(ordered) for at in range(len(ordered))]
        axes.plot([seconds * 1e3 for seconds in ordered], parts, label=f"{one.strategy} ({one.hit_rate:.0%} hits)")
    axes.set(xlabel="milliseconds to the first token", ylabel="part of requests", title="Shared prefixes, 4 replicas")
    axes.set_xlim(left=0, right=max(one.percentile(0.99) for one in found) * 1e3)
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="how long each strategy runs, at most 60")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plot", type=Path, help="draw them there, as SVG")
    asked = parser.parse_args()
    found = [asyncio.run(run(strategy, min(asked.seconds, 60.0))) for strategy in STRATEGIES]
    print(table(found))
    if asked.json is not None:
        figures: dict[str, Any] = {one.strategy: one.figures for one in found}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    if asked.plot is not None:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
