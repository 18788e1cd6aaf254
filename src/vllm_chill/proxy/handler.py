"""One proxied request: leases and the relay, until an answer is on its way."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from vllm_chill.api.openai import error_envelope
from vllm_chill.core.keys import Key
from vllm_chill.core.model_search import Search, no_model_within
from vllm_chill.core.naming import naming_of
from vllm_chill.errors import AnswerableError, ChillError, ExpectationFailed, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.adapters import Adapters
from vllm_chill.proxy.aiohttp_seam import Relayed, connection_of, cut_off, message_of, peer_of, say_continue
from vllm_chill.proxy.attempts import Attempts, ProxyOptions
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.committed import Committed, Kind, Rewrite
from vllm_chill.proxy.fast_exchange import Counter, FastLane
from vllm_chill.proxy.hold import STREAMED_BYTES, Caller
from vllm_chill.proxy.relay import fields_of, relay
from vllm_chill.proxy.request_id import id_of, text_of
from vllm_chill.proxy.served import Choice, Directory, Served
from vllm_chill.proxy.tunnel import tunnel, upgrade_of
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics

__all__ = ["ProxyHandler", "ProxyOptions"]


KEY = web.RequestKey("vllm_chill.key", Key)
"""Where a request has the key with which it was let in."""

RewriteFor = Callable[[web.BaseRequest, RequestBody, Choice], Rewrite | None]
"""What is done to the body of the answer to a request that goes there; None for nothing."""


class ProxyHandler:
    """Proxies requests to the targets of a directory. `rewrite_for` says what is done to the body of an answer, if
    anything is.
    """

    def __init__(
        self,
        directory: Directory,
        pool: UpstreamPool,
        metrics: Metrics,
        options: ProxyOptions,
        rewrite_for: RewriteFor | None = None,
    ) -> None:
        self._directory = directory
        self._only = Choice(directory.only) if directory.only is not None else None
        self._pool = pool
        self._metrics = metrics
        self._options = options
        self._rewrite_for = rewrite_for or _rewrite_for
        self._adapters = Adapters(pool, options.timeouts)

    def fast_lane(self, counter: Counter) -> FastLane:
        """The way of plain requests past the server's tasks, to the same targets."""
        return FastLane(
            self._directory,
            self._only,
            self._adapters,
            self._attempts,
            self._metrics.responses_cut.inc,
            self._metrics.responses_aborted.inc,
            counter,
            self._pool,
            self._options.timeouts,
            self._options.replay_bytes,
            self._options.model_bytes,
        )

    async def proxy(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with what the target answers, once it is ready.

        Raises an AnswerableError while nothing has reached the client.
        """
        expects = _expects_continue(request)
        body = RequestBody(request, self._options.replay_bytes)
        caller = SlowCaller(request, body)
        choice = self._only
        if choice is None or (caller.key is not None and caller.key.models is not None):
            choice, expects = await self._choose(request, body, caller.key, expects=expects)
        attempts = self._attempts(caller, choice)
        desk = choice.served.desk
        if (protocol := upgrade_of(request)) is not None:
            with await attempts.lease() as lease:
                try:
                    await attempts.prepare(lease.endpoint)
                    access = self._pool.access
                    return await tunnel(request, protocol, lease.endpoint, self._options.timeouts, access)
                except (UpstreamRefused, UpstreamReset) as error:
                    attempts.failed(error, lease.endpoint)
                    raise
        try:
            if size := body.missing:
                if desk.streams(size):
                    body.stream()
                else:
                    desk.gather(size)
                    expects = await self._load(request, body, size, expects=expects)
            rewrite = self._rewrite_for(request, body, choice)
            return await self._attempt(request, body, attempts, caller, rewrite, expects=expects)
        except AnswerableError as error:
            if caller.committed is None:
                raise
            last = caller.committed.failure(error_envelope(error, text_of(id_of(request))))
            caller.write(last)
            told = Relayed(error.status, len(last), keep_alive=caller.committed.keep_alive)
            told.failure = error
            return told
        except Exception:
            if caller.committed is not None:
                caller.cut_off()  # or an answer to the error would stand within the response that it has
            raise

    async def _load(self, request: web.BaseRequest, body: RequestBody, size: int, *, expects: bool) -> bool:
        """Read a small body whole, for which there is a share; whether its client has yet to be told to send."""
        try:
            if expects:
                expects = await say_continue(request)
            await body.load()
        finally:
            self._directory.budget.give_back(size)
        return expects

    async def _choose(
        self, request: web.BaseRequest, body: RequestBody, key: Key | None, *, expects: bool
    ) -> tuple[Choice, bool]:
        """Where a request goes that has to say so, and whether its client has yet to be told to send its body."""
        directory = self._directory
        naming = naming_of(
            request.raw_path, request.headers.get(hdrs.CONTENT_TYPE), request.headers.get(hdrs.CONTENT_ENCODING)
        )
        if body.whole is None:
            directory.refuse_early()
            search = naming.search()
            if search is None:
                return directory.choose(naming.in_query, key), expects
            size = body.missing
            if not size or not directory.budget.has(size):
                if expects:
                    expects = await say_continue(request)
                if size:
                    body.stream()
                return directory.choose(await self._search(body, search) or naming.in_query, key), expects
            directory.budget.take(size)
            expects = await self._load(request, body, size, expects=expects)
        assert body.whole is not None
        return directory.choose(naming.model(body.whole), key), expects

    async def _search(self, body: RequestBody, search: Search) -> str | None:
        """The model that a streamed body names, of which no more is read than is needed for that."""
        budget, most, share = self._directory.budget, self._options.model_bytes, 0
        try:
            while not search.over:
                piece = await body.read_ahead()
                if not piece:
                    search.end()
                    break
                budget.take(len(piece))
                before, share = share, share + len(piece)
                search.feed(piece[: max(0, most - before)])
                if share >= most and not search.over and share != body.length:
                    raise no_model_within(most)
            return search.model
        finally:
            budget.give_back(share)

    async def _attempt(
        self,
        request: web.BaseRequest,
        body: RequestBody,
        attempts: Attempts,
        caller: SlowCaller,
        rewrite: Rewrite | None,
        *,
        expects: bool,
    ) -> web.StreamResponse:
        failure: ChillError
        while True:
            with await attempts.lease() as lease:
                if expects:
                    expects = await say_continue(request)
                try:
                    await attempts.prepare(lease.endpoint)
                    response = await relay(
                        request,
                        body,
                        lease.endpoint,
                        self._pool,
                        self._options.timeouts,
                        committed=caller.committed,
                        rewrite=rewrite,
                        began=attempts.answered,
                    )
                except (UpstreamRefused, UpstreamReset) as error:
                    failure = error
                else:
                    attempts.ended(lease.endpoint, response.status)
                    if response.cut is not None:
                        self._metrics.responses_cut.inc()
                    if response.aborted:
                        self._metrics.responses_aborted.inc()
                    return response
            await attempts.after(failure, lease.endpoint, replayable=body.replayable)

    async def scrape(self, request: web.BaseRequest, served: Served | None = None) -> web.StreamResponse | None:
        """Pass a request to a target, or the only one, without a use of it being counted; None if it is not ready."""
        served = served or self._directory.only
        endpoint = served.controller.endpoint if served is not None else None
        if endpoint is None:
            return None
        if _expects_continue(request):
            await say_continue(request)
        body = RequestBody(request, self._options.replay_bytes)
        return await relay(request, body, endpoint, self._pool, self._options.timeouts)

    def _attempts(self, caller: Caller, choice: Choice) -> Attempts:
        return Attempts(choice, self._adapters, self._metrics, self._options, caller)


class SlowCaller:
    """A request of aiohttp's server, as one that may be held."""

    def __init__(self, request: web.BaseRequest, body: RequestBody) -> None:
        self.committed: Committed | None = None
        self.key = api_key_of(request)
        self.request = request
        self._body = body

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def target(self) -> str:
        return self.request.raw_path

    @property
    def peer_address(self) -> str:
        return peer_of(self.request.protocol)[0]

    @property
    def body(self) -> bytes:
        return self._body.whole or b""

    @property
    def opening(self) -> bytes:
        return self._body.opening

    @property
    def held_bytes(self) -> int:
        return self._body.held_bytes(STREAMED_BYTES)

    def field(self, name: str) -> str | None:
        return self.request.headers.get(name)

    def commit(self, kind: Kind) -> Committed:
        message = message_of(self.request)
        http10 = message.version < HttpVersion11
        keep_alive, fields = not message.should_close, fields_of(self.request) + id_of(self.request)
        self.committed = Committed(kind, http10=http10, keep_alive=keep_alive, fields=fields)
        self.write(self.committed.head())
        return self.committed

    def tell(self, data: bytes) -> None:
        if not connection_of(self.request).writing_paused:
            self.write(data)

    def cut_off(self) -> None:
        """Drop the client's connection within its response, if it is still there."""
        if self.request.transport is not None:
            cut_off(self.request.transport, reset=self.committed is not None and not self.committed.last)

    def write(self, data: bytes) -> None:
        """Send bytes to the client, if it is still there."""
        if self.request.transport is not None:
            self.request.transport.write(data)


def api_key_of(request: web.BaseRequest) -> Key | None:
    """The key with which a request was let in; None where none is asked for."""
    return request.get(KEY)


def _rewrite_for(request: web.BaseRequest, body: RequestBody, choice: Choice) -> Rewrite | None:
    if not choice.rewrites:
        return None
    from vllm_chill.proxy.tool_call_rewrite import tool_call_rewrite  # few proxies ever need it

    return tool_call_rewrite(request, body)


def _expects_continue(request: web.BaseRequest) -> bool:
    expect = request.headers.get(hdrs.EXPECT)
    if expect is None or request.version < HttpVersion11:
        return False
    if expect.lower() != "100-continue":
        raise ExpectationFailed(f'Expect: {expect} is not known; send "100-continue" or nothing.')
    return True
