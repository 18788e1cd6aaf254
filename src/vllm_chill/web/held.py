"""Who waits, and why: `GET /proxy/requests`, and how an operator sends one of them away.

The rule: a request that is held is not told that it may be listed. What is shown of it is read off its ticket when
somebody looks, and only then does it get an id.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from itertools import islice

from aiohttp import web
from msgspec import to_builtins

from vllm_chill.api.held import CancelAsked, Cancelled, HeldRequest, HeldRequests, PriorityName
from vllm_chill.api.status import phase_name
from vllm_chill.control.lease import Ticket
from vllm_chill.core.admission import Priority
from vllm_chill.core.cold_start import doing
from vllm_chill.core.routing import Route
from vllm_chill.core.target import Draining, Queued, Ready, Unknown, Waking
from vllm_chill.errors import BadRequest, HoldCancelled, RequestNotHeld
from vllm_chill.proxy.hold import Held
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.web import asked

MOST_SHOWN = 100
_PATH_CHARACTERS = 200
_FULL = "every replica has as many requests as it may"
_EXAMPLE = '{"id": "ID"}'
_PRIORITIES: dict[Priority, PriorityName] = {Priority.HIGH: "high", Priority.NORMAL: "normal", Priority.LOW: "low"}
_SENT_AWAY = "an operator has cancelled this request, which waited for {name}; ask them before it is sent again."


class HeldApi:
    """The requests that a directory's targets hold."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        # Not from 1: what is cancelled by an id of another proxy, or of this one's last life, must not be here.
        self._numbers = itertools.count(secrets.randbits(48))

    async def tell(self, _: web.BaseRequest) -> web.Response:
        """The first of those that wait, of every target."""
        waited_for = [served for served in self._directory if served.controller.target.waiting]
        counts = [served.controller.target.waiting for served in waited_for]
        requests = [
            request
            for served, share in zip(waited_for, shares(counts, MOST_SHOWN), strict=True)
            for request in self._first(served, share)
        ]
        return web.json_response(to_builtins(HeldRequests(count=sum(counts), requests=requests)))

    async def cancel(self, request: web.BaseRequest) -> web.Response:
        """Send one away."""
        wish = await asked.body(request, CancelAsked, _EXAMPLE)
        if wish is None:
            raise BadRequest(f"the body is empty; send JSON such as {_EXAMPLE}")
        for served in self._directory:
            for ticket in served.controller.waiters():
                if isinstance(ticket, Held) and ticket.id and ticket.id == wish.id:
                    served.controller.turn_away(ticket, HoldCancelled(_SENT_AWAY.format(name=served.name)))
                    message = "The request was cancelled, and its caller has been told so."
                    return web.json_response(to_builtins(Cancelled(message=message)))
        listed = f"GET {Route.PROXY_REQUESTS.value} lists those that are"
        raise RequestNotHeld(f"no request of this id is held here: it was let in, or has left; {listed}.")

    def _first(self, served: Served, most: int) -> Iterator[HeldRequest]:
        controller, starts = served.controller, served.starts
        now, target = controller.now(), controller.target
        why = _why(served)
        eta = starts.eta(now) if starts.current is not None and not starts.current.is_ready else None
        for place, ticket in enumerate(islice(controller.waiters(), most), 1):
            caller = ticket.caller if isinstance(ticket, Held) else None
            key = None if caller is None else caller.key
            yield HeldRequest(
                id=self._id(ticket),
                target=str(target.ref),
                model=None if served.entry is None else served.entry.name,
                place=place,
                phase=phase_name(target.phase),
                why=why,
                waited_seconds=round(now - ticket.since, 3),
                leaves_in_seconds=round(max(0.0, ticket.until - now), 3),
                eta_seconds=None if eta is None else round(eta, 3),
                client=None if caller is None else caller.peer_address or None,
                key=None if key is None else key.name,
                priority=_PRIORITIES[ticket.priority],
                method="POST" if caller is None else caller.method,
                path=Route.PROXY_START.value if caller is None else _path(caller.target),
            )

    def _id(self, ticket: Ticket) -> str | None:
        if not isinstance(ticket, Held):
            return None
        if not ticket.id:
            ticket.id = f"{next(self._numbers):x}"
        return ticket.id


def shares(counts: Sequence[int], most: int) -> list[int]:
    """How many of each are shown, `most` of all together: as many of each, and what some do not need goes to others."""
    shown = [0] * len(counts)
    left = min(most, sum(counts))
    while left:
        for index, count in enumerate(counts):
            if left and shown[index] < count:
                shown[index] += 1
                left -= 1
    return shown


def _why(served: Served) -> str:
    """What those who wait for it wait for, without the time that it takes."""
    target, start = served.controller.target, served.starts.current
    match target.phase:
        case Ready():
            most = served.controller.bounds.in_flight
            return "its turn, which comes now" if most is None else f"{_FULL} ({most})"
        case Queued():
            return target.held_back or "its turn, which comes now"
        case Waking() if start is not None:
            return doing(start.progress)
        case Draining():
            return "the target goes to sleep, and is woken again then"
        case Unknown(cause=cause):
            return cause or "how the target is, is not known yet"
        case _:
            return "the target is about to be woken"


def _path(target: str) -> str:
    path = target.partition("?")[0]
    return path if len(path) <= _PATH_CHARACTERS else f"{path[: _PATH_CHARACTERS - 1]}…"
