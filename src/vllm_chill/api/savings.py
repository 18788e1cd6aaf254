"""What `GET /proxy/savings` answers, and `vllm-chill savings` reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from vllm_chill.core.phrases import timestamp
from vllm_chill.core.savings import NOTHING, Tally
from vllm_chill.core.savings_ledger import Account, Ledger

_HOUR_SECONDS = 3600


class SavingsTally(Struct, frozen=True, kw_only=True):
    """What was counted in some time. GPU-hours are those of the GPUs of all replicas."""

    asleep_gpu_hours: float
    """What one replica would have had, and did not, as it was asleep."""
    awake_gpu_hours: float
    """What its replicas had."""
    saved: float | None
    """`asleep_gpu_hours` at the price of a GPU-hour; null without a price."""
    waited_seconds: float
    """How long callers were held until it had woken, all together."""
    callers_waited: int
    """How many callers that were."""
    wakes: int
    """How often it was woken."""


class SavingsDay(SavingsTally, frozen=True, kw_only=True):
    """That of one day, in UTC."""

    day: str


class TargetSavings(Struct, frozen=True, kw_only=True):
    """That of one target."""

    target: str
    model: str | None
    """What the catalogue calls it, where there is one."""
    gpus: int | None
    """The GPUs of a replica; null where that is not known, which counts as 1."""
    total: SavingsTally
    """That of all days, listed or not."""
    days: list[SavingsDay]
    """The oldest first; days on which nothing was counted are left out."""


class SavingsAnswer(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    since: str | None
    """When counting began, as RFC 3339 has it."""
    currency: str
    gpu_hour_price: float | None
    total: SavingsTally
    """That of all targets together."""
    models: list[TargetSavings]
    """All that were ever counted, by their names."""


def savings_answer(ledger: Ledger, price: float | None, currency: str, days: int | None = None) -> SavingsAnswer:
    """The answer with what was counted. `price` is a GPU-hour's; `days` how many to list of each, None for all."""
    accounts = sorted(ledger.accounts.items())
    return SavingsAnswer(
        since=None if ledger.since is None else timestamp(datetime.fromtimestamp(ledger.since, UTC)),
        currency=currency,
        gpu_hour_price=price,
        total=SavingsTally(**_told(sum((account.total for _, account in accounts), NOTHING), price)),
        models=[_of_target(name, account, price, days) for name, account in accounts],
    )


def _of_target(name: str, account: Account, price: float | None, days: int | None) -> TargetSavings:
    listed = sorted(account.days)
    newest = listed if days is None else listed[len(listed) - min(days, len(listed)) :]
    return TargetSavings(
        target=name,
        model=account.model,
        gpus=account.gpus,
        total=SavingsTally(**_told(account.total, price)),
        days=[SavingsDay(day=str(day), **_told(account.days[day], price)) for day in newest],
    )


def _told(tally: Tally, price: float | None) -> dict[str, Any]:
    asleep = tally.asleep / _HOUR_SECONDS
    return {
        "asleep_gpu_hours": round(asleep, 6),
        "awake_gpu_hours": round(tally.awake / _HOUR_SECONDS, 6),
        "saved": None if price is None else round(asleep * price, 6),
        "waited_seconds": round(tally.waited, 3),
        "callers_waited": tally.callers,
        "wakes": tally.wakes,
    }
