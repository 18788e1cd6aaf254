"""What callers are told that get no lease, in words."""

from __future__ import annotations

import math

from vllm_chill.core.lifecycle import Refuse
from vllm_chill.core.target import Failed, Queued, Target, Unknown, Waking
from vllm_chill.errors import HoldExpired, TargetUnknown, WakeFailed


def refusal(target: Target, refuse: Refuse) -> WakeFailed | TargetUnknown:
    """The error for a caller whose waiting is of no use."""
    seconds = max(1, math.ceil(refuse.retry_after_seconds))
    if isinstance(target.phase, Failed):
        cause = refuse.cause if refuse.cause.endswith(("?", "!", ".")) else f"{refuse.cause}."
        message = f"{target.ref} could not be woken: {cause} A request after {seconds} s tries again."
        return WakeFailed(message, retry_after_seconds=seconds)
    return unknown(target, seconds)


def unknown(target: Target, retry_after_seconds: int = 5) -> TargetUnknown:
    """The error for a caller of a target of which nothing is known."""
    match target.phase:
        case Unknown(cause=str(cause)):
            why = f"the state of {target.ref} is not known: {cause}. vllm-chill keeps trying; retry soon."
        case _:
            why = f"the state of {target.ref} is not known yet. Retry in a few seconds."
    return TargetUnknown(why, retry_after_seconds=retry_after_seconds)


def hold_expired(target: Target, now: float, hold_seconds: float, retry_after_seconds: int) -> HoldExpired:
    """The error for a caller that was held for as long as it may be."""
    match target.phase:
        case Waking(since=since, trouble=trouble):
            state = f"still waking after {now - since:.0f} s"
            why = f", and the last trouble was: {trouble}" if trouble else ""
        case Queued(since=since):
            state, why = f"still queued after {now - since:.0f} s", f": {target.held_back}"
        case phase:
            state, why = type(phase).__name__.lower(), ""
    message = (
        f"{target.ref} is {state}{why}. This request was held for {hold_seconds:g} s; the wake goes on: "
        f"retry, or ask for a longer --wake-timeout."
    )
    return HoldExpired(message, retry_after_seconds=retry_after_seconds)
