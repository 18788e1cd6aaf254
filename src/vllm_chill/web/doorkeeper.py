"""Who is let in: the one place where a request's right is looked at on its way through aiohttp's server.

The rule: it comes before everything else, so what is refused wakes nothing and none of its body is read; and no answer
and no log line has a key or a token in it.
"""

from __future__ import annotations

import structlog
from aiohttp import hdrs, web

from vllm_chill.core.access import NEEDS, Denied, Granted, Need, Operators, Readers
from vllm_chill.core.access import Unauthenticated as NobodyKnown
from vllm_chill.core.keys import bearer_token, said_by
from vllm_chill.core.routing import Route
from vllm_chill.errors import (
    AnswerableError,
    BackendError,
    BackendUnavailable,
    Forbidden,
    InternalError,
    RightsUnknown,
    Unauthenticated,
)
from vllm_chill.ports import Authorizer
from vllm_chill.proxy.gate import Entrant, Gate
from vllm_chill.proxy.handler import KEY
from vllm_chill.web.stand_in import KEPT_HERE

_ASK_AGAIN_SECONDS = 5
_SAY_WHO = 'send one in the header "Authorization: Bearer TOKEN"'


class Doorkeeper:
    """Lets requests in. `gate` is None where no keys are asked for; `authorizer` knows tokens of a cluster, for
    `operators` that are known there.
    """

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        operators: Operators = Operators.ALL,
        metrics: Readers = Readers.ALL,
        status: Readers = Readers.ALL,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.gate = gate
        self._operators = operators
        self._readers = {Need.METRICS: metrics, Need.STATUS: status}
        self._authorizer = authorizer
        self._log = structlog.get_logger("vllm_chill.doorkeeper")
        self._trouble = ""

    async def admit(self, route: Route, request: web.BaseRequest) -> None:
        """Return if the request may go on. Raises Unauthenticated, Forbidden, RateLimited and RightsUnknown."""
        need = NEEDS[route]
        match need:
            case Need.KEY:
                self._enter(route, request)
            case Need.ADMIN_KEY:
                if self.gate is not None:
                    self._ask_for_admin(self._let_in(self.gate, request), request)
            case Need.NOTHING:
                self._keep_here(request)
            case Need.OPERATE:
                await self._ask_for_operator(request)
            case Need.LOGS:
                await self._ask_for_confidant(request)
            case _:
                await self._ask_for_reader(self._readers[need], request)

    def _enter(self, route: Route, request: web.BaseRequest) -> None:
        if self.gate is not None:
            entrant = self._let_in(self.gate, request)
            if route is Route.PROXIED:
                entrant.take(self.gate.clock())

    def _let_in(self, gate: Gate, request: web.BaseRequest) -> Entrant:
        entrant = gate.who(said_by(request.headers.get(hdrs.AUTHORIZATION), request.headers.get("X-Api-Key")))
        request[KEY] = entrant.key
        return entrant

    def _ask_for_admin(self, entrant: Entrant, request: web.BaseRequest) -> None:
        if not entrant.key.admin:
            raise Forbidden(
                f'the key "{entrant.key.name}" is no admin key, and {request.method} {_path(request)} needs one.'
            )

    def _keep_here(self, request: web.BaseRequest) -> None:
        """Have the proxy answer by itself whoever has no key: nothing of theirs reaches an engine."""
        if self.gate is not None:
            try:
                self._let_in(self.gate, request)
            except AnswerableError:
                request[KEPT_HERE] = True

    async def _ask_for_reader(self, readers: Readers, request: web.BaseRequest) -> None:
        if readers is Readers.ADMIN:
            await self._ask_for_operator(request)
        elif readers is Readers.KEYS and self.gate is not None:
            self._let_in(self.gate, request)

    async def _ask_for_confidant(self, request: web.BaseRequest) -> None:
        """Have who may operate read prompts; an admin key where there are keys, and nobody is asked to operate."""
        if self._operators is not Operators.ALL:
            await self._ask_for_operator(request)
        elif self.gate is not None:
            self._ask_for_admin(self._let_in(self.gate, request), request)

    async def _ask_for_operator(self, request: web.BaseRequest) -> None:
        if self._operators is Operators.KEYS and self.gate is not None:
            self._ask_for_admin(self._let_in(self.gate, request), request)
        elif self._operators is Operators.KUBERNETES and self._authorizer is not None:
            await self._review(self._authorizer, request)

    async def _review(self, authorizer: Authorizer, request: web.BaseRequest) -> None:
        said = said_by(request.headers.get(hdrs.AUTHORIZATION), None)
        token = None if said is None else bearer_token(said)
        if token is None:
            raise Unauthenticated(f"this needs a token of the cluster; {_SAY_WHO}.")
        verb = "get" if request.method == "HEAD" else request.method.lower()
        path = _path(request)
        try:
            access = await authorizer.may(token.decode("latin-1"), verb, path)
        except BackendError as error:
            raise self._unanswered(error) from None
        self._trouble = ""
        match access:
            case Granted():
                return
            case NobodyKnown():
                raise Unauthenticated(f"the token is not one that the cluster knows, or has expired; {_SAY_WHO}.")
            case Denied(user):
                raise Forbidden(
                    f'{user} may not {verb} {path}: bind a ClusterRole with the verb "{verb}" on this nonResourceURL.'
                )

    def _unanswered(self, error: BackendError) -> AnswerableError:
        if error.message != self._trouble:
            self._trouble = error.message
            self._log.warning("who may operate this proxy is not known", cause=error.message)
        if isinstance(error, BackendUnavailable):
            message = "the cluster cannot be asked now what this token may do; try again."
            return RightsUnknown(message, retry_after_seconds=_ASK_AGAIN_SECONDS)
        return InternalError("the cluster does not tell what this token may do; the proxy's log says why.")


def _path(request: web.BaseRequest) -> str:
    return request.raw_path.partition("?")[0]
