from __future__ import annotations

from datetime import date

from msgspec import to_builtins

from vllm_chill.api.savings import savings_answer
from vllm_chill.core.savings import Tally
from vllm_chill.core.savings_ledger import Account, Ledger

FIRST, SECOND = date(2026, 11, 21), date(2026, 11, 22)
LEDGER = Ledger(
    1_795_219_200.0,
    {
        "ns/b": Account("b", None, days={SECOND: Tally(asleep=3600)}),
        "ns/a": Account(
            None,
            4,
            before=Tally(asleep=36_000, awake=3600, waited=10, callers=1, wakes=1),
            days={SECOND: Tally(asleep=7200, waited=61.5, callers=2, wakes=1), FIRST: Tally(awake=1800)},
        ),
    },
)
NONE = {"asleep_gpu_hours": 0, "awake_gpu_hours": 0, "waited_seconds": 0, "callers_waited": 0, "wakes": 0}


def test_all_of_it_with_a_price() -> None:
    assert to_builtins(savings_answer(LEDGER, 2.5, "EUR")) == {
        "since": "2026-11-21T00:00:00Z",
        "currency": "EUR",
        "gpu_hour_price": 2.5,
        "total": {
            "asleep_gpu_hours": 13.0,
            "awake_gpu_hours": 1.5,
            "saved": 32.5,
            "waited_seconds": 71.5,
            "callers_waited": 3,
            "wakes": 2,
        },
        "models": [
            {
                "target": "ns/a",
                "model": None,
                "gpus": 4,
                "total": {
                    "asleep_gpu_hours": 12.0,
                    "awake_gpu_hours": 1.5,
                    "saved": 30.0,
                    "waited_seconds": 71.5,
                    "callers_waited": 3,
                    "wakes": 2,
                },
                "days": [
                    NONE | {"day": "2026-11-21", "awake_gpu_hours": 0.5, "saved": 0},
                    NONE
                    | {"day": "2026-11-22", "asleep_gpu_hours": 2.0, "saved": 5.0}
                    | {"waited_seconds": 61.5, "callers_waited": 2, "wakes": 1},
                ],
            },
            {
                "target": "ns/b",
                "model": "b",
                "gpus": None,
                "total": NONE | {"asleep_gpu_hours": 1.0, "saved": 2.5},
                "days": [NONE | {"day": "2026-11-22", "asleep_gpu_hours": 1.0, "saved": 2.5}],
            },
        ],
    }


def test_without_a_price_there_is_no_money() -> None:
    answer = savings_answer(LEDGER, None, "USD")
    assert answer.gpu_hour_price is None
    assert {answer.total.saved, *(model.total.saved for model in answer.models)} == {None}
    assert {day.saved for model in answer.models for day in model.days} == {None}


def test_the_newest_days_are_listed_and_totals_are_of_all() -> None:
    for days, listed in (
        (0, []),
        (1, ["2026-11-22"]),
        (2, ["2026-11-21", "2026-11-22"]),
        (99, ["2026-11-21", "2026-11-22"]),
    ):
        first, _ = savings_answer(LEDGER, 2.5, "USD", days).models
        assert [day.day for day in first.days] == listed
        assert first.total.asleep_gpu_hours == 12
