"""What a person is shown of what was saved."""

from __future__ import annotations

import asyncio
import json
from datetime import date, timedelta

import pytest
from click.testing import CliRunner

from tests.scenarios.stage import stage
from vllm_chill.api.savings import SavingsAnswer, savings_answer
from vllm_chill.cli import cli
from vllm_chill.cli.savings import tell
from vllm_chill.core.savings import Tally
from vllm_chill.core.savings_ledger import Account, Ledger
from vllm_chill.errors import AskFailed

FIRST = date(2026, 11, 20)
NOON = 1_795_176_000.0


def answer(price: float | None = 2.5, days: int | None = 7, **accounts: Account) -> SavingsAnswer:
    return savings_answer(Ledger(NOON, accounts), price, "EUR", days)


def a_week(number: int, gpus: int | None = 4) -> Account:
    day = Tally(asleep=16 * 3600 * 4, awake=8 * 3600 * 4, waited=93.4, callers=3, wakes=2)
    return Account(None, gpus, days={FIRST + timedelta(n): day for n in range(number)})


def test_a_table_adds_up() -> None:
    assert tell(answer(days=2, a=a_week(5), b=Account("qwen", 1, days={FIRST: Tally(awake=1800)}))).splitlines() == [
        "Counted since 2026-11-20T12:00:00Z, at 2.5 EUR for a GPU-hour.",
        "",
        "MODEL         ASLEEP GPU-H  AWAKE GPU-H  SAVED EUR  WAKES  CALLERS WAITED    FOR",
        "a (4 GPUs)          320.00       160.00     800.00     10              15  7m47s",
        "  earlier           192.00        96.00     480.00      6               9  4m40s",
        "  2026-11-23         64.00        32.00     160.00      2               3  1m33s",
        "  2026-11-24         64.00        32.00     160.00      2               3  1m33s",
        "qwen (1 GPU)          0.00         0.50       0.00      0               0     0s",
        "  2026-11-20          0.00         0.50       0.00      0               0     0s",
        "TOTAL               320.00       160.50     800.00     10              15  7m47s",
    ]


def test_without_a_price_it_says_how_to_have_money() -> None:
    lines = tell(answer(None, a=a_week(1, None))).splitlines()
    assert lines[0] == "Counted since 2026-11-20T12:00:00Z. Give the proxy --gpu-hour-price to have it in money."
    assert "SAVED" not in lines[2]
    assert lines[3].startswith("a (GPUs not known, counted as 1)")
    assert "earlier" not in "".join(lines)


def test_with_no_days_there_are_models_and_their_total() -> None:
    assert [line.split()[0] for line in tell(answer(days=0, a=a_week(3))).splitlines()[2:]] == ["MODEL", "a", "TOTAL"]


def test_nothing_is_said_as_such() -> None:
    assert tell(answer()) == "Nothing has been counted yet."


async def run(url: str, *arguments: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["savings", "--url", url, *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


async def test_it_asks_a_running_proxy() -> None:
    async with stage() as s:
        assert await run(s.url) == "Nothing has been counted yet.\n"
        assert json.loads(await run(s.url, "--json", "--days", "3"))["models"] == []
        assert not s.backend.writes


async def test_a_proxy_that_is_not_there_is_told() -> None:
    with pytest.raises(AskFailed, match="cannot be asked"):
        await run("http://127.0.0.1:1")
