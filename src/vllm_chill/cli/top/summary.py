"""What a view says above its rows: which proxy it is, how many targets are how, what was saved today, who leads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from vllm_chill.api.status import ProxyStatus
from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.status import words_of_peers
from vllm_chill.cli.top.lines import Line, Look, joined, wrapped
from vllm_chill.core.cold_start import duration
from vllm_chill.errors import AskFailed

_SAVINGS = "/proxy/savings"


class Day(Struct, frozen=True, kw_only=True):
    """What was saved on a day of a model, UTC."""

    day: str
    asleep_gpu_hours: float = 0.0
    saved: float | None = None
    waited_seconds: float = 0.0
    wakes: int = 0


class SavedModel(Struct, frozen=True, kw_only=True):
    """A model's days."""

    days: list[Day] = []


class Savings(Struct, frozen=True, kw_only=True):
    """What of the answer to GET /proxy/savings is shown here."""

    currency: str | None = None
    models: list[SavedModel] = []


def savings_of(proxy: Proxy) -> Savings | None:
    """What it says was saved; None where it says nothing."""
    try:
        return proxy.get(_SAVINGS, Savings)
    except AskFailed:
        return None


def words_of_savings(savings: Savings, today: datetime) -> str | None:
    """What was saved today, over all models; None if nothing is known of today."""
    date = today.astimezone(UTC).date().isoformat()
    days = [day for model in savings.models for day in model.days if day.day == date]
    if not days:
        return None
    money = [day.saved for day in days if day.saved is not None]
    worth = f" ({sum(money):.2f} {savings.currency or ''}".rstrip() + ")" if money else ""
    wakes = sum(day.wakes for day in days)
    waited = ""
    if wakes:
        times = f"{wakes} {'wake' if wakes == 1 else 'wakes'}"
        waited = f", {times}, callers waited {duration(sum(day.waited_seconds for day in days))}"
    return f"today: {sum(day.asleep_gpu_hours for day in days):.1f} GPU-hours saved{worth}{waited}"


def summary(
    status: ProxyStatus,
    url: str,
    width: int,
    savings: Savings | None = None,
    today: datetime | None = None,
    away: Sequence[Line] = (),
) -> list[Line]:
    """The lines above the rows; `away` are those that say that the proxy does not answer."""
    lines = wrapped(f"vllm-chill {status.version} at {url}", width, Look.STRONG)
    lines += away
    lines += wrapped(_counts(status), width)
    if savings is not None and today is not None and (words := words_of_savings(savings, today)) is not None:
        lines += wrapped(words, width, Look.GOOD)
    if status.trouble is not None:
        lines += wrapped(f"The models are not known: {status.trouble}.", width, Look.BAD)
    if status.peers is not None and (sentence := words_of_peers(status.peers)) is not None:
        lines += wrapped(sentence, width, Look.BAD if status.peers.trouble is not None else Look.PLAIN)
    if status.draining and not away:
        lines += wrapped("This proxy is shutting down.", width, Look.BAD)
    return lines


def words_of_away(reason: str, age_seconds: float | None, width: int) -> list[Line]:
    """The lines that say that the proxy does not answer, and how old is what is shown."""
    old = "" if age_seconds is None else f" What is shown was so {duration(age_seconds)} ago."
    return wrapped(f"It does not answer ({reason.rstrip('.')}); it is asked again.{old}", width, Look.BAD)


def _counts(status: ProxyStatus) -> str:
    targets = status.targets
    if not targets:
        return "no model yet"
    phases = Counter(target.phase for target in targets)
    how = joined([f"{count} {phase}" for phase, count in phases.most_common()])
    number = f"{len(targets)} targets: " if len(targets) > 1 else ""
    waiting, flying = sum(target.waiting for target in targets), sum(target.in_flight for target in targets)
    return f"{number}{how if number else targets[0].phase}; {waiting} waiting, {flying} in flight"
