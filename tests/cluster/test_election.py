"""Candidates on a real API server: one dies, one leaves, the server goes away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.api_server import answers, away
from tests.cluster.cluster import Cluster
from tests.serving import clean_environment
from vllm_chill.adapters.kubernetes.client import connect
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.control.election import Election
from vllm_chill.core.election import Terms

TERMS = Terms(4, 2.5, 0.5)
NAME = "leader"
_CANDIDATE = Path(__file__).parent / "candidate.py"


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Turns:
    """Who began to lead and ended, and when; two at a time fail the test."""

    said: list[tuple[str, bool, float]] = field(default_factory=list)
    leading: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def lead(self, name: str) -> None:
        assert not self.leading, f"{name} and {self.leading} lead"
        self._say(name, leads=True)
        try:
            await asyncio.Event().wait()
        finally:
            self._say(name, leads=False)

    def _say(self, name: str, *, leads: bool) -> None:
        self.leading = name if leads else ""
        self.said.append((name, leads, now()))
        self.changed.set()

    async def until(self, leading: str, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while self.leading != leading:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def candidate(cluster: Cluster, turns: Turns, name: str) -> AsyncIterator[asyncio.Task[None]]:
    """A candidate with a client of its own."""
    async with connect(str(cluster.kubeconfig)) as api:
        election = Election(KubernetesLease(api, cluster.namespace, NAME), name, TERMS)
        task = asyncio.create_task(election.run(lambda: turns.lead(name)))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


@asynccontextmanager
async def process(cluster: Cluster, identity: str) -> AsyncIterator[asyncio.subprocess.Process]:
    seconds = (TERMS.lease_seconds, TERMS.renew_deadline_seconds, TERMS.retry_seconds)
    arguments = (str(cluster.kubeconfig), cluster.namespace, NAME, identity, *map(str, seconds))
    one = await asyncio.create_subprocess_exec(
        sys.executable, str(_CANDIDATE), *arguments, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env=clean_environment(),
    )  # fmt: skip
    try:
        yield one
    finally:
        if one.returncode is None:
            one.kill()
        await one.wait()


async def holder(cluster: Cluster) -> str:
    found = await KubernetesLease(cluster.api, cluster.namespace, NAME).get()
    return "" if found is None else found.record.holder


async def test_whoever_leaves_is_followed_at_once(cluster: Cluster) -> None:
    turns = Turns()
    async with candidate(cluster, turns, "a") as a:
        await turns.until("a", 5)
        async with candidate(cluster, turns, "b"):
            await asyncio.sleep(2 * TERMS.retry_seconds)
            begun = now()
            a.cancel()
            await turns.until("b", 5)
            assert now() - begun < 2 * TERMS.retry_seconds
            assert await holder(cluster) == "b"
        assert await holder(cluster) == ""
    assert [(name, leads) for name, leads, _ in turns.said] == [("a", True), ("a", False), ("b", True), ("b", False)]


async def test_one_that_is_killed_is_followed_within_the_lease(cluster: Cluster) -> None:
    turns = Turns()
    async with process(cluster, "process") as leader:
        assert leader.stdout is not None
        # structlog's lines are there too.
        async with asyncio.timeout(20):
            while await leader.stdout.readline() != b"leading\n":
                pass
        assert await holder(cluster) == "process"
        async with candidate(cluster, turns, "b"):
            await asyncio.sleep(2 * TERMS.lease_seconds)
            assert not turns.said, "it is renewed"
            leader.kill()
            killed = now()
            await turns.until("b", TERMS.lease_seconds + TERMS.retry_seconds + 2)
            [(_, _, at)] = turns.said
            assert TERMS.lease_seconds - TERMS.retry_seconds - 1 < at - killed < TERMS.lease_seconds + 1.5


@pytest.mark.slow
async def test_while_the_server_is_away_the_leader_ends_before_its_lease_does_and_leads_again_after(
    cluster: Cluster, control_plane: Path
) -> None:
    turns = Turns()
    async with candidate(cluster, turns, "a"):
        await turns.until("a", 5)
        async with candidate(cluster, turns, "b"):
            await asyncio.sleep(2 * TERMS.retry_seconds)
            try:
                async with away(control_plane):
                    went = now()
                    await turns.until("", TERMS.lease_seconds)
                    assert now() - went <= TERMS.renew_deadline_seconds + 0.5
                    await asyncio.sleep(TERMS.lease_seconds)
                    assert turns.leading == "", "nobody can know that the lease has run out"
            finally:
                await answers(cluster.api)
            async with asyncio.timeout(2 * TERMS.lease_seconds):
                while not turns.leading:
                    turns.changed.clear()
                    await turns.changed.wait()
