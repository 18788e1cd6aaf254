"""What has been counted of every target so far, as it is kept: a sum that several proxies add to. Pure.

The rule: a proxy writes what it has counted since its last write over what it has just read, so that nothing is lost
between two of them; and it writes its name and the number of that write, so that one which came to pass although nobody
heard of it is not added twice. Days that are too many are put together, and never left out of the sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from vllm_chill.core.savings import LAST_SECONDS, NOTHING, Days, Tally, added, total

MOST_DAYS = 400
"""Of one target: a year, and the month that it is compared with."""
MOST_DAYS_TOGETHER = 9000
"""Of all targets: beyond 22 of them each has fewer."""
MOST_TARGETS = 300
OTHERS = "(others)"
"""What targets are put together as that are too many: those that were counted last the longest ago."""
_MOST_WRITERS = 32
"""The writes of so many proxies are remembered. One that does not know whether it has written looks within minutes."""
MOST_BYTES = 900_000
"""What all of that never comes to as a text. A ConfigMap takes 1 MiB with its metadata."""

_VERSION = 1
_MOST = 1e15


@dataclass(frozen=True, slots=True)
class KeptText:
    """A text as it is kept. `version` is another one after each write."""

    text: str
    version: str


@dataclass(frozen=True, slots=True)
class Account:
    """One target's: its `model` in the catalogue and the `gpus` of a replica, None where not known, both as they were
    last; its days, and what was `before` them.
    """

    model: str | None = None
    gpus: int | None = None
    before: Tally = NOTHING
    days: Days = field(default_factory=dict)

    @property
    def total(self) -> Tally:
        """All of it."""
        return self.before + total(self.days)

    def plus(self, more: Account) -> Account:
        """With what was counted since."""
        return Account(
            self.model if more.model is None else more.model,
            self.gpus if more.gpus is None else more.gpus,
            self.before + more.before,
            added(self.days, more.days),
        )

    def with_days(self, most: int) -> Account:
        """With no more days than these, the newest."""
        if len(self.days) <= most:
            return self
        newest = sorted(self.days)[len(self.days) - most :]
        kept = {day: self.days[day] for day in newest}
        return replace(
            self, before=self.before + total({d: t for d, t in self.days.items() if d not in kept}), days=kept
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """All targets by their names. `since` is when counting began, in seconds since 1970; `writers` has the number of
    the last write of each proxy, the newest last.
    """

    since: float | None = None
    accounts: Mapping[str, Account] = field(default_factory=dict)
    writers: Mapping[str, int] = field(default_factory=dict)

    def plus(self, more: Ledger) -> Ledger:
        """Both together; who has written is as it is here."""
        begun = [since for since in (self.since, more.since) if since is not None]
        accounts = {**self.accounts, **{name: self.of(name).plus(one) for name, one in more.accounts.items()}}
        return Ledger(min(begun, default=None), accounts, self.writers)

    def of(self, name: str) -> Account:
        """One target's account."""
        return self.accounts.get(name, Account())

    def counted(self, name: str, days: Days, *, model: str | None = None, gpus: int | None = None) -> Ledger:
        """With this counted of a target."""
        account = self.of(name).plus(Account(model, gpus, days=days))
        return replace(self, accounts={**self.accounts, name: account})

    def has(self, writer: str, number: int) -> bool:
        """Whether this write has come to pass."""
        return self.writers.get(writer, 0) >= number

    def written(self, more: Ledger, writer: str, number: int) -> Ledger:
        """What is there once this is written; nothing else than now if it has been."""
        if self.has(writer, number):
            return self
        others = [(name, last) for name, last in self.writers.items() if name != writer]
        writers = dict([*others, (writer, number)][-_MOST_WRITERS:])
        return replace(self.plus(more), writers=writers).bounded()

    def bounded(self) -> Ledger:
        """With as many days and targets as are kept apart."""
        kept = self._with_targets(MOST_TARGETS) if len(self.accounts) > MOST_TARGETS else self
        most = min(MOST_DAYS, MOST_DAYS_TOGETHER // max(1, len(kept.accounts)))
        return replace(kept, accounts={name: one.with_days(most) for name, one in kept.accounts.items()})

    def _with_targets(self, most: int) -> Ledger:
        others = self.of(OTHERS)
        apart = [name for name in self.accounts if name != OTHERS]
        apart.sort(key=lambda name: max(self.accounts[name].days, default=date.min))
        for name in apart[: len(apart) - most + 1]:
            others = others.plus(replace(self.accounts[name], model=None, gpus=None))
        kept = {name: self.accounts[name] for name in apart[len(apart) - most + 1 :]}
        return replace(self, accounts=kept | {OTHERS: others})

    def dump(self) -> str:
        """It as a text for `parse`."""
        targets = {name: _account_told(one) for name, one in self.accounts.items()}
        said = {"version": _VERSION, "since": _rounded(self.since), "writers": dict(self.writers), "targets": targets}
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Ledger:
        """What `dump` wrote. Raises ValueError for anything else, such as a newer version's: it is not to be lost."""
        try:
            found = json.loads(text)
            version = found["version"]
            ledger = _parsed(found) if version == _VERSION else None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError("it is not what a proxy writes") from error
        if ledger is None:
            raise ValueError(f"it is of version {version!r}, and this one knows {_VERSION}")
        return ledger


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def _account_told(account: Account) -> dict[str, object]:
    said: dict[str, object] = {} if account.model is None else {"model": account.model}
    if account.gpus is not None:
        said["gpus"] = account.gpus
    if account.before != NOTHING:
        said["before"] = _tally_told(account.before)
    return said | {"days": {str(day): _tally_told(account.days[day]) for day in sorted(account.days)}}


def _tally_told(tally: Tally) -> list[float | int | None]:
    return [_rounded(tally.asleep), _rounded(tally.awake), _rounded(tally.waited), tally.callers, tally.wakes]


def _parsed(found: Any) -> Ledger:
    since = found["since"]
    accounts = {str(name): _account(said) for name, said in found["targets"].items()}
    writers = {str(name): _count(number) for name, number in found["writers"].items()}
    if since is not None and _amount(since) > LAST_SECONDS:
        raise ValueError(f"{since!r} is no time")
    return Ledger(since, accounts, writers)


def _account(said: Any) -> Account:
    model, gpus = said.get("model"), said.get("gpus")
    days = {date.fromisoformat(day): _tally(tally) for day, tally in said["days"].items()}
    return Account(
        None if model is None else str(model),
        None if gpus is None else _count(gpus),
        _tally(said.get("before", [0, 0, 0, 0, 0])),
        days,
    )


def _tally(said: Any) -> Tally:
    asleep, awake, waited, callers, wakes = said
    return Tally(_amount(asleep), _amount(awake), _amount(waited), _count(callers), _count(wakes))


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r} is no amount")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r} is no number of anything")
    return value
