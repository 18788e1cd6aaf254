"""The attempts of one request to reach its target, and what follows when one fails: the same for both lanes.

The rule: while nothing has reached the client nothing is lost, so a request is held again and sent once more. A
connection that is refused is no replay, as nothing has been sent: a Service may know of a ready pod later than this
proxy does, so it is tried for as long as a connection may take.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_chill.control.lease import Lease
from vllm_chill.core.outliers import FIRST_GATEWAY_ERROR
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.adapters import Adapters
from vllm_chill.proxy.exchange import StaleConnection
from vllm_chill.proxy.hold import Caller
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.served import Choice
from vllm_chill.telemetry.metrics import Metrics

_NEWS_SECONDS = 1.0
"""How long the backend gets to tell of a death that a request has already met."""

_REFUSED_FIRST_SECONDS = 0.005
_REFUSED_MOST_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """How requests are proxied: on which terms one is held, how large a body is kept for a replay, and how far into a
    larger one the model's name is looked for.
    """

    hold: HoldOptions
    replay_bytes: int
    timeouts: RelayTimeouts
    model_bytes: int = 32 << 20


class Attempts:
    """One request's attempts. `fresh` says that the next one needs a new connection, as a kept one was stale."""

    __slots__ = (
        "_adapter",
        "_adapters",
        "_began",
        "_caller",
        "_controller",
        "_desk",
        "_held",
        "_key",
        "_key_of",
        "_lost",
        "_metrics",
        "_patience",
        "_pause",
        "_replayed",
        "fresh",
    )

    def __init__(
        self, choice: Choice, adapters: Adapters, metrics: Metrics, options: ProxyOptions, caller: Caller
    ) -> None:
        controller = choice.served.controller
        self._adapter = choice.adapter
        self._adapters = adapters
        self._controller = controller
        self._desk = choice.served.desk
        self._caller = caller
        self._key_of = choice.key_of
        self._key: int | None = None
        self._metrics = metrics
        self._held = False
        self._lost: Endpoint | None = None
        self._began = controller.now()
        self._patience = options.timeouts.connect_seconds
        self._pause = _REFUSED_FIRST_SECONDS
        self._replayed = False
        self.fresh = False

    async def lease(self) -> Lease:
        """A lease for the next attempt, held back until the target is ready, and on another replica than the last
        attempt's if that can be had at once. Raises as HoldDesk.lease does.
        """
        if self._key_of is not None:
            self._key, self._key_of = self._key_of(self._caller), None
        lease = self._controller.lease_now(self._lost, self._key)
        if lease is None:
            again, self._held = self._held, True
            lease = await self._hold(again=again)
        self._began = self._controller.now()
        return lease

    async def _hold(self, *, again: bool) -> Lease:
        """A lease for who has to wait. Raises as HoldDesk.lease does."""
        return await self._desk.lease(self._caller, again=again, key_of_replica=self._key)

    async def prepare(self, endpoint: Endpoint) -> None:
        """Have the adapter there that the request asks for. Raises as Adapters.load does."""
        if self._adapter is not None and not self._adapters.has(endpoint, self._adapter):
            await self._adapters.load(endpoint, self._adapter, self._caller.field("Authorization"))

    def answered(self) -> None:
        """The first bytes of the response are here."""
        if self._held:
            self._desk.answered()

    def ended(self, endpoint: Endpoint, status: int) -> None:
        """The response is whole, with this status."""
        ejector = self._controller.ejector
        if status >= FIRST_GATEWAY_ERROR or ejector.suspects:
            ejector.answered(endpoint, status)

    def failed(self, failure: ChillError, lost: Endpoint) -> None:
        """An attempt has failed there, which may be the replica's fault."""
        if isinstance(failure, StaleConnection) and not self.fresh:
            return
        if isinstance(failure, UpstreamRefused):
            self._controller.eject(lost, "it took no connection")
        elif isinstance(failure, UpstreamReset):
            self._controller.eject(lost, "it broke the connection before it answered")

    async def after(self, failure: ChillError, lost: Endpoint, *, replayable: bool) -> None:
        """Return when it is time for another attempt. Raises the failure if there is none to be had."""
        self.failed(failure, lost)
        if not replayable:
            raise failure
        if isinstance(failure, StaleConnection) and not self.fresh:
            self.fresh = True
        elif isinstance(failure, UpstreamReset) and not self._replayed:
            self._replayed = True
            self._lost = lost
            self._metrics.replays.inc()
            if self._controller.endpoints == (lost,):
                await self._controller.changed(_NEWS_SECONDS)
        elif isinstance(failure, UpstreamRefused):
            self._patience -= self._controller.now() - self._began
            if self._patience <= 0:
                raise failure
            self._lost = lost
            if lost in self._controller.endpoints:
                begun = self._controller.now()
                await self._controller.changed(self._pause)
                self._patience -= self._controller.now() - begun
            self._pause = min(self._pause * 2, _REFUSED_MOST_SECONDS)
        else:
            raise failure
