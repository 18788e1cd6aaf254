"""What a controller shows to those that watch it: its metrics, over TLS and to whom they are granted, and its probes.

The rule: what is answered to whoever may not read says nothing of the cluster but what they know of themselves, and a
token is in no answer and in no log line.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import hdrs, web

from vllm_chill.core.access import Denied, Granted, Unauthenticated
from vllm_chill.core.listening import ListenAddress
from vllm_chill.errors import BackendError, BackendUnavailable, SettingError
from vllm_chill.ports import Authorizer

METRICS_PATH = "/metrics"
_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = ("GET", "HEAD")
_BEARER = "bearer "
_SAY_WHO = "give a token that may read these metrics, in the header Authorization: Bearer TOKEN"

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


class ControllerServer:
    """The listening servers of one controller.

    `metrics` gives all of them in Prometheus' text; `ready` says whether the controller can do its work. With no
    `authorizer` everybody may read the metrics.
    """

    def __init__(
        self, metrics: Callable[[], bytes], ready: Callable[[], bool], authorizer: Authorizer | None = None
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._authorizer = authorizer
        self._runners: list[web.ServerRunner] = []
        self._log = structlog.get_logger("vllm_chill.controller_server")
        self._trouble = ""

    async def serve_metrics(self, address: ListenAddress, tls: ssl.SSLContext | None = None) -> list[tuple[str, int]]:
        """Answer GET /metrics there, over HTTPS with `tls`; the addresses that are listened on. Raises SettingError."""
        return await self._listen(address, {METRICS_PATH: self._answer_metrics}, "--metrics-bind-address", tls)

    async def serve_probes(self, address: ListenAddress) -> list[tuple[str, int]]:
        """Answer GET /healthz and /readyz there; the addresses that are listened on. Raises SettingError."""
        pages: dict[str, Handler] = {"/healthz": self._answer_health, "/readyz": self._answer_readiness}
        return await self._listen(address, pages, "--health-probe-bind-address")

    async def close(self) -> None:
        """Listen no more, and close every connection."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(
        self, address: ListenAddress, pages: dict[str, Handler], flag: str, tls: ssl.SSLContext | None = None
    ) -> list[tuple[str, int]]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            response = await self._answer(request, pages)
            response.headers[hdrs.SERVER] = "vllm-chill"
            return response

        runner = web.ServerRunner(web.Server(handle, handler_cancellation=True, access_log=None), shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, address.host, address.port, ssl_context=tls).start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise SettingError(f"cannot listen on {address}: {reason}; give another {flag}") from error
        return [bound[:2] for bound in runner.addresses]

    async def _answer(self, request: web.BaseRequest, pages: dict[str, Handler]) -> web.Response:
        page = pages.get(request.raw_path.partition("?")[0])
        if page is None:
            return _say(404, f"there is nothing here; ask for {' or '.join(pages)}")
        if request.method not in _METHODS:
            return _say(405, f"ask with GET: {request.method} does nothing here", {hdrs.ALLOW: ", ".join(_METHODS)})
        try:
            return await page(request)
        except Exception:
            self._log.exception("a bug in vllm-chill", path=request.path)
            return _say(500, "vllm-chill has a bug here, and its log says more; please report it")

    async def _answer_health(self, request: web.BaseRequest) -> web.Response:
        return _say(200, "ok")

    async def _answer_readiness(self, request: web.BaseRequest) -> web.Response:
        return _say(200, "ok") if self._ready() else _say(503, "not ready yet")

    async def _answer_metrics(self, request: web.BaseRequest) -> web.Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        return web.Response(body=self._metrics(), headers={hdrs.CONTENT_TYPE: _PROMETHEUS_TEXT})

    async def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        """Why the caller is not given the metrics, or None."""
        if self._authorizer is None:
            return None
        token = _token(request)
        if token is None:
            return _unauthorized(f"a token is needed: {_SAY_WHO}")
        try:
            access = await self._authorizer.may(token, "get", METRICS_PATH)
        except BackendError as error:
            return self._unanswered(error)
        self._trouble = ""
        match access:
            case Granted():
                return None
            case Unauthenticated():
                return _unauthorized(f"the token is not one that the API server knows, or has expired: {_SAY_WHO}")
            case Denied(user):
                right = f'bind a ClusterRole with the verb "get" on the nonResourceURL "{METRICS_PATH}" to it'
                return _say(403, f"{user} may not read {METRICS_PATH}: {right}")

    def _unanswered(self, error: BackendError) -> web.Response:
        if error.message != self._trouble:
            self._trouble = error.message
            self._log.warning("who may read the metrics is not known", cause=error.message)
        if isinstance(error, BackendUnavailable):
            return _say(503, "the API server cannot be asked now whether this token may read the metrics; try again")
        return _say(500, "the API server does not tell whether this token may read the metrics; the log says why")


def _token(request: web.BaseRequest) -> str | None:
    value = request.headers.get(hdrs.AUTHORIZATION, "")
    if value[: len(_BEARER)].lower() != _BEARER:
        return None
    return value[len(_BEARER) :].strip() or None


def _unauthorized(sentence: str) -> web.Response:
    return _say(401, sentence, {hdrs.WWW_AUTHENTICATE: "Bearer"})


def _say(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=sentence + "\n", headers=headers)
