"""What is above the rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from aiohttp import web
from msgspec.structs import replace

from tests.cli.serves import serves
from tests.cli.top.statuses import EVERY, target
from vllm_chill.api.status import ProxyStatus
from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.top.lines import text_of
from vllm_chill.cli.top.summary import Savings, savings_of, summary, words_of_away, words_of_savings

NOW = datetime(2026, 11, 22, 0, 30, tzinfo=UTC)
TALLY = {"asleep_gpu_hours": 10.25, "awake_gpu_hours": 1.0, "saved": 25.625, "waited_seconds": 90, "wakes": 2}
ANSWER = {
    "since": "2026-11-01T00:00:00Z",
    "currency": "USD",
    "gpu_hour_price": 2.5,
    "total": TALLY,
    "models": [
        {"target": "ns/a", "model": "a", "gpus": 1, "total": TALLY, "days": [{"day": "2026-11-22", **TALLY}]},
        {
            "target": "ns/b",
            "model": None,
            "gpus": None,
            "total": TALLY,
            "days": [{"day": "2026-11-21", **TALLY}, {"day": "2026-11-22", **TALLY, "saved": None}],
        },
    ],
}


async def told(answer: object, status: int = 200) -> Savings | None:
    async def answers(_: web.BaseRequest) -> web.Response:
        return web.json_response(answer, status=status)

    import asyncio

    async with serves(answers) as url:
        return await asyncio.to_thread(savings_of, Proxy(url))


async def test_savings_are_those_of_today_over_all_models() -> None:
    savings = await told(ANSWER)
    assert savings is not None
    assert words_of_savings(savings, NOW) == "today: 20.5 GPU-hours saved (25.62 USD), 4 wakes, callers waited 3m"
    # Days are UTC, wherever the person is.
    there = NOW.astimezone(timezone(timedelta(hours=-8)))
    assert words_of_savings(savings, there) == words_of_savings(savings, NOW)
    assert words_of_savings(savings, NOW + timedelta(days=1)) is None


async def test_a_proxy_that_tells_no_savings_is_as_good() -> None:
    assert await told({"error": {"message": "there is nothing at /proxy/savings"}}, 404) is None
    assert await told([]) is None


def test_the_head_says_which_proxy_it_is_and_how_its_targets_are() -> None:
    assert [text_of(line) for line in summary(EVERY, "http://x", 100)] == [
        "vllm-chill 9 at http://x",
        "6 targets: 2 ready, 1 waking, 1 queued, 1 failed, 1 asleep; 15 waiting, 7 in flight",
        "1 other proxy serves this too; this one puts it to sleep.",
    ]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (ProxyStatus(version="9", draining=False, targets=[target("a")]), "asleep; 0 waiting, 0 in flight"),
        (ProxyStatus(version="9", draining=False, targets=[]), "no model yet"),
        (ProxyStatus(version="9", draining=False, trouble="away", targets=[]), "The models are not known: away."),
        (replace(EVERY, draining=True), "This proxy is shutting down."),
    ],
)
def test_what_matters_has_a_line(status: ProxyStatus, says: str) -> None:
    assert says in [text_of(line) for line in summary(status, "http://x", 100)]


def test_a_proxy_that_is_away_is_told_first_and_with_how_old_all_is() -> None:
    gone = words_of_away("[Errno 111] Connection refused", 75, 100)
    assert [text_of(line) for line in summary(replace(EVERY, draining=True), "http://x", 100, away=gone)][1:3] == [
        "It does not answer ([Errno 111] Connection refused); it is asked again. What is shown was so 1m15s",
        "ago.",
    ]
