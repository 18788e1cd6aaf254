"""`vllm-chill savings`: what a running proxy has saved, and how long callers waited for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from msgspec import to_builtins

from vllm_chill.api.savings import SavingsAnswer, SavingsTally, TargetSavings
from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.cli.status import words_of
from vllm_chill.cli.tables import aligned
from vllm_chill.core.routing import Route

_DAYS = 7
_NUMBERS = range(1, 7)


@click.command(
    short_help="Tell what a running proxy has saved.",
    epilog="\b\nExamples:\n  vllm-chill savings\n  vllm-chill savings --days 30\n  vllm-chill savings --json",
)
@click.option(
    "--days",
    type=click.IntRange(0, 100_000),
    help=f"How many days to list of each model, the newest; totals are of all. [default: {_DAYS}; all with --json]",
)
@url_option
@json_option
def savings(url: str, days: int | None, as_json: bool) -> None:
    """Tell how many GPU-hours the models were asleep and awake, what that saved, and how long callers waited for it.

    Days are UTC. A model's own line has its total, and the lines below it add up to that.
    """
    listed = days if days is not None or as_json else _DAYS
    query = "" if listed is None else f"?days={listed}"
    told = Proxy(url).ask("GET", Route.PROXY_SAVINGS.value + query, SavingsAnswer)
    if as_json:
        print_json(told.text)
        return
    click.echo(tell(told.value))


def tell(answer: SavingsAnswer) -> str:
    """What was saved, for a person: a table with a line for each model, its days below it, and a total."""
    if not answer.models:
        return "Nothing has been counted yet."
    rows = [_heading(answer), *(row for model in answer.models for row in _rows(model, answer))]
    rows.append(_row("TOTAL", answer.total, answer))
    return "\n".join([_terms(answer), "", *aligned(rows, _NUMBERS)])


def _terms(answer: SavingsAnswer) -> str:
    since = "" if answer.since is None else f" since {answer.since}"
    if answer.gpu_hour_price is None:
        return f"Counted{since}. Give the proxy --gpu-hour-price to have it in money."
    return f"Counted{since}, at {answer.gpu_hour_price:g} {answer.currency} for a GPU-hour."


def _heading(answer: SavingsAnswer) -> Sequence[str]:
    money = () if answer.gpu_hour_price is None else (f"SAVED {answer.currency}",)
    return ("MODEL", "ASLEEP GPU-H", "AWAKE GPU-H", *money, "WAKES", "CALLERS WAITED", "FOR")


def _rows(model: TargetSavings, answer: SavingsAnswer) -> Iterator[Sequence[str]]:
    yield _row(f"{model.model or model.target} ({_gpus(model.gpus)})", model.total, answer)
    earlier = _less(model.total, model.days)
    if model.days and any(to_builtins(earlier).values()):
        yield _row("  earlier", earlier, answer)
    for day in model.days:
        yield _row(f"  {day.day}", day, answer)


def _gpus(number: int | None) -> str:
    if number is None:
        return "GPUs not known, counted as 1"
    return f"{number} GPU{'' if number == 1 else 's'}"


def _row(name: str, tally: SavingsTally, answer: SavingsAnswer) -> Sequence[str]:
    money = () if answer.gpu_hour_price is None else (f"{tally.saved or 0:,.2f}",)
    return (
        name,
        f"{tally.asleep_gpu_hours:,.2f}",
        f"{tally.awake_gpu_hours:,.2f}",
        *money,
        str(tally.wakes),
        str(tally.callers_waited),
        words_of(tally.waited_seconds) or "0s",
    )


def _less(total: SavingsTally, days: Sequence[SavingsTally]) -> SavingsTally:
    """What is left of it without these days. Rounding leaves nothing."""

    def left(whole: float, parts: Iterator[float]) -> float:
        rest = whole - sum(parts)
        return rest if rest > len(days) * 1e-3 else 0.0

    saved = None if total.saved is None else left(total.saved, (day.saved or 0 for day in days))
    return SavingsTally(
        asleep_gpu_hours=left(total.asleep_gpu_hours, (day.asleep_gpu_hours for day in days)),
        awake_gpu_hours=left(total.awake_gpu_hours, (day.awake_gpu_hours for day in days)),
        saved=saved,
        waited_seconds=left(total.waited_seconds, (day.waited_seconds for day in days)),
        callers_waited=total.callers_waited - sum(day.callers_waited for day in days),
        wakes=total.wakes - sum(day.wakes for day in days),
    )
