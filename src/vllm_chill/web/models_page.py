"""What a browser is shown where several models are served and none is named: all of them, each with a button.

The rule: the page wakes nothing by itself, and as in web.page nothing but itself runs in it.
"""

from __future__ import annotations

import html
from string import Template
from urllib.parse import quote

from aiohttp import web

from vllm_chill.core.cold_start import time_left
from vllm_chill.core.routing import Route
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.web.page import html_headers, template
from vllm_chill.web.targets import name_of, state_of

_SOURCE = template("models_page.html")
_TEMPLATE, _HEADERS = Template(_SOURCE), html_headers(_SOURCE)
_START = f"{Route.PROXY_START.value}?wait=false&model_id="
_ROW = """<li data-name="{name}">
<span class="which"><b>{served}</b><span class="state">{state}</span></span>
<form method="post" action="{start}"><button class="act"{hidden}>Wake it</button></form>
</li>"""


class ModelsPage:
    """The page of all models of a directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def page(self, *, wakes: bool) -> web.Response:
        """400 on a path that `wakes` once it is told for which model, 404 on any other; 503 while none is known."""
        if (trouble := self._directory.unread) is not None:
            status, lead = 503, f"They are not known yet: {trouble}."
        elif not len(self._directory.catalogue):
            status, lead = 404, "There is none yet."
        else:
            status = 400 if wakes else 404
            lead = 'Say which one is meant: in a request\'s "model", or in the address as ?model=NAME.'
        page = _TEMPLATE.substitute(
            wakes="yes" if wakes else "no",
            lead=html.escape(lead),
            models="\n".join(self._row(served) for served in self._directory),
        )
        return web.Response(status=status, body=page.encode(errors="replace"), headers=_HEADERS)

    def _row(self, served: Served) -> str:
        state, name = state_of(served), name_of(self._directory, served)
        left = f", {time_left(state.eta_seconds)}" if state.state == "waking" and state.eta_seconds is not None else ""
        return _ROW.format(
            name=html.escape(served.name),
            served=html.escape(name),
            state=f"{state.state}{left}{_several(served)}",
            start=html.escape(_START + quote(name, safe="")),
            hidden="" if state.state in ("asleep", "failed") else " hidden",
        )


def _several(served: Served) -> str:
    """How many replicas it has, where there are several; the page's script has the same words."""
    seen = served.controller.target.observed
    if seen is None or seen.replicas < 2:
        return ""
    ready = len(seen.serving)
    return f", {seen.replicas} replicas" if ready == seen.replicas else f", {ready} of {seen.replicas} replicas ready"
