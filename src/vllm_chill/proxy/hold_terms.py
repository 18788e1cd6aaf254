"""On which terms a request is held: how long, whether its client hears of it, and whose turn it takes. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from vllm_chill.core.admission import Priority
from vllm_chill.core.keys import Key
from vllm_chill.errors import BadRequest
from vllm_chill.proxy.committed import Kind

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
_EVENTS_OR_JSON = re.compile(r"json|event-stream|\*", re.IGNORECASE)
_CLASSES = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}


class JsonHold(enum.Enum):
    """How a request is held that wants a JSON document in one piece."""

    SILENT = "silent"
    WHITESPACE = "whitespace"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class HoldOptions:
    """The server's side of it. `seconds` is the longest hold; a client hears of its own after `beat_after_seconds`
    (0: never), and then every `beat_seconds`. `body_budget` bounds the bytes of the bodies that are held.

    Callers take turns by the field `key_field`, or else by their address; those whose key is in `priority_keys` may
    name a class.
    """

    seconds: float = 120.0
    beat_after_seconds: float = 15.0
    beat_seconds: float = 10.0
    json: JsonHold = JsonHold.SILENT
    body_budget: int = 256 << 20
    key_field: str = "Authorization"
    priority_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Terms:
    """What one request gets: `seconds` of hold, 0 for none, with signs of life of this kind, if any."""

    seconds: float
    beats: Kind | None


def terms(options: HoldOptions, *, stream: bool | None, prefer: str | None, wake_timeout: str | None) -> Terms:
    """The terms of a request by what it says in `Prefer` (RFC 7240) and `X-Wake-Timeout`: never longer than ours.

    What will be answered is known where `stream` says whether it will be a stream of events or a JSON document; else
    nothing can be promised, and the hold is silent. Raises BadRequest for an X-Wake-Timeout that is no duration; an
    unknown preference is passed over.
    """
    asked = _asked(prefer, wake_timeout)
    beats: Kind | None = Kind.EVENTS
    if not stream:
        beats = Kind.JSON if options.json is JsonHold.WHITESPACE and stream is not None else None
        if options.json is JsonHold.FAIL and asked is None:
            asked = 0.0
    seconds = options.seconds if asked is None else min(asked, options.seconds)
    return Terms(seconds, beats if options.beat_after_seconds else None)


def takes_beats(accept: str | None) -> bool:
    """Whether who accepts this may get events or JSON. SDKs that want a sound say so, and spaces are no part of one."""
    return accept is None or _EVENTS_OR_JSON.search(accept) is not None


def _asked(prefer: str | None, wake_timeout: str | None) -> float | None:
    if wake_timeout is not None:
        found = _DURATION.fullmatch(wake_timeout.strip())
        if found is None:
            raise BadRequest(
                f'X-Wake-Timeout: "{wake_timeout}" is no time; send seconds, or a unit too, as in 30s or 2m'
            )
        return float(found[1]) * _SECONDS[found[2]]
    found = _WAIT.search(prefer) if prefer is not None else None
    return float(found[1]) if found is not None else None


def turn(
    options: HoldOptions, *, key: str | None, peer: str, priority: str | None, let_in: Key | None = None
) -> tuple[str, Priority]:
    """Whose turn a request takes, and its class: `key` is what its key field says, `priority` its X-Priority, and
    `let_in` the key with which it was let in. That key's own class counts where nothing is said, and who may not choose
    a class may still ask for a lower one than that.
    """
    own = Priority.NORMAL if let_in is None else let_in.priority
    whose = key or (peer if let_in is None else let_in.name)
    asked = own if priority is None else _CLASSES.get(priority.strip().lower(), own)
    if _may_choose(options, key):
        return whose, asked
    return whose, own if let_in is None else max(own, asked)


def _may_choose(options: HoldOptions, key: str | None) -> bool:
    if key is None:
        return False
    scheme, _, token = key.partition(" ")
    return key in options.priority_keys or (scheme.lower() == "bearer" and token.strip() in options.priority_keys)
