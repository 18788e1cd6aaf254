"""A short fuzz run, and a longer one: no crash, no leak. `tests.fuzz.run` is for as long as one likes."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.corpus import pieces, request, response
from tests.fuzz.run import fuzz
from tests.proxy.test_request_framing import check
from vllm_chill.proxy.fast_grammar import first_look
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming

LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])


@LANES
async def test_damaged_bytes_break_nothing_and_leave_nothing(fast: bool) -> None:
    figures = await fuzz(700, seed=7, fast=fast)
    assert figures.inputs == 700
    assert (figures.crashes, figures.leaks) == ([], [])


@pytest.mark.slow
@LANES
async def test_many_damaged_bytes_break_nothing_and_leave_nothing(fast: bool) -> None:
    figures = await fuzz(20_000, seed=8, fast=fast)
    assert (figures.crashes, figures.leaks) == ([], [])
    assert figures.growth_kb < 300  # the allocator makes up to 100 of it; a connection that each tenth leaves, 1000


@pytest.mark.parametrize("count", [3_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_bytes_are_refused_or_read_as_h11_reads_them(count: int) -> None:
    rng = random.Random(9)
    for _ in range(count):
        data = request(rng)
        first_look(data)
        check(data[:20_000], [rng.randrange(2000) for _ in range(2)])


@pytest.mark.parametrize("count", [3_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_responses_are_illegal_not_whole_or_read(count: int) -> None:
    rng = random.Random(10)
    for _ in range(count):
        framing = ResponseFraming(http10=rng.random() < 0.2, no_body=rng.random() < 0.1)
        try:
            for piece in pieces(rng, response(rng)):
                if not framing.complete:
                    framing.feed(piece)
        except IllegalResponse:
            continue
        framing.close()
