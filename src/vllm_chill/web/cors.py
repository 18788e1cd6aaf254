"""Which pages of other origins may use the models from a browser (Fetch standard, CORS).

The rule: a preflight is answered here, wakes nothing and needs no key, as browsers send none with it. Nothing of
/proxy/ is for such a page. A page says who it is with its key alone, so no cookies are let through.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import hdrs, web

ANY = "*"
_REMEMBERED_SECONDS = 600
_SHOWN = "Retry-After"


class Cors:
    """The origins whose pages may, `*` for all."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def preflight(self, request: web.BaseRequest) -> web.Response:
        """What a browser is told that asks whether a page may send a request. Without the field that names its origin
        it may not.
        """
        headers = self.fields(request)
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if asked is not None and hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = asked
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_REMEMBERED_SECONDS)
            if (fields := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)) is not None:
                headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = fields
        return web.Response(status=204, headers=headers)

    def fields(self, request: web.BaseRequest) -> dict[str, str]:
        """What is added to an answer, so that the page may read it."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return {}
        if ANY in self._origins:
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: ANY, hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _SHOWN}
        if origin not in self._origins:
            return {hdrs.VARY: hdrs.ORIGIN}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _SHOWN,
            hdrs.VARY: hdrs.ORIGIN,
        }
