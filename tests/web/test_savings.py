"""What was saved, as it is asked for and as it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from tests.scenarios.stage import stage
from vllm_chill.adapters.memory_savings import MemorySavings
from vllm_chill.control.savings import Savings
from vllm_chill.core.savings import Tally
from vllm_chill.core.savings_ledger import Ledger
from vllm_chill.core.target import Asleep, Observation, Target, TargetRef
from vllm_chill.errors import BadRequest
from vllm_chill.web.savings import SavingsPage

SAVINGS = "/proxy/savings"
REF = TargetRef("ns", "a")
NOON = 1_795_262_400.0


async def told(page: SavingsPage, query: str = "") -> dict[str, Any]:
    response = await page.tell(make_mocked_request("GET", SAVINGS + query))
    assert response.text is not None
    answer: dict[str, Any] = json.loads(response.text)
    return answer


async def test_a_proxy_that_has_counted_nothing_says_so_and_wakes_nothing() -> None:
    async with stage() as s:
        status, body = await s.get(SAVINGS)
        assert (status, body["models"], body["gpu_hour_price"], body["currency"]) == (200, [], None, "USD")
        assert s.phase_is(Asleep)
        assert not s.backend.writes


async def test_what_another_proxy_has_written_is_told_too() -> None:
    store = MemorySavings()
    ours = Savings(store, "p", wall=lambda: NOON)
    ours.of("ns/a", lambda: 2).looked(Target(REF, Asleep(0), observed=Observation(0, 0)), 0)
    theirs = Ledger(NOON - 9).counted("ns/b", ours.today(Tally(asleep=3600, waited=5, callers=1)), gpus=1)
    await store.write(theirs.dump(), None)
    answer = await told(SavingsPage(ours, 2.0, "EUR"))
    assert answer["since"] == "2026-11-21T11:59:51Z"
    assert (answer["currency"], answer["gpu_hour_price"]) == ("EUR", 2.0)
    [other] = [model for model in answer["models"] if model["target"] == "ns/b"]
    assert other["total"] == {
        "asleep_gpu_hours": 1.0,
        "awake_gpu_hours": 0.0,
        "saved": 2.0,
        "waited_seconds": 5.0,
        "callers_waited": 1,
        "wakes": 0,
    }


async def test_days_are_listed_as_asked() -> None:
    store = MemorySavings()
    savings = Savings(store, "p", wall=lambda: NOON)
    await store.write(Ledger(NOON).counted("ns/a", savings.today(Tally(asleep=1))).dump(), None)
    page = SavingsPage(savings)
    assert [len((await told(page, query))["models"][0]["days"]) for query in ("", "?days=1", "?days=0")] == [1, 1, 0]


@pytest.mark.parametrize("days", ["", "-1", "all", "1.5", "99999999999999999999", "100001"])
async def test_a_number_of_days_that_is_none_is_refused(days: str) -> None:
    with pytest.raises(BadRequest, match=f'days="{days}" is not known; give a number of days'):
        await told(SavingsPage(), f"?days={days}")
