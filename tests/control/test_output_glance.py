"""What is known of an output at a glance: nobody waits for it, and it is read as seldom as may be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from vllm_chill.control.output_glance import OutputGlance
from vllm_chill.core.engine_output import Line
from vllm_chill.core.target import (
    Asleep,
    Failed,
    Observation,
    Phase,
    Progress,
    Ready,
    Replica,
    Stage,
    Target,
    TargetRef,
    Waking,
)
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import OutputObserver

WAKING = Waking(1.0, confirmed=True)
FAILED = Failed(2.0, "it crashed", 9.0, confirmed=True)


@dataclass
class Source:
    """ports.EngineOutput that has to be asked, or not; each reading waits for `gate`."""

    found: list[Line] = field(default_factory=list)
    at_hand: bool = False
    error: BackendError | None = None
    reads: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def recent(self, lines: int) -> Sequence[Line] | None:
        return self.found[-lines:] if self.at_hand else None

    async def read(self, lines: int, replica: str | None = None) -> Sequence[Line]:
        self.reads += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.found[-lines:]

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        raise NotImplementedError


def target(phase: Phase, *names: str) -> Target:
    members = tuple(Replica(name, None, False, Progress(Stage.STARTING)) for name in names)
    return Target(TargetRef("a", "b"), phase, observed=Observation(len(names), len(names), members=members))


def lines(replica: str, count: int) -> list[Line]:
    return [Line(replica, f"{replica} {number}") for number in range(count)]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_at_hand_is_told_at_once_ten_lines_of_it_and_of_this_start() -> None:
    glance = OutputGlance(Source([*lines("old", 3), *lines("new", 12)], at_hand=True))
    assert glance.lines(target(WAKING, "new")) == [f"new {number}" for number in range(2, 12)]
    glance = OutputGlance(Source(lines("old", 3), at_hand=True))
    assert glance.lines(target(WAKING, "new")) is None
    assert glance.lines(target(FAILED)) == ["old 0", "old 1", "old 2"]


async def test_nobody_waits_for_what_has_to_be_read_and_it_is_read_once_in_two_seconds() -> None:
    source = Source(lines("pod", 3))
    glance, clock = OutputGlance(source), [0.0]
    glance._clock = lambda: clock[0]
    waking = target(WAKING, "pod")
    assert [glance.lines(waking) for _ in range(50)] == [None] * 50
    await turns()
    assert source.reads == 1
    clock[0] = 10.0
    assert glance.lines(waking) is None, "one reading is under way, however long it takes"
    source.gate.set()
    await turns()
    assert glance.lines(waking) == ["pod 0", "pod 1", "pod 2"]
    await turns()
    assert source.reads == 2
    source.found = lines("pod", 4)
    clock[0] = 11.9
    for _ in range(50):
        assert glance.lines(waking) == ["pod 0", "pod 1", "pod 2"]
        await turns()
    assert source.reads == 2
    clock[0] = 12.0
    glance.lines(waking)
    await turns()
    assert glance.lines(waking) == [f"pod {number}" for number in range(4)]


async def test_nothing_is_read_of_what_sleeps_or_is_ready() -> None:
    source = Source(lines("pod", 3))
    glance = OutputGlance(source)
    assert glance.lines(target(Asleep(0.0))) is None
    assert glance.lines(target(Ready(0.0, 0.0), "pod")) is None
    await turns()
    assert source.reads == 0


async def test_what_was_known_of_a_start_outlives_its_pods_and_not_the_next_start() -> None:
    source = Source(lines("pod", 1))
    source.gate.set()
    glance, clock = OutputGlance(source), [0.0]
    glance._clock = lambda: clock[0]
    glance.lines(target(WAKING, "pod"))
    await turns()
    source.found = []
    for clock[0] in (3.0, 6.0):
        assert glance.lines(target(FAILED)) == ["pod 0"]
        await turns()
    assert glance.lines(target(Waking(8.0, confirmed=True), "pod")) is None


async def test_a_reading_of_the_start_before_is_not_told_of_this_one() -> None:
    source = Source(lines("pod", 1))
    glance = OutputGlance(source)
    glance.lines(target(WAKING, "pod"))
    await turns()
    glance.lines(target(Waking(8.0, confirmed=True), "pod"))
    source.gate.set()
    await turns()
    assert glance._found == ()


async def test_a_right_that_is_missing_is_logged_once_and_asked_for_each_minute() -> None:
    source = Source(error=BackendRefused("no right"))
    source.gate.set()
    glance, clock = OutputGlance(source), [0.0]
    glance._clock = lambda: clock[0]
    with structlog.testing.capture_logs() as log:
        for clock[0] in map(float, range(0, 125, 5)):
            assert glance.lines(target(WAKING, "pod")) is None
            await turns()
    assert (len(log), source.reads) == (1, 3)


async def test_what_cannot_be_read_now_is_read_later() -> None:
    source = Source(lines("pod", 1), error=BackendUnavailable("the node is away"))
    source.gate.set()
    glance, clock = OutputGlance(source), [0.0]
    glance._clock = lambda: clock[0]
    glance.lines(target(WAKING, "pod"))
    await turns()
    source.error, clock[0] = None, 2.0
    glance.lines(target(WAKING, "pod"))
    await turns()
    assert glance.lines(target(WAKING, "pod")) == ["pod 0"]
