"""What one check comes to: fine, a warning or a failure, each with what to do about it. Pure.

The rule: whatever is wrong is said in one sentence, and what to do in another, with something to paste where that is
possible; what could not be looked at says which right that needs, and is neither.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from vllm_chill.core.objects import Json


class Outcome(enum.Enum):
    """How a check came out; the value is how it is told."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has found. `says` and `remedy` are sentences without a full stop; `paste` is a command, or
    YAML with its place in a comment, and may be empty. `check` is the check's name.
    """

    outcome: Outcome
    says: str
    remedy: str = ""
    paste: str = ""
    check: str = ""


def ok(says: str) -> Finding:
    """Something that is as it should be."""
    return Finding(Outcome.OK, says)


def warning(says: str, remedy: str, paste: str = "") -> Finding:
    """Something that works, and could work better, or will not always."""
    return Finding(Outcome.WARNING, says, remedy, paste)


def failure(says: str, remedy: str, paste: str = "") -> Finding:
    """Something that does not work."""
    return Finding(Outcome.FAILURE, says, remedy, paste)


def unknown(why: str, remedy: str = "", paste: str = "") -> Finding:
    """Something that could not be looked at, as a clause says why."""
    return Finding(Outcome.UNKNOWN, f"could not look: {why}", remedy, paste)


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be read, as a clause says why: `needs the right to list nodes`."""

    why: str


Objects = tuple[Json, ...] | Unseen
"""The objects of one kind; none of a kind that the server does not know."""


class CouldNotLook(Exception):
    """A check needs what could not be read."""


_T = TypeVar("_T")


def seen(what: _T | Unseen) -> _T:
    """What was read. Raises CouldNotLook."""
    if isinstance(what, Unseen):
        _could_not(what)
    return what


def _could_not(what: Unseen) -> NoReturn:
    raise CouldNotLook(what.why)


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, what it looks at, why it matters and what helps, each for the table in docs/doctor.md.

    `find` is given what it is to look at, yields what it finds, and nothing where it has nothing to say. It raises
    CouldNotLook if what it needs could not be read. `of_target`: it has nothing to say without the target.
    """

    name: str
    looks: str
    harm: str
    remedy: str
    find: Callable[..., Any]
    of_target: bool = True
